package host

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/host/fact"
)

// judge turns a child's answer, or the failure to get one, into a feature.
func (p *probe) judge(a answer, err error, h fact.Host, res restrictions) fact.Feature {
	f := fact.Feature{Name: p.name, Since: since(p.baseName())}
	var killed *killedError
	var start *startError
	var errno unix.Errno
	switch {
	case errors.As(err, &killed) && killed.signal == syscall.SIGSYS:
		f.State = fact.Unavailable
		f.Why = "a seccomp filter on this process kills the system call"
		f.Remedy = remedySeccomp(res)
		return f
	case errors.As(err, &start) && p.clones(h) && errors.As(err, &errno):
		// A plain child starts (Probe has checked), so the refusal is about
		// the namespaces.
	case err != nil:
		f.Why = firstLine(err)
		return f
	case a.Err == "":
		f.State, f.Detail = fact.Available, a.Detail
		return f
	case a.Why != "":
		f.State, f.Detail, f.Why, f.Remedy = fact.Unavailable, a.Detail, a.Why, a.Remedy
		return f
	case a.Setup || a.Errno == 0:
		f.Why = "could not prepare the probe: " + a.Err
		return f
	default:
		errno = unix.Errno(a.Errno)
		err = errors.New(a.Err)
	}
	if !meansNo(errno) {
		f.Why = firstLine(err)
		return f
	}
	f.State = fact.Unavailable
	if p.explain != nil {
		f.Why, f.Remedy = p.explain(errno, h, res)
	}
	if f.Why == "" {
		f.Why, f.Remedy = explainErrno(errno, f.Since, firstLine(err), h, res)
	}
	return f
}

// meansNo: the kernel has understood and declined, or does not know the call.
// Everything else (out of memory, out of descriptors, interrupted) may be
// different the next time and so tells nothing.
func meansNo(errno unix.Errno) bool {
	switch errno {
	case unix.ENOSYS, unix.EPERM, unix.EACCES, unix.EINVAL, unix.ENODEV, unix.EOPNOTSUPP, unix.ENOENT, unix.ENXIO,
		unix.ENOTTY, unix.E2BIG, unix.EAFNOSUPPORT, unix.EPROTONOSUPPORT, unix.ENOSPC, unix.EUSERS, unix.EROFS, unix.ENOPROTOOPT:
		return true
	}
	return false
}

func explainErrno(errno unix.Errno, since, text string, h fact.Host, res restrictions) (why, remedy string) {
	old := since != "" && !atLeast(h, since)
	switch {
	case old:
		return fmt.Sprintf("Linux %s is too old (%s)", h.Kernel, text), "boot Linux " + since + " or newer"
	case res.seccomp && (errno == unix.ENOSYS || errno == unix.EPERM || errno == unix.EACCES):
		return "refused, probably by the seccomp filter that is on this process (" + text + ")", remedySeccomp(res)
	case errno == unix.EPERM || errno == unix.EACCES:
		if h.EUID == 0 && !h.Privileged && !h.UserNS {
			return "root without CAP_SYS_ADMIN (" + text + ")", "start Nucleus with CAP_SYS_ADMIN, or as an ordinary user"
		}
		return text, "look for the refusal of a security module: sudo dmesg | grep -i -e apparmor -e audit"
	case errno == unix.ENOSYS || errno == unix.ENODEV || errno == unix.EOPNOTSUPP || errno == unix.EAFNOSUPPORT || errno == unix.EPROTONOSUPPORT:
		return "this kernel was built without it (" + text + ")", "boot a distribution kernel, or load the module"
	}
	return text, ""
}

func atLeast(h fact.Host, version string) bool {
	ma, mi, _ := strings.Cut(version, ".")
	major, err1 := strconv.Atoi(ma)
	minor, err2 := strconv.Atoi(mi)
	return err1 == nil && err2 == nil && h.KernelAtLeast(major, minor)
}

func remedySeccomp(res restrictions) string {
	switch res.container {
	case "docker", "podman":
		return "start the outer container with --security-opt seccomp=unconfined, or run Nucleus outside of it"
	case "":
		return "run Nucleus outside of the program that put the filter on (systemd: SystemCallFilter=)"
	}
	return "allow the call in the outer container's seccomp profile, or run Nucleus outside of it"
}

