package seccomp

import (
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// sockets are the rules of socket(2). For a protocol that it lacks the kernel loads a module, whoever asks (inet_create() in
// net/ipv4/af_inet.c): SCTP, DCCP, L2TP, SMC, and their record of privilege escalations (CVE-2016-10200, CVE-2017-6074,
// CVE-2021-23133). EPROTONOSUPPORT is what a kernel without them says.
func sockets(add func(name string, action Action, conds ...Cond)) {
	add("socket", ActAllow, is32(0, syscall.AF_UNIX))
	// getaddrinfo asks for addresses by NETLINK_ROUTE. The other protocols are attack surface; libraries such as libaudit
	// take EPROTONOSUPPORT for a kernel without them.
	add("socket", ActAllow, is32(0, syscall.AF_NETLINK), is32(2, syscall.NETLINK_ROUTE))

	// One compare for both: their numbers differ in one bit, 2 and 10.
	ip := Cond{Arg: 0, Op: OpMaskedEqual, Value: low32 &^ (syscall.AF_INET ^ syscall.AF_INET6), Value2: syscall.AF_INET & syscall.AF_INET6}
	kind := func(t uint64) Cond { return Cond{Arg: 1, Op: OpMaskedEqual, Value: sockTypeMask, Value2: t} }
	for _, protocol := range []uint64{0, unix.IPPROTO_TCP, unix.IPPROTO_MPTCP} {
		add("socket", ActAllow, ip, kind(syscall.SOCK_STREAM), is32(2, protocol))
	}
	for _, protocol := range []uint64{0, unix.IPPROTO_UDP, unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6} {
		add("socket", ActAllow, ip, kind(syscall.SOCK_DGRAM), is32(2, protocol))
	}
	// Raw sockets are of any protocol, and of none is a module looked for; without a capability they are EPERM.
	add("socket", ActAllow, ip, kind(syscall.SOCK_RAW))

	known := []uint64{syscall.AF_UNIX, syscall.AF_INET, syscall.AF_INET6, syscall.AF_NETLINK}
	for _, c := range without(known, 0, familyBits) {
		add("socket", Errno(syscall.EAFNOSUPPORT), c)
	}
	add("socket", Errno(syscall.EPROTONOSUPPORT))
}

// socketOptions refuses what reaches beyond the network namespace, for whoever asks. ENOPROTOOPT is what a kernel without
// the option says.
func socketOptions(add func(name string, action Action, conds ...Cond)) {
	for _, option := range []struct{ level, name uint64 }{
		// The first socket with it and the end of the last one rewrite the kernel's code (udp_encap_needed_key), with six
		// interrupts to each processor of the host.
		// Sockets of UDP take it at the level of UDP-Lite as well (udp_setsockopt()).
		{unix.IPPROTO_UDP, unix.UDP_ENCAP},
		{unix.IPPROTO_UDPLITE, unix.UDP_ENCAP},
		// The labels of all namespaces are in one table of 4096 (fl_size in net/ipv6/ip6_flowlabel.c).
		{unix.IPPROTO_IPV6, flowLabelManager},
		// The name of a hash is the caller's, and the kernel loads the module for it; it has room for 8 (CPOOL_SIZE in
		// net/ipv4/tcp_sigpool.c).
		{unix.IPPROTO_TCP, tcpAOAddKey},
	} {
		add("setsockopt", Errno(syscall.ENOPROTOOPT), is32(1, option.level), is32(2, option.name))
	}
}

const (
	flowLabelManager = 32 // IPV6_FLOWLABEL_MGR
	tcpAOAddKey      = 38 // TCP_AO_ADD_KEY

	sockTypeMask = 0xf // the rest of the type are flags (SOCK_TYPE_MASK in linux/net.h)
	familyBits   = 6   // AF_MAX is 46
)

// without gives conditions on the first argument that hold for the numbers of so many low bits, from a first one on,
// but for some: filters compare under masks, and have no sets.
func without(some []uint64, first uint64, bits int) []Cond {
	size := uint64(1) << bits
	if !slices.ContainsFunc(some, func(n uint64) bool { return n >= first && n < first+size }) {
		return []Cond{{Arg: 0, Op: OpMaskedEqual, Value: low32 &^ (size - 1), Value2: first}}
	}
	if bits == 0 {
		return nil
	}
	return append(without(some, first, bits-1), without(some, first+size/2, bits-1)...)
}
