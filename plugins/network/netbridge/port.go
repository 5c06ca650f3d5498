package netbridge

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// makePort makes the pair: the host's end on the bridge, the other inside the sandbox,
// both down. unix.EEXIST says that the slot is taken.
func (h *host) makePort(ctx context.Context, s slot, bridge int, netns *os.File, ifname, mark string, mac net.HardwareAddr) error {
	mtu := number32(unix.IFLA_MTU, uint32(s.pool.mtu))
	// By default there is a queue for each processor that there could be, which takes
	// its time on large hosts and serves no device without a queueing discipline.
	queues := []*nl.RtAttr{number32(unix.IFLA_NUM_TX_QUEUES, 1), number32(unix.IFLA_NUM_RX_QUEUES, 1)}
	fd := int(netns.Fd()) //nolint:gosec // a descriptor
	peer := attr(nl.VETH_INFO_PEER, nil)
	nl.NewIfInfomsgChild(peer, unix.AF_UNSPEC)
	for _, a := range append(queues, mtu, attr(unix.IFLA_IFNAME, nl.ZeroTerminated(ifname)), attr(unix.IFLA_ADDRESS, mac),
		number32(unix.IFLA_NET_NS_FD, uint32(fd))) {
		peer.AddChild(a)
	}
	parts := []nl.NetlinkRequestData{
		nl.NewIfInfomsg(unix.AF_UNSPEC), mtu, queues[0], queues[1], attr(unix.IFLA_IFNAME, nl.ZeroTerminated(s.name())),
		number32(unix.IFLA_MASTER, uint32(bridge)),
		nested(unix.IFLA_LINKINFO, attr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("veth")), nested(nl.IFLA_INFO_DATA, peer)),
	}
	byName := attr(unix.IFLA_IFNAME, nl.ZeroTerminated(s.name()))
	// If the first is refused since there is such a link, the second must not reach that
	// one: it would become ours.
	err := h.batch.send(ctx, nil, request(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK, parts...))
	if err != nil {
		return err
	}
	spec := []*nl.RtAttr{}
	if h.v6 {
		spec = append(spec, nested(unix.AF_INET6, attr(inet6AddrGenMode, []byte{genModeNone})))
	}
	err = h.batch.send(ctx, nil, request(unix.RTM_NEWLINK, unix.NLM_F_ACK, nl.NewIfInfomsg(unix.AF_UNSPEC), byName,
		attr(unix.IFLA_IFALIAS, []byte(mark)), afSpec(spec...)))
	if err != nil {
		return errors.Join(err, h.removeLink(s.name()))
	}
	return nil
}

// fence lets the port send to the bridge alone, and the bridge to the port what is for
// its one address. Nothing is learned from what the port sends.
func (h *host) fence(ctx context.Context, s slot, port, bridge int, mac net.HardwareAddr) error {
	no, yes := []byte{0}, []byte{1}
	of := nl.NewIfInfomsg(unix.AF_BRIDGE)
	of.Index = int32(port)
	rs := []*nl.NetlinkRequest{
		request(unix.RTM_SETLINK, unix.NLM_F_ACK, of, nested(unix.IFLA_PROTINFO,
			attr(nl.IFLA_BRPORT_ISOLATED, yes), attr(nl.IFLA_BRPORT_LEARNING, no), attr(nl.IFLA_BRPORT_UNICAST_FLOOD, no),
			attr(nl.IFLA_BRPORT_MCAST_FLOOD, no), attr(nl.IFLA_BRPORT_BCAST_FLOOD, no), attr(nl.IFLA_BRPORT_GUARD, yes), attr(nl.IFLA_BRPORT_PROTECT, yes))),
		request(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE|unix.NLM_F_ACK,
			&netlink.Ndmsg{Family: unix.AF_BRIDGE, Index: uint32(port), State: netlink.NUD_NOARP, Flags: netlink.NTF_MASTER},
			attr(netlink.NDA_LLADDR, mac)),
		neighbour(bridge, s.v4, mac),
	}
	if h.v6 {
		rs = append(rs, neighbour(bridge, s.v6, mac))
	}
	if err := h.batch.send(ctx, nil, rs...); err != nil {
		return fmt.Errorf("fencing %s in: %w", s.name(), err)
	}
	return nil
}

func (h *host) up(ctx context.Context, port int) error {
	m := nl.NewIfInfomsg(unix.AF_UNSPEC)
	m.Index, m.Flags, m.Change = int32(port), unix.IFF_UP, unix.IFF_UP
	if err := h.batch.send(ctx, nil, request(unix.RTM_NEWLINK, unix.NLM_F_ACK, m)); err != nil {
		return fmt.Errorf("setting the link up: %w", err)
	}
	return nil
}

