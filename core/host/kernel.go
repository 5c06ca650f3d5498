package host

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/host/fact"
)

// landlockABI asks the kernel for its Landlock version; 0 with the reason if
// there is none.
func landlockABI() (int, unix.Errno) {
	v, _, errno := unix.RawSyscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return 0, errno
	}
	return int(v), 0
}

// Landlock versions that brought the parts that we name.
const (
	landlockTCP   = 4
	landlockScope = 6
)

// landlockFeatures turns the kernel's own answer into features. It is the one
// interface that is meant to be asked for its version, so this is not a guess.
func landlockFeatures(abi int, errno unix.Errno) []fact.Feature {
	out := make([]fact.Feature, 0, 3)
	for _, part := range []struct {
		name string
		abi  int
	}{{featLandlock, 1}, {featLandlockTCP, landlockTCP}, {featLandlockScope, landlockScope}} {
		f := fact.Feature{Name: part.name, Since: since(part.name)}
		switch {
		case abi >= part.abi:
			f.State, f.Detail = fact.Available, fmt.Sprintf("ABI %d", abi)
		case abi > 0:
			f.State = fact.Unavailable
			f.Why = fmt.Sprintf("the kernel's Landlock ABI is %d, this needs %d", abi, part.abi)
			f.Remedy = "boot Linux " + f.Since + " or newer"
		default:
			f.State, f.Why, f.Remedy = landlockAbsent(errno)
		}
		out = append(out, f)
	}
	return out
}

func landlockAbsent(errno unix.Errno) (fact.State, string, string) {
	switch errno {
	case unix.EOPNOTSUPP:
		return fact.Unavailable, "Landlock is built in but switched off at boot",
			`add landlock to the kernel's "lsm=" boot parameter`
	case unix.ENOSYS:
		return fact.Unavailable, "the kernel has no Landlock, or a seccomp filter hides it",
			"boot Linux 5.13 or newer with CONFIG_SECURITY_LANDLOCK"
	case unix.EPERM, unix.EACCES:
		return fact.Unavailable, "a seccomp filter or security module refuses Landlock: " + errno.Error(),
			"allow the landlock_* system calls in the container that we run in"
	default:
		return fact.Unknown, "asking for the Landlock ABI: " + errno.Error(), ""
	}
}

// readLockdown parses "none [integrity] confidentiality": the word in brackets
// is in force. The detail is that word, "" if the kernel does not say.
func readLockdown(r root) fact.Feature {
	f := fact.Feature{Name: featLockdown, Since: since(featLockdown)}
	b, err := r.read("/sys/kernel/security/lockdown", 4096)
	switch {
	case errors.Is(err, unix.ENOENT):
		f.Why = "/sys/kernel/security/lockdown is not there: securityfs is not mounted, or the kernel has no lockdown"
		f.Remedy = "sudo mount -t securityfs securityfs /sys/kernel/security"
		return f
	case err != nil:
		f.Why = firstLine(err)
		return f
	}
	_, rest, ok := strings.Cut(string(b), "[")
	mode, _, closed := strings.Cut(rest, "]")
	if !ok || !closed || (mode != "none" && mode != "integrity" && mode != "confidentiality") {
		f.Why = "/sys/kernel/security/lockdown has a form that we do not know"
		return f
	}
	f.State, f.Detail = fact.Available, mode
	return f
}

// userNSForbidden reports a setting that surely forbids new user namespaces.
// That none is found proves nothing: only a probe can tell that they work.
func userNSForbidden(r root, privileged bool) (fact.Feature, bool) {
	if r.word("/proc/sys/user/max_user_namespaces") == "0" {
		return unusable(featUserNS, "user.max_user_namespaces is 0", remedyMaxUserNS), true
	}
	if !privileged && r.word("/proc/sys/kernel/unprivileged_userns_clone") == "0" {
		return unusable(featUserNS, "kernel.unprivileged_userns_clone is 0: only root may make user namespaces", remedyUserNSClone), true
	}
	return fact.Feature{}, false
}

const (
	remedyMaxUserNS   = "sudo sysctl user.max_user_namespaces=15000"
	remedyUserNSClone = "sudo sysctl kernel.unprivileged_userns_clone=1"
)

func firstLine(err error) string {
	s, _, _ := strings.Cut(err.Error(), "\n")
	return s
}
