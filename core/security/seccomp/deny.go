package seccomp

import "syscall"

// denial is a family of calls that the default policy refuses by name, with the errno that lets programs fall back.
// A call that is on no list at all is answered with ENOSYS as well: to a program that is an older kernel.
type denial struct {
	action Action
	why    string
	names  []string
}

// killed are the calls with which the process ends. Each of them acts on the machine as a whole and needs a capability
// of the initial user namespace, so an honest program inside a sandbox has no use for the answer, and none is known to
// probe for them. Everything that programs do probe for gets an errno instead.
var killed = denial{
	action: ActKillProcess,
	why:    "acts on the whole machine",
	names: []string{
		"acct", "delete_module", "finit_module", "init_module", "ioperm", "iopl", "kexec_file_load", "kexec_load", "reboot",
		"swapoff", "swapon",
	},
}

var refused = []denial{
	{
		action: Errno(syscall.EPERM),
		why:    "changes or reads mounts",
		names: []string{
			"chroot", "fsconfig", "fsmount", "fsopen", "fspick", "mount", "mount_setattr", "move_mount", "open_tree",
			"open_tree_attr", "pivot_root", "umount2",
		},
	},
	{
		action: Errno(syscall.EPERM),
		why:    "makes or joins namespaces",
		names:  []string{"setns", "unshare"},
	},
	{
		// glibc and Go fall back to clone, whose flags are a register that a filter can read.
		action: Errno(syscall.ENOSYS),
		why:    "its flags are in memory, where no filter can check them for namespaces",
		names:  []string{"clone3"},
	},
	{
		action: Errno(syscall.EPERM),
		why:    "reaches into other processes",
		names:  []string{"kcmp", "pidfd_getfd", "process_madvise", "process_vm_readv", "process_vm_writev", "ptrace"},
	},
	{
		action: Errno(syscall.EPERM),
		why:    "kernel interface with a record of privilege escalations",
		names:  []string{"bpf", "fanotify_init", "fanotify_mark", "perf_event_open", "userfaultfd"},
	},
	{
		// Runtimes probe for it and use epoll or threads when the kernel has none.
		action: Errno(syscall.ENOSYS),
		why:    "performs calls that no filter sees",
		names:  []string{"io_uring_enter", "io_uring_register", "io_uring_setup"},
	},
	{
		// libkeyutils, krb5, systemd and cryptsetup take ENOSYS for a kernel without keyrings.
		action: Errno(syscall.ENOSYS),
		why:    "keyrings are not namespaced",
		names:  []string{"add_key", "keyctl", "request_key"},
	},
	{
		// numa_available() looks for ENOSYS, and says no.
		action: Errno(syscall.ENOSYS),
		why:    "moves memory between nodes of the host",
		names: []string{
			"get_mempolicy", "mbind", "migrate_pages", "move_pages", "set_mempolicy", "set_mempolicy_home_node",
		},
	},
	{
		// A kernel with secretmem.enable=0, the default until 6.5, says the same.
		action: Errno(syscall.ENOSYS),
		why:    "takes its pages out of the kernel's own map of memory, which is in small pieces for good then, and keeps the host from hibernating",
		names:  []string{"memfd_secret"},
	},
	{
		// New in Linux 6.13; programs have the older calls.
		action: Errno(syscall.ENOSYS),
		why:    "the size of an attribute is in memory, where no filter can check it",
		names:  []string{"setxattrat"},
	},
	{
		action: Errno(syscall.EPERM),
		why:    "changes the host",
		names: []string{
			"clock_settime", "open_by_handle_at", "quotactl", "quotactl_fd", "setdomainname", "sethostname", "settimeofday",
			"syslog", "vhangup",
		},
	},
	{
		action: Errno(syscall.ENOSYS),
		why:    "obsolete or describes the host",
		names: []string{
			"_sysctl", "create_module", "get_kernel_syms", "listmount", "listns", "lookup_dcookie", "lsm_set_self_attr", "modify_ldt",
			"nfsservctl", "query_module", "statmount", "sysfs", "uselib", "ustat",
		},
	},
}