// removeLink removes a link by name, if it is there.
func (h *host) removeLink(name string) error {
	m := nl.NewIfInfomsg(unix.AF_UNSPEC)
	err := h.batch.send(context.Background(), nil, request(unix.RTM_DELLINK, unix.NLM_F_ACK, m, attr(unix.IFLA_IFNAME, nl.ZeroTerminated(name))))
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// inside sets up the sandbox's end, over a socket that was opened in there.
func (h *host) inside(ctx context.Context, route *os.File, s slot, ifname string, taken bool) error {
	in := socket{int(route.Fd())}
	index := 0
	err := in.send(ctx, func(m []byte) {
		if binary.NativeEndian.Uint16(m[4:]) == unix.RTM_NEWLINK && len(m) >= unix.SizeofNlMsghdr+unix.SizeofIfInfomsg {
			index = int(int32(binary.NativeEndian.Uint32(m[unix.SizeofNlMsghdr+4:])))
		}
	}, request(unix.RTM_GETLINK, unix.NLM_F_ACK, nl.NewIfInfomsg(unix.AF_UNSPEC), attr(unix.IFLA_IFNAME, nl.ZeroTerminated(ifname))))
	if err != nil || index == 0 {
		return fmt.Errorf("looking for %s inside the sandbox: %w", ifname, err)
	}
	up := nl.NewIfInfomsg(unix.AF_UNSPEC)
	up.Index, up.Flags, up.Change = int32(index), unix.IFF_UP, unix.IFF_UP
	var rs []*nl.NetlinkRequest
	if h.v6 {
		// No link-local address: nothing but our addresses passes the bridge.
		gen := nl.NewIfInfomsg(unix.AF_UNSPEC)
		gen.Index = int32(index)
		rs = append(rs, request(unix.RTM_NEWLINK, unix.NLM_F_ACK, gen, afSpec(nested(unix.AF_INET6, attr(inet6AddrGenMode, []byte{genModeNone})))))
	}
	rs = append(rs, request(unix.RTM_NEWLINK, unix.NLM_F_ACK, up))
	rs = append(rs, h.leg(index, s.v4, s.pool.v4.Bits(), s.pool.gateway4(), s.pool.mac())...)
	if h.v6 {
		rs = append(rs, h.leg(index, s.v6, s.pool.v6.Bits(), s.pool.gateway6(), s.pool.mac())...)
		// Where somebody takes the address over, the kernel would go on to answer, with resets.
		if !taken {
			rs = append(rs, local(s.v6))
		}
	}
	if err := in.send(ctx, nil, rs...); err != nil {
		return fmt.Errorf("setting up %s inside the sandbox: %w", ifname, err)
	}
	return nil
}

// carrier waits until a link works: the kernel sees to that a little after it is up
// (linkwatch), and what is sent until then is lost, as is what a bridge's port gets.
func (s socket) carrier(ctx context.Context, ifname string) error {
	for {
		state := byte(0)
		err := s.send(ctx, func(m []byte) {
			if a := attributeOf(m[min(len(m), unix.SizeofNlMsghdr+unix.SizeofIfInfomsg):], unix.IFLA_OPERSTATE); len(a) > 0 {
				state = a[0]
			}
		}, request(unix.RTM_GETLINK, unix.NLM_F_ACK, nl.NewIfInfomsg(unix.AF_UNSPEC), attr(unix.IFLA_IFNAME, nl.ZeroTerminated(ifname))))
		if err != nil {
			return fmt.Errorf("waiting for %s: %w", ifname, err)
		}
		if state == netlink.OperUp {
			// The state is seen before all is done that goes with it; whatever takes the
			// route lock comes after.
			return s.send(ctx, nil, request(unix.RTM_NEWLINK, unix.NLM_F_ACK, nl.NewIfInfomsg(unix.AF_UNSPEC), attr(unix.IFLA_IFNAME, nl.ZeroTerminated(ifname))))
		}
		if !pause(ctx, 200*time.Microsecond) {
			return fmt.Errorf("waiting for %s to come up: %w", ifname, context.Cause(ctx))
		}
	}
}

// leg gives the interface an address of one family and the way out. The rest of the
// network is behind the gateway, too: nothing there answers directly, and a refusal
// comes at once where a neighbour that is silent takes seconds.
func (h *host) leg(index int, a netip.Addr, bits int, gateway netip.Addr, mac []byte) []*nl.NetlinkRequest {
	return []*nl.NetlinkRequest{
		address(index, a, bits, unix.IFA_F_NOPREFIXROUTE),
		neighbour(index, gateway, mac),
		routeTo(index, netip.PrefixFrom(gateway, gateway.BitLen()), netip.Addr{}),
		routeTo(index, netip.Prefix{}, gateway),
	}
}

// local makes packets for an address of IPv6 come in. The kernel does it as well, but in
// a queue that is worked through later (addrconf_dad_work), and till then the answers to
// the first connections would be lost.
func local(a netip.Addr) *nl.NetlinkRequest {
	const loopback = 1 // its index in every namespace
	m := &nl.RtMsg{RtMsg: unix.RtMsg{
		Family: unix.AF_INET6, Dst_len: 128, Table: unix.RT_TABLE_LOCAL, Protocol: unix.RTPROT_STATIC, Type: unix.RTN_LOCAL, Scope: unix.RT_SCOPE_HOST,
	}}
	return request(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE|unix.NLM_F_ACK, m, attr(unix.RTA_DST, a.AsSlice()), number32(unix.RTA_OIF, loopback))
}

func routeTo(index int, dst netip.Prefix, via netip.Addr) *nl.NetlinkRequest {
	a := via
	if dst.IsValid() {
		a = dst.Addr()
	}
	m := &nl.RtMsg{RtMsg: unix.RtMsg{
		Family: uint8(family(a)), Table: unix.RT_TABLE_MAIN, Protocol: unix.RTPROT_STATIC, Type: unix.RTN_UNICAST, Scope: unix.RT_SCOPE_UNIVERSE,
	}}
	parts := []nl.NetlinkRequestData{m, number32(unix.RTA_OIF, uint32(index))}
	if dst.IsValid() {
		m.Dst_len, m.Scope = uint8(dst.Bits()), unix.RT_SCOPE_LINK
		parts = append(parts, attr(unix.RTA_DST, dst.Addr().AsSlice()))
	}
	if via.IsValid() {
		parts = append(parts, attr(unix.RTA_GATEWAY, via.AsSlice()))
	}
	return request(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE|unix.NLM_F_ACK, parts...)
}