func explainUserNS(errno unix.Errno, h fact.Host, res restrictions) (why, remedy string) {
	switch errno {
	case unix.ENOSPC, unix.EUSERS:
		if res.maxUserNS == "0" {
			return "user.max_user_namespaces is 0", remedyMaxUserNS
		}
		return fmt.Sprintf("the limit of user namespaces is reached (user.max_user_namespaces is %q here, an outer namespace may allow less), or they are nested 32 deep", res.maxUserNS), remedyMaxUserNS
	case unix.ENOSYS, unix.EINVAL:
		if !res.seccomp {
			return "this kernel was built without CONFIG_USER_NS", "boot a distribution kernel"
		}
	}
	switch {
	case h.EUID == 0 && !h.Privileged && !res.setfcap && atLeast(h, "5.12"):
		return "root without CAP_SETFCAP may not map uid 0 into a user namespace", "start Nucleus with CAP_SETFCAP, or as an ordinary user"
	case res.unprivClone == "0" && !h.Privileged:
		return "kernel.unprivileged_userns_clone is 0: only root may make user namespaces", remedyUserNSClone
	case res.appArmorUserNS && !h.Privileged:
		return "AppArmor keeps capabilities from user namespaces of programs without a profile (kernel.apparmor_restrict_unprivileged_userns is 1)", appArmorRemedy(res.executable)
	case res.chrooted:
		return "we are in a chroot, where the kernel refuses user namespaces", "run Nucleus outside of the chroot, or enter it with pivot_root (systemd-nspawn does)"
	case !res.seccomp && (errno == unix.EPERM || errno == unix.EACCES):
		return "the kernel refuses user namespaces to this process (" + errno.Error() + "): a security module, or a chroot",
			"look for the refusal of a security module: sudo dmesg | grep -i -e apparmor -e audit"
	}
	return "", ""
}

// appArmorRemedy names a profile for us alone, which is the narrower way; the
// sysctl lifts the restriction for every program.
func appArmorRemedy(exe string) string {
	if exe == "" {
		exe = "/usr/local/bin/nucleus"
	}
	return `give Nucleus a profile that may use them:
sudo tee /etc/apparmor.d/nucleus <<'EOF'
abi <abi/4.0>,
include <tunables/global>
profile nucleus "` + exe + `" flags=(unconfined) {
  userns,
}
EOF
sudo apparmor_parser -r /etc/apparmor.d/nucleus`
}

func explainProcMount(errno unix.Errno, _ fact.Host, res restrictions) (why, remedy string) {
	if errno != unix.EPERM && errno != unix.EACCES {
		return "", ""
	}
	if len(res.maskedProc) == 0 {
		return "", ""
	}
	why = fmt.Sprintf("the kernel refuses a proc mount because parts of our own /proc are covered (%s and %d more)",
		res.maskedProc[0], len(res.maskedProc)-1)
	if len(res.maskedProc) == 1 {
		why = fmt.Sprintf("the kernel refuses a proc mount because a part of our own /proc is covered (%s)", res.maskedProc[0])
	}
	switch res.container {
	case "docker":
		remedy = "start the outer container with --security-opt systempaths=unconfined"
	case "podman":
		remedy = "start the outer container with --security-opt unmask=ALL"
	default:
		remedy = "start the outer container with an unmasked /proc (Kubernetes: procMount: Unmasked)"
	}
	return why, remedy
}

func explainNoSwap(errno unix.Errno, h fact.Host, _ restrictions) (why, remedy string) {
	if errno == unix.EINVAL && atLeast(h, since(featNoSwap)) && !h.Privileged {
		return "the kernel refuses noswap in a user namespace", "run Nucleus as root, or on a host without swap or with encrypted swap"
	}
	return "", ""
}

func explainIDMapped(errno unix.Errno, h fact.Host, _ restrictions) (why, remedy string) {
	switch {
	case errno == unix.EPERM && !h.Privileged:
		return "only root may map the ids of a host file system's mount", "run Nucleus as root; as a user the sandbox's id map does the work"
	case errno == unix.EINVAL && atLeast(h, since(featIDMapped)):
		return "this file system cannot be mounted with other ids", "keep the directory on ext4, xfs, btrfs, or tmpfs (Linux 6.3)"
	}
	return "", ""
}

func explainTun(errno unix.Errno, _ fact.Host, res restrictions) (why, remedy string) {
	switch errno {
	case unix.ENOENT, unix.ENODEV, unix.ENXIO:
		if res.container == "docker" || res.container == "podman" {
			return "/dev/net/tun is not there", "start the outer container with --device /dev/net/tun"
		}
		return "/dev/net/tun is not there", "sudo modprobe tun"
	case unix.EACCES, unix.EPERM:
		if !res.seccomp {
			return "a sandbox's ids may not open /dev/net/tun", "sudo chmod 0666 /dev/net/tun (its usual mode: the kernel checks who may make interfaces)"
		}
	}
	return "", ""
}
