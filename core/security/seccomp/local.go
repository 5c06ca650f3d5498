package seccomp

import "syscall"

// LocalPolicy is the policy of a process that is to have no network: it makes Unix sockets only. It is loaded on top of
// the default filter, which refuses io_uring, the other way to a socket. A hooks plugin has it: what it is told of a
// sandbox is to go no further than the host.
//
// EACCES, unlike EAFNOSUPPORT, is not taken for a kernel without IP: it is shown as "permission denied".
func LocalPolicy(goarch string) Policy {
	p := Policy{Arch: goarch, Default: ActAllow}
	add := adder(&p, nil)
	add("socket", ActAllow, is32(0, syscall.AF_UNIX))
	add("socket", Errno(syscall.EACCES))
	p.Normalize()
	return p
}

// LocalFilter returns the filter of [LocalPolicy].
func LocalFilter() Filter { return newFilter("local", []byte(localBPF)) }
