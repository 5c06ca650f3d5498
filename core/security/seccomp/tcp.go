package seccomp

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// ipprotoSMC is SMC without a family of its own, from Linux 6.11 on (include/uapi/linux/in.h).
const ipprotoSMC = 256

// TCPPolicy is the policy that closes what Landlock's rules for TCP do not see (on Linux 6.18), as data. It is loaded on
// top of the workload's own filter when a job has such rules.
func TCPPolicy(goarch string) Policy {
	p := Policy{Arch: goarch, Default: ActAllow}
	add := adder(&p, nil)
	// A send that connects (tcp(7), MSG_FASTOPEN) passes no hook for connections. Programs take the errno for a kernel
	// without it, and connect.
	for name, flags := range map[string]uint8{"sendto": 3, "sendmsg": 2, "sendmmsg": 3} {
		add(name, Errno(syscall.EOPNOTSUPP), Cond{Arg: flags, Op: OpMaskedEqual, Value: unix.MSG_FASTOPEN, Value2: unix.MSG_FASTOPEN})
	}
	// Rules hold for sockets whose protocol is TCP; these speak it under another name. TCP_ULP makes an SMC socket of a TCP
	// one.
	for _, family := range []uint64{syscall.AF_INET, syscall.AF_INET6} {
		for _, protocol := range []uint64{unix.IPPROTO_MPTCP, ipprotoSMC} {
			add("socket", Errno(syscall.EPROTONOSUPPORT), is32(0, family), is32(2, protocol))
		}
	}
	add("socket", Errno(syscall.EAFNOSUPPORT), is32(0, unix.AF_SMC))
	add("setsockopt", Errno(syscall.ENOENT), is32(1, unix.IPPROTO_TCP), is32(2, unix.TCP_ULP))
	// All of that can be asked for by io_uring, which no filter looks into.
	add("io_uring_setup", Errno(syscall.ENOSYS))
	p.Normalize()
	return p
}

// TCPFilter returns the filter of [TCPPolicy].
func TCPFilter() Filter { return newFilter("tcp", []byte(tcpBPF)) }
