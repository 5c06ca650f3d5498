package probe

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/dump"
)

// packet makes one of either family, with a payload that names ports where the protocol
// has them.
func packet(p Probe) ([]byte, netip.Addr, error) {
	to, err := netip.ParseAddrPort(p.To)
	if err != nil {
		return nil, netip.Addr{}, err
	}
	from, err := sender(p.From, to.Addr())
	if err != nil {
		return nil, netip.Addr{}, err
	}
	if from.Addr().Is4() != to.Addr().Is4() {
		return nil, netip.Addr{}, errors.New("one family for a packet")
	}
	payload := segment(p, from.Port(), to.Port())
	sum := func(pseudo []byte) {
		switch p.Proto {
		case unix.IPPROTO_TCP:
			binary.BigEndian.PutUint16(payload[16:], checksum(pseudo, payload))
		case unix.IPPROTO_UDP:
			binary.BigEndian.PutUint16(payload[6:], checksum(pseudo, payload))
		case unix.IPPROTO_ICMPV6:
			binary.BigEndian.PutUint16(payload[2:], checksum(pseudo, payload))
		case unix.IPPROTO_ICMP:
			binary.BigEndian.PutUint16(payload[2:], checksum(nil, payload))
		}
	}
	pseudo := append(from.Addr().AsSlice(), to.Addr().AsSlice()...)
	if to.Addr().Is4() {
		pseudo = append(pseudo, 0, p.Proto)
		sum(binary.BigEndian.AppendUint16(pseudo, uint16(len(payload))))
		h := make([]byte, 20)
		h[0], h[8], h[9] = 0x45, 64, p.Proto
		binary.BigEndian.PutUint16(h[2:], uint16(20+len(payload)))
		copy(h[12:], from.Addr().AsSlice())
		copy(h[16:], to.Addr().AsSlice())
		binary.BigEndian.PutUint16(h[10:], checksum(nil, h))
		return append(h, payload...), to.Addr(), nil
	}
	pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(len(payload)))
	sum(append(pseudo, 0, 0, 0, p.Proto))
	h := make([]byte, 40)
	h[0], h[6], h[7] = 0x60, p.Proto, 64
	binary.BigEndian.PutUint16(h[4:], uint16(len(payload)))
	copy(h[8:], from.Addr().AsSlice())
	copy(h[24:], to.Addr().AsSlice())
	return append(h, payload...), to.Addr(), nil
}

// sender reads an address and port. "self" stands for the address that the sandbox has
// in the family of the other end.
func sender(s string, to netip.Addr) (netip.AddrPort, error) {
	port, ok := strings.CutPrefix(s, "self:")
	if !ok {
		return netip.ParseAddrPort(s)
	}
	for _, a := range self().Addresses {
		if own := netip.MustParseAddr(a); own.Is4() == to.Is4() {
			return netip.ParseAddrPort(net.JoinHostPort(a, port))
		}
	}
	return netip.AddrPort{}, errors.New("the sandbox has no address of that family")
}

func segment(p Probe, sport, dport uint16) []byte {
	b := make([]byte, 24)
	switch p.Proto {
	case unix.IPPROTO_TCP:
		b = make([]byte, 20)
		b[12], b[13] = 5<<4, p.Flags
		binary.BigEndian.PutUint16(b[14:], 1024)
	case unix.IPPROTO_UDP:
		binary.BigEndian.PutUint16(b[4:], uint16(len(b)))
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		b[0] = p.Flags
		return b
	}
	binary.BigEndian.PutUint16(b, sport)
	binary.BigEndian.PutUint16(b[2:], dport)
	return b
}

