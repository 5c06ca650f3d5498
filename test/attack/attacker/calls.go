package attacker

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// neg is an argument that is no descriptor, pid or id.
const neg = ^uintptr(0)

// dangerous are the calls that must never reach the kernel from inside. Their
// arguments are wrong in such a way that the kernel answers with something
// other than EPERM or ENOSYS and does nothing, even to root on a host.
var dangerous = []struct {
	name string
	call call
}{
	{"acct", call{nr: unix.SYS_ACCT, args: [6]uintptr{bad}}},
	{"add_key", call{nr: unix.SYS_ADD_KEY, args: [6]uintptr{bad, bad}}},
	{"bpf", call{nr: unix.SYS_BPF, args: [6]uintptr{neg, bad, 8}}},
	{"chroot", call{nr: unix.SYS_CHROOT, args: [6]uintptr{bad}}},
	{"clock_settime", call{nr: unix.SYS_CLOCK_SETTIME, args: [6]uintptr{neg, bad}}},
	{"clone3", call{nr: unix.SYS_CLONE3, args: [6]uintptr{bad, 1}}},
	{"delete_module", call{nr: unix.SYS_DELETE_MODULE, args: [6]uintptr{bad}}},
	{"fanotify_init", call{nr: unix.SYS_FANOTIFY_INIT, args: [6]uintptr{neg, neg}}},
	{"finit_module", call{nr: unix.SYS_FINIT_MODULE, args: [6]uintptr{neg, bad, neg}}},
	{"fsconfig", call{nr: unix.SYS_FSCONFIG, args: [6]uintptr{neg, neg}}},
	{"fsmount", call{nr: unix.SYS_FSMOUNT, args: [6]uintptr{neg, neg}}},
	{"fsopen", call{nr: unix.SYS_FSOPEN, args: [6]uintptr{bad, neg}}},
	{"fspick", call{nr: unix.SYS_FSPICK, args: [6]uintptr{neg, bad, neg}}},
	{"init_module", call{nr: unix.SYS_INIT_MODULE, args: [6]uintptr{bad, 64, bad}}},
	{"io_uring_enter", call{nr: unix.SYS_IO_URING_ENTER, args: [6]uintptr{neg}}},
	{"io_uring_register", call{nr: unix.SYS_IO_URING_REGISTER, args: [6]uintptr{neg, neg}}},
	{"io_uring_setup", call{nr: unix.SYS_IO_URING_SETUP, args: [6]uintptr{1, bad}}},
	{"ioperm", call{nr: unix.SYS_IOPERM, args: [6]uintptr{neg, neg, 1}}},
	{"iopl", call{nr: unix.SYS_IOPL, args: [6]uintptr{99}}},
	{"kcmp", call{nr: unix.SYS_KCMP, args: [6]uintptr{neg, neg, neg}}},
	{"kexec_load", call{nr: unix.SYS_KEXEC_LOAD, args: [6]uintptr{0, neg, bad, neg}}},
	{"keyctl", call{nr: unix.SYS_KEYCTL, args: [6]uintptr{neg}}},
	{"mount", call{nr: unix.SYS_MOUNT, args: [6]uintptr{bad, bad, bad}}},
	{"mount_setattr", call{nr: unix.SYS_MOUNT_SETATTR, args: [6]uintptr{neg, bad, neg, bad, neg}}},
	{"move_mount", call{nr: unix.SYS_MOVE_MOUNT, args: [6]uintptr{neg, bad, neg, bad, neg}}},
	{"open_by_handle_at", call{nr: unix.SYS_OPEN_BY_HANDLE_AT, args: [6]uintptr{neg, bad}}},
	{"open_tree", call{nr: unix.SYS_OPEN_TREE, args: [6]uintptr{neg, bad, 0x80000000}}},
	{"perf_event_open", call{nr: unix.SYS_PERF_EVENT_OPEN, args: [6]uintptr{bad, neg, neg, neg, neg}}},
	{"pidfd_getfd", call{nr: unix.SYS_PIDFD_GETFD, args: [6]uintptr{neg, neg, 0}}},
	{"pivot_root", call{nr: unix.SYS_PIVOT_ROOT, args: [6]uintptr{bad, bad}}},
	{"process_madvise", call{nr: unix.SYS_PROCESS_MADVISE, args: [6]uintptr{neg, bad, 1, neg, neg}}},
	{"process_vm_readv", call{nr: unix.SYS_PROCESS_VM_READV, args: [6]uintptr{neg, bad, 1, bad, 1}}},
	{"process_vm_writev", call{nr: unix.SYS_PROCESS_VM_WRITEV, args: [6]uintptr{neg, bad, 1, bad, 1}}},
	{"ptrace", call{nr: unix.SYS_PTRACE, args: [6]uintptr{unix.PTRACE_ATTACH, 0x7fffffff}}},
	{"quotactl", call{nr: unix.SYS_QUOTACTL, args: [6]uintptr{neg, bad, neg, bad}}},
	{"reboot", call{nr: unix.SYS_REBOOT, args: [6]uintptr{0, 0, 0}}},
	{"request_key", call{nr: unix.SYS_REQUEST_KEY, args: [6]uintptr{bad, bad}}},
	{"setdomainname", call{nr: unix.SYS_SETDOMAINNAME, args: [6]uintptr{bad, neg}}},
	{"sethostname", call{nr: unix.SYS_SETHOSTNAME, args: [6]uintptr{bad, neg}}},
	{"setns", call{nr: unix.SYS_SETNS, args: [6]uintptr{neg, 0}}},
	{"settimeofday", call{nr: unix.SYS_SETTIMEOFDAY, args: [6]uintptr{bad, 0}}},
	{"swapoff", call{nr: unix.SYS_SWAPOFF, args: [6]uintptr{bad}}},
	{"swapon", call{nr: unix.SYS_SWAPON, args: [6]uintptr{bad, neg}}},
	{"syslog", call{nr: unix.SYS_SYSLOG, args: [6]uintptr{neg, bad, neg}}},
	{"umount2", call{nr: unix.SYS_UMOUNT2, args: [6]uintptr{bad, 0}}},
	{"unshare", call{nr: unix.SYS_UNSHARE, args: [6]uintptr{1 << 1}}},
	{"userfaultfd", call{nr: unix.SYS_USERFAULTFD, args: [6]uintptr{0x7ffff000}}},
	{"socket AF_PACKET", call{nr: unix.SYS_SOCKET, args: [6]uintptr{unix.AF_PACKET, 99, 0}}},
	{"socket AF_VSOCK", call{nr: unix.SYS_SOCKET, args: [6]uintptr{unix.AF_VSOCK, unix.SOCK_STREAM, 0}}},
	{"socket AF_ALG", call{nr: unix.SYS_SOCKET, args: [6]uintptr{unix.AF_ALG, unix.SOCK_SEQPACKET, 0}}},
	{"socket NETLINK_AUDIT", call{nr: unix.SYS_SOCKET, args: [6]uintptr{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER}}},
	{"socket of another type", call{nr: unix.SYS_SOCKET, args: [6]uintptr{unix.AF_INET6, unix.SOCK_SEQPACKET, 0}}}, // which loads modules
	{"ioctl SIOCGIFVLAN", call{nr: unix.SYS_IOCTL, args: [6]uintptr{neg, unix.SIOCGIFVLAN, bad}}},
	{"seccomp listener", call{nr: unix.SYS_SECCOMP, args: [6]uintptr{1, 1 << 3, bad}}},
}

