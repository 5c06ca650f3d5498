package host

import (
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// restrictions are the known reasons why a kernel that has a feature refuses
// it to us. They only explain a refusal, and are never taken for one.
type restrictions struct {
	maxUserNS      string // user.max_user_namespaces
	unprivClone    string // kernel.unprivileged_userns_clone (Debian)
	appArmorUserNS bool   // kernel.apparmor_restrict_unprivileged_userns (Ubuntu)
	seccomp        bool   // a filter is on this process already
	setfcap        bool   // CAP_SETFCAP is effective
	chrooted       bool
	container      string   // "docker", "podman", ... as the container tells
	maskedProc     []string // mounts over parts of /proc
	executable     string
}

func readRestrictions(r root) restrictions {
	res := restrictions{
		maxUserNS:      r.word("/proc/sys/user/max_user_namespaces"),
		unprivClone:    r.word("/proc/sys/kernel/unprivileged_userns_clone"),
		appArmorUserNS: r.word("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1",
		chrooted:       rootIsNoMount(r),
		container:      containerKind(r),
	}
	if exe, err := os.Readlink(r.path(selfExe)); err == nil {
		res.executable = exe
	}
	if b, err := r.read("/proc/self/status", 64<<10); err == nil {
		for line := range strings.Lines(string(b)) {
			key, value, _ := strings.Cut(line, ":")
			switch value = strings.TrimSpace(value); key {
			case "Seccomp":
				res.seccomp = value != "0"
			case "CapEff":
				caps, err := strconv.ParseUint(value, 16, 64)
				res.setfcap = err == nil && caps&(1<<unix.CAP_SETFCAP) != 0
			}
		}
	}
	if b, err := r.read("/proc/self/mountinfo", 4<<20); err == nil {
		res.maskedProc = maskedBelowProc(string(b))
	}
	return res
}

// maskedBelowProc lists mount points below /proc. Any of them makes the kernel
// refuse a new proc mount in a user namespace (mount_too_revealing in
// fs/namespace.c): it would show what is hidden here.
func maskedBelowProc(mountinfo string) []string {
	var out []string
	for line := range strings.Lines(mountinfo) {
		f := strings.Fields(line)
		// binfmt_misc is mounted on an empty directory, which hides nothing.
		if len(f) > 4 && strings.HasPrefix(f[4], "/proc/") && f[4] != "/proc/sys/fs/binfmt_misc" {
			out = append(out, f[4])
		}
	}
	return out
}

// rootIsNoMount: our root is a plain directory of some mount, as after chroot.
// False where the kernel (before 5.8) does not say.
func rootIsNoMount(r root) bool {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, r.path("/"), 0, 0, &st); err != nil {
		return false
	}
	return st.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT != 0 && st.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0
}

func containerKind(r root) string {
	var st unix.Stat_t
	if unix.Lstat(r.path("/.dockerenv"), &st) == nil {
		return "docker"
	}
	if unix.Lstat(r.path("/run/.containerenv"), &st) == nil {
		return "podman"
	}
	return r.word("/run/systemd/container")
}