func checksum(parts ...[]byte) uint16 {
	var sum uint32
	for _, b := range parts {
		for i := 0; i+1 < len(b); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(b[i:]))
		}
		if len(b)%2 == 1 {
			sum += uint32(b[len(b)-1]) << 8
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

func raw(p Probe) Result {
	data, to, err := packet(p)
	if err != nil {
		return failure(err)
	}
	domain := unix.AF_INET
	var at unix.Sockaddr
	if to.Is4() {
		at = &unix.SockaddrInet4{Addr: to.As4()}
	} else {
		domain, at = unix.AF_INET6, &unix.SockaddrInet6{Addr: to.As16()}
	}
	fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return failure(os.NewSyscallError("socket", err))
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.Sendto(fd, data, 0, at); err != nil {
		return failure(os.NewSyscallError("sendto", err))
	}
	return Result{OK: true}
}

// uplink is the sandbox's first link that is not loopback.
func uplink() (netlink.Link, error) {
	links, err := dump.Whole(netlink.LinkList)
	if err != nil {
		return nil, err
	}
	for _, l := range links {
		if l.Attrs().Flags&net.FlagLoopback == 0 {
			return l, nil
		}
	}
	return nil, errors.New("there is no link but loopback")
}

func frame(p Probe) Result {
	data, to, err := packet(p)
	if err != nil {
		return failure(err)
	}
	link, err := uplink()
	if err != nil {
		return failure(err)
	}
	mac := link.Attrs().HardwareAddr
	if p.MAC != "" {
		if mac, err = net.ParseMAC(p.MAC); err != nil {
			return failure(err)
		}
	}
	if len(mac) != 6 {
		return failure(fmt.Errorf("link %s has no Ethernet address", link.Attrs().Name))
	}
	kind := uint16(unix.ETH_P_IP)
	if to.Is6() {
		kind = unix.ETH_P_IPV6
	}
	// To everybody: whatever the link's other end is, it looks at the packet.
	out := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, mac...)
	out = append(binary.BigEndian.AppendUint16(out, kind), data...)
	if gateway := nextHop(link); gateway != nil {
		copy(out, gateway)
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return failure(os.NewSyscallError("socket", err))
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.Sendto(fd, out, 0, &unix.SockaddrLinklayer{Ifindex: link.Attrs().Index, Halen: 6}); err != nil {
		return failure(os.NewSyscallError("sendto", err))
	}
	return Result{OK: true}
}

// nextHop is the Ethernet address of a neighbour that is known, or nil.
func nextHop(link netlink.Link) net.HardwareAddr {
	all, err := dump.Whole(func() ([]netlink.Neigh, error) { return netlink.NeighList(link.Attrs().Index, netlink.FAMILY_ALL) })
	if err != nil {
		return nil
	}
	for _, n := range all {
		if len(n.HardwareAddr) == 6 && n.HardwareAddr[0]&1 == 0 {
			return n.HardwareAddr
		}
	}
	return nil
}

// tamper tells what it could not do, and passes if it could do all.
func tamper(p Probe) Result {
	var problems []error
	conn, err := nftables.New()
	if err == nil {
		conn.FlushRuleset()
		err = conn.Flush()
	}
	if err != nil {
		problems = append(problems, fmt.Errorf("nftables: %w", err))
	}
	link, err := uplink()
	if err != nil {
		return failure(errors.Join(append(problems, err)...))
	}
	if p.From != "" {
		if err := takeAddress(link, p.From); err != nil {
			problems = append(problems, err)
		}
	}
	if p.To != "" {
		dst, err := netlink.ParseIPNet(p.To)
		if err == nil {
			err = netlink.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: dst, Scope: netlink.SCOPE_LINK})
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("route to %s: %w", p.To, err))
		}
	}
	if len(problems) > 0 {
		return failure(errors.Join(problems...))
	}
	return Result{OK: true}
}

func takeAddress(link netlink.Link, address string) error {
	a, err := netlink.ParseAddr(address)
	if err != nil {
		return err
	}
	a.Flags = unix.IFA_F_NODAD
	if err := netlink.AddrReplace(link, a); err != nil {
		return fmt.Errorf("address %s: %w", address, err)
	}
	return nil
}