// capOpens names the calls that are of no use without a capability and guarded by it in the kernel. A job that keeps the
// capability gets them. SYS_ADMIN, BPF, PERFMON and DAC_READ_SEARCH are left out on purpose: the interfaces behind them
// are how sandboxes are left, so each call wants naming in `allow`.
var capOpens = []struct {
	capability string
	names      []string
}{
	{"SYS_CHROOT", []string{"chroot"}},
	{"SYS_NICE", []string{"get_mempolicy", "mbind", "migrate_pages", "move_pages", "set_mempolicy", "set_mempolicy_home_node"}},
	{"SYS_PTRACE", []string{"kcmp", "pidfd_getfd", "process_madvise", "process_vm_readv", "process_vm_writev", "ptrace"}},
	{"SYS_TIME", []string{"clock_settime", "settimeofday"}},
	{"SYS_TTY_CONFIG", []string{"vhangup"}},
	{"SYSLOG", []string{"syslog"}},
}

// notAllowable are the calls that `allow` cannot open, with the reason; the killed ones come on top. They are let
// through as far as the argument rules say, and no further.
var notAllowable = []struct{ name, why string }{
	{"clone", "it is already allowed but for its namespace flags; unconditional it makes user namespaces, and with them every capability"},
	{"clone3", "its flags are in memory, where no filter can check them; programs fall back to clone"},
	{"ioctl", "it is already allowed but for TIOCSTI, TIOCLINUX, TIOCSETD, TIOCEXCL, a TCXONC that stops, and the oldest requests of bridges, VLANs and DLCI, and snapshots of btrfs, which take a terminal from whoever is at it, load modules, or copy what lies outside"},
	{"setns", "it joins namespaces, and nothing outside of the sandbox may be joined"},
	{"unshare", "it makes user namespaces, and with them every capability"},
}

const (
	// All namespace flags that clone takes, and 0x80: CLONE_NEWTIME elsewhere, here a bit of the exit signal that no
	// valid signal has.
	cloneNamespaces = 0x7e020080

	tcxonc    = 0x540a
	tiocexcl  = 0x540c
	tiocsetd  = 0x5423
	tioclinux = 0x541c
	tiocsti   = 0x5412

	stopOutput = 0 // TCOOFF

	// Each is followed by its counterpart, which sets or removes.
	siocgifbr   = 0x8940
	siocadddlci = 0x8980
	siocgifvlan = 0x8982
	siocbraddbr = 0x89a0

	seccompNewListener = 1 << 3

	snapshotCreate   = 0x50009401 // BTRFS_IOC_SNAP_CREATE
	snapshotCreateV2 = 0x50009417

	maxAttribute = 4000

	setLease      = 1024 // F_SETLEASE
	setDelegation = 1040 // F_SETDELEG, of directories, too, from Linux 6.19 on

	low32 = 0xffffffff
)

// argumentRules are the rules of calls that are decided by their arguments. Every one of those arguments is an int or
// unsigned int to the kernel, which ignores the upper half of the register; so do the rules, or they could be slipped
// past by setting a bit there (CVE-2019-10063), or break programs that leave rubbish there.
func argumentRules(add func(name string, action Action, conds ...Cond)) {
	deniedArguments(add)

	sockets(add)
	// TIPC has socket pairs too: without this rule they would be a way around the one above.
	add("socketpair", ActAllow, is32(0, syscall.AF_UNIX))
	add("socketpair", Errno(syscall.EAFNOSUPPORT))

	// PER_LINUX, PER_LINUX32, each with UNAME26, and the query. Not ADDR_NO_RANDOMIZE or READ_IMPLIES_EXEC.
	for _, persona := range []uint64{0, 0x8, 0x20000, 0x20008, 0xffffffff} {
		add("personality", ActAllow, is32(0, persona))
	}
	add("personality", Errno(syscall.EPERM))
	add("clone", ActAllow, Cond{Arg: 0, Op: OpMaskedEqual, Value: cloneNamespaces})
	add("clone", Errno(syscall.EPERM))
	// Init has the workload's ids, which is all that prlimit(2) asks for, and it has threads: a CPU limit would kill it,
	// and look like a failure of ours. Its own limits a process names by 0.
	add("prlimit64", ActAllow, is32(0, 0))
	add("prlimit64", Errno(syscall.EPERM))
	for _, name := range []string{"fcntl", "fsetxattr", "ioctl", "lsetxattr", "seccomp", "setsockopt", "setxattr"} {
		add(name, ActAllow)
	}
}