// probeDangerous reports which of the dangerous calls reach the kernel. A
// refused socket family answers EAFNOSUPPORT, a refused protocol EPROTONOSUPPORT, a refused
// listener EINVAL, a module ENOPKG.
func probeDangerous([]string) {
	for _, d := range dangerous {
		o := inChild(d.call)
		fmt.Printf("CALL %s: %s\n", d.name, o)
		if !o.reached() || o.errno == unix.EAFNOSUPPORT || o.errno == unix.EPROTONOSUPPORT || o.errno == unix.ENOPKG || d.name == "seccomp listener" && o.errno == unix.EINVAL {
			continue
		}
		won("calls", "%s", d.name)
	}
}

// probeTable makes every call of the native table with arguments that are wrong
// everywhere, and prints what came back. It must only be run in a sandbox.
func probeTable([]string) {
	mustBeInside()
	for nr := uintptr(0); nr < 480; nr++ {
		if nr >= 336 && nr < 424 { // not assigned on any 64-bit architecture
			continue
		}
		o := inChild(call{nr: nr, args: [6]uintptr{neg, bad, bad, bad, bad, bad}})
		fmt.Printf("CALL %d: %s\n", nr, o)
		if o.reached() {
			won("table", "%d", nr)
		}
	}
}

// useForeignABIs makes calls by the doors of other architectures, whose numbers
// mean something else: a filter that only looks at numbers is blind to them.
func useForeignABIs([]string) {
	for name, c := range map[string]call{
		"int80 getpid": {nr: 20, door: doorInt80},
		"int80 open":   {nr: 5, args: [6]uintptr{bad}, door: doorInt80},
		"int80 ptrace": {nr: 26, args: [6]uintptr{16, 0x7fffffff}, door: doorInt80},
		"int80 mount":  {nr: 21, args: [6]uintptr{bad, bad, bad}, door: doorInt80},
		"int80 keyctl": {nr: 288, args: [6]uintptr{neg}, door: doorInt80},
	} {
		if haveInt80 && inChild(c).reached() {
			won("foreign", "%s", name)
		}
	}
	for name, nr := range map[string]uintptr{"getpid": unix.SYS_GETPID, "ptrace": 521, "mount": unix.SYS_MOUNT, "keyctl": unix.SYS_KEYCTL} {
		if o := inChild(call{nr: x32 | nr, args: [6]uintptr{bad, bad, bad}}); haveInt80 && o.reached() {
			won("foreign", "x32 %s", name)
		}
	}
}

