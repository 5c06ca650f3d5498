package seccomp

import (
	"slices"
	"syscall"
)

// runtimeNeeds are refused calls by which a runtime plugin's program makes a sandbox inside the sandbox: mounts, a root
// and namespaces of its own, and the control of the processes in which it runs the workload's code.
var runtimeNeeds = []string{
	"chroot", "clone3", "fsconfig", "fsmount", "fsopen", "mount", "mount_setattr", "move_mount", "open_tree", "pivot_root", "umount2",
	"kcmp", "pidfd_getfd", "process_vm_readv", "process_vm_writev", "ptrace", "setns", "unshare", "sethostname", "setdomainname",
	"get_mempolicy", "mbind", "set_mempolicy",
}

// RuntimePolicy is the policy of a runtime plugin's program, and of its init, as data. Such a program confines itself far
// more narrowly (gVisor's sandbox does, before it runs anything of the workload): this is what holds until it has, and for
// its helpers. What acts on the machine as a whole kills it, and the kernel interfaces with a record of escalations, which
// no such program uses, are refused.
func RuntimePolicy(goarch string) Policy {
	p := Policy{Arch: goarch, Default: ActAllow}
	add := adder(&p, nil)
	deniedOnFiles(add)
	denials(func(name string, action Action, conds ...Cond) {
		if !slices.Contains(runtimeNeeds, name) {
			add(name, action, conds...)
		}
	})
	// Packets are what a network stack of its own lives of. The other families, such as AF_VSOCK, which knows no
	// namespaces, are no program's.
	for _, family := range []uint64{syscall.AF_UNIX, syscall.AF_INET, syscall.AF_INET6, syscall.AF_PACKET} {
		add("socket", ActAllow, is32(0, family))
	}
	add("socket", ActAllow, is32(0, syscall.AF_NETLINK), is32(2, syscall.NETLINK_ROUTE))
	add("socket", Errno(syscall.EAFNOSUPPORT))
	add("socketpair", ActAllow, is32(0, syscall.AF_UNIX))
	add("socketpair", Errno(syscall.EAFNOSUPPORT))
	p.Normalize()
	return p
}

// RuntimeFilter returns the filter of [RuntimePolicy].
func RuntimeFilter() Filter { return newFilter("runtime", []byte(runtimeBPF)) }