// deniedArguments are the refusals by argument, which the default policy and that of init share.
func deniedArguments(add func(name string, action Action, conds ...Cond)) {
	deniedOnFiles(add)
	socketOptions(add)
	// Of these the kernel loads bridge, 8021q and, in old ones, dlci for anybody (sock_ioctl() in net/socket.c); ENOPKG is its
	// answer without them.
	for _, pair := range []uint64{siocgifbr, siocadddlci, siocgifvlan, siocbraddbr} {
		add("ioctl", Errno(syscall.ENOPKG), Cond{Arg: 1, Op: OpMaskedEqual, Value: low32 &^ 1, Value2: pair})
	}
	// A listener lets one process answer the calls of others. The kernel takes only one for each process, and that is the
	// host's to use; EINVAL is what a kernel without the flag says.
	add("seccomp", Errno(syscall.EINVAL), Cond{Arg: 1, Op: OpMaskedEqual, Value: seccompNewListener, Value2: seccompNewListener})
}

// deniedOnFiles are those of what the host may share with a sandbox, terminals and files: no policy is without them.
func deniedOnFiles(add func(name string, action Action, conds ...Cond)) {
	for _, request := range []uint64{tiocsti, tioclinux, tiocsetd} {
		add("ioctl", Errno(syscall.EPERM), is32(1, request))
	}
	// These outlast who has done them, and nothing that is typed undoes them: an inherited terminal would stay stopped
	// (ioctl_tty(2), TCXONC), and nobody but root could open it any more.
	add("ioctl", Errno(syscall.EPERM), is32(1, tcxonc), is32(2, stopOutput))
	add("ioctl", Errno(syscall.EPERM), is32(1, tiocexcl))
	// A lease has others wait in open(2), for 45 seconds (fs.lease-break-time) each time it is taken anew, root's of the host
	// included. The owner of a file can take one through a read-only mount; EACCES is what others get.
	for _, command := range []uint64{setLease, setDelegation} {
		add("fcntl", Errno(syscall.EACCES), is32(1, command))
	}
	// A kernel before 6.7, or its stable successors, takes any directory for the source of a snapshot, and gives all of the
	// subvolume that it lies in (commit "btrfs: do not allow non subvolume root targets for snapshot"): a whole home for a
	// workspace in it.
	for _, request := range []uint64{snapshotCreate, snapshotCreateV2} {
		add("ioctl", Errno(syscall.EPERM), is32(1, request))
	}
	// An access control list is kernel memory that no limit counts, 128 KiB of it for one of 64 KiB, and as long as its file on
	// a tmpfs or its memfd. No filter sees an attribute's name, so all are bounded, by what ext4 has room for at most.
	for _, name := range []string{"fsetxattr", "lsetxattr", "setxattr"} {
		add(name, Errno(syscall.ENOSPC), Cond{Arg: 3, Op: OpGreater, Value: maxAttribute})
	}
}

// is32 compares the low half of an argument.
func is32(arg uint8, value uint64) Cond {
	return Cond{Arg: arg, Op: OpMaskedEqual, Value: low32, Value2: value}
}