// injectInput puts a line into the input of the terminal that it was given, as
// if the user had typed it (CVE-2017-5226), also with bits set that the kernel
// ignores (CVE-2019-10063), also by the 32-bit doors.
func injectInput([]string) {
	c := byte('\n') // which its echo makes a line of its own
	arg := ptrTo(&c)
	for fd := uintptr(0); fd < 3; fd++ {
		for _, high := range []uintptr{0, 1 << 32, 0x7fffffff << 32, 0xffffffff << 32} {
			if inChild(call{nr: unix.SYS_IOCTL, args: [6]uintptr{fd, unix.TIOCSTI | high, arg}}).succeeded() {
				won("terminal", "TIOCSTI on %d high %#x", fd, high)
			}
			sel := byte(2)
			o := inChild(call{nr: unix.SYS_IOCTL, args: [6]uintptr{fd, 0x541c | high, ptrTo(&sel)}})
			if o.succeeded() {
				won("terminal", "TIOCLINUX on %d high %#x", fd, high)
			}
			ld := int32(0) // N_TTY, which every terminal has already
			o = inChild(call{nr: unix.SYS_IOCTL, args: [6]uintptr{fd, 0x5423 | high, ptrTo(&ld)}})
			if o.succeeded() {
				won("terminal", "TIOCSETD on %d high %#x", fd, high)
			}
		}
		if inChild(call{nr: 54, args: [6]uintptr{fd, unix.TIOCSTI, arg}, door: doorInt80}).succeeded() && haveInt80 {
			won("terminal", "int80 TIOCSTI on %d", fd)
		}
		// A session leader without a terminal takes this one.
		if inChild(call{nr: unix.SYS_IOCTL, args: [6]uintptr{fd, unix.TIOCSCTTY, 1}}).succeeded() {
			won("terminal", "TIOCSCTTY on %d", fd)
		}
	}
}
