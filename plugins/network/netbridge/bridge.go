package netbridge

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/dump"
	"github.com/nucleus-runtime/nucleus/sdk/errs"
)

// bridgeAlias marks a bridge as ours, and says what it serves.
func (pl *pool) bridgeAlias() string {
	return fmt.Sprintf("%s%s %s", bridgeMark, pl.v4, pl.v6)
}

const bridgeMark = "nucleus bridge "

// linkGroup marks a bridge from its first moment on. Its alias comes a moment later, and
// its maker may die in between.
const linkGroup = 0x6e75636c

// links are those of the host that are ours.
type links struct {
	bridges map[string]netlink.Link // by name
	ports   map[string]netlink.Link // by name
	// others are the names of those that are not, but for loopback, by index.
	others map[int]string
}

func (h *host) links() (links, error) {
	out := links{bridges: make(map[string]netlink.Link), ports: make(map[string]netlink.Link), others: make(map[int]string)}
	all, err := dump.Whole(h.route.LinkList)
	if err != nil {
		return out, fmt.Errorf("listing links: %w", err)
	}
	for _, l := range all {
		a := l.Attrs()
		switch {
		case l.Type() == "bridge" && (strings.HasPrefix(a.Alias, bridgeMark) || a.Alias == "" && a.Group == linkGroup):
			out.bridges[a.Name] = l
		case l.Type() == "veth" && strings.HasPrefix(a.Name, portPrefix):
			out.ports[a.Name] = l
		case a.Flags&net.FlagLoopback == 0:
			out.others[a.Index] = a.Name
		}
	}
	return out, nil
}

// ensureBridge makes the pool's bridge, or finds it. The caller has the lock.
func (h *host) ensureBridge(ctx context.Context, pl *pool, have links) (index int, err error) {
	if l, ok := have.bridges[pl.bridge]; ok {
		if was := l.Attrs().Alias; was != "" && was != pl.bridgeAlias() {
			return 0, pl.wrong("the bridge %s serves %s as long as sandboxes are on it", pl.bridge, strings.TrimPrefix(was, bridgeMark))
		}
		h.v6 = h.v6 && ipv6On(pl.bridge)
		if l.Attrs().Flags&net.FlagUp != 0 && (!h.v6 || h.has(l, pl.gateway6())) {
			return l.Attrs().Index, nil
		}
		// It is not whole: of a call that was interrupted, or of a time without IPv6.
		return l.Attrs().Index, h.bridgeUp(ctx, pl, l.Attrs().Index)
	}
	if err := h.collides(pl); err != nil {
		return 0, err
	}
	la := netlink.NewLinkAttrs()
	la.Name, la.MTU, la.HardwareAddr, la.Group = pl.bridge, pl.mtu, pl.mac(), linkGroup
	off := false
	err = h.route.LinkAdd(&netlink.Bridge{LinkAttrs: la, MulticastSnooping: &off})
	if errors.Is(err, unix.EEXIST) {
		return 0, errs.Existsf("there is a link %q already, which is not ours: give the bridge another name in the host configuration", pl.bridge)
	}
	if err != nil {
		return 0, fmt.Errorf("making the bridge %s: %w", pl.bridge, err)
	}
	l, err := h.route.LinkByName(pl.bridge)
	if err != nil {
		return 0, fmt.Errorf("looking for the bridge that was made: %w", err)
	}
	index = l.Attrs().Index
	h.v6 = h.v6 && ipv6On(pl.bridge)
	if err := h.bridgeUp(ctx, pl, index); err != nil {
		return 0, errors.Join(err, h.route.LinkDel(l))
	}
	return index, nil
}

// has tells whether a link has an address.
func (h *host) has(l netlink.Link, a netip.Addr) bool {
	all, err := dump.Whole(func() ([]netlink.Addr, error) { return h.route.AddrList(l, family(a)) })
	return err == nil && slices.ContainsFunc(all, func(x netlink.Addr) bool { return x.IP.Equal(a.AsSlice()) })
}

func (h *host) bridgeUp(ctx context.Context, pl *pool, index int) error {
	one := nl.NewIfInfomsg(unix.AF_UNSPEC)
	one.Index = int32(index)
	rs := []*nl.NetlinkRequest{
		request(unix.RTM_NEWLINK, unix.NLM_F_ACK, one,
			attr(unix.IFLA_IFALIAS, []byte(pl.bridgeAlias())), attr(unix.IFLA_ADDRESS, pl.mac()),
			afSpec(nested(unix.AF_INET, nested(inetConf, number32(confForwarding, 1), number32(confSendRedirects, 0))))),
		address(index, pl.gateway4(), pl.v4.Bits(), 0),
	}
	if h.v6 {
		rs = append(rs, request(unix.RTM_NEWLINK, unix.NLM_F_ACK, one, afSpec(nested(unix.AF_INET6, attr(inet6AddrGenMode, []byte{genModeNone})))),
			address(index, pl.gateway6(), pl.v6.Bits(), 0))
	}
	up := nl.NewIfInfomsg(unix.AF_UNSPEC)
	up.Index, up.Flags, up.Change = int32(index), unix.IFF_UP, unix.IFF_UP
	rs = append(rs, request(unix.RTM_NEWLINK, unix.NLM_F_ACK, up))
	if err := h.batch.send(ctx, nil, rs...); err != nil {
		return fmt.Errorf("setting up the bridge %s: %w", pl.bridge, err)
	}
	return nil
}

// Of linux/if_link.h, linux/ip.h and linux/if_addr.h.
const (
	inetConf          = 1 // IFLA_INET_CONF
	confForwarding    = 1 // IPV4_DEVCONF_FORWARDING
	confSendRedirects = 5 // IPV4_DEVCONF_SEND_REDIRECTS
	inet6AddrGenMode  = 8 // IFLA_INET6_ADDR_GEN_MODE
	genModeNone       = 1 // IN6_ADDR_GEN_MODE_NONE
)

func afSpec(parts ...*nl.RtAttr) *nl.RtAttr { return nested(unix.IFLA_AF_SPEC, parts...) }

// address is the request for one, without duplicate address detection: it is ours to
// give, and would wait for a second. Flags are of IFA_FLAGS.
func address(index int, a netip.Addr, bits int, flags uint32) *nl.NetlinkRequest {
	m := nl.NewIfAddrmsg(family(a))
	m.Prefixlen, m.Index = uint8(bits), uint32(index)
	if a.Is6() {
		flags |= unix.IFA_F_NODAD
	}
	return request(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE|unix.NLM_F_ACK, m,
		attr(unix.IFA_LOCAL, a.AsSlice()), attr(unix.IFA_ADDRESS, a.AsSlice()), number32(unix.IFA_FLAGS, flags))
}

// neighbour is the request for an entry that needs no question, and that no answer
// changes.
func neighbour(index int, a netip.Addr, mac []byte) *nl.NetlinkRequest {
	m := &netlink.Ndmsg{Family: uint8(family(a)), Index: uint32(index), State: netlink.NUD_PERMANENT}
	return request(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE|unix.NLM_F_ACK, m,
		attr(netlink.NDA_DST, a.AsSlice()), attr(netlink.NDA_LLADDR, mac))
}

func family(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// wrong is an error about a pool, shown at the line of whoever chose it.
func (pl *pool) wrong(format string, args ...any) error {
	if pl.own {
		return errs.ConfigErrorf(errs.Path("subnet"), format, args...)
	}
	return errs.Preconditionf(format+": set subnet, subnet6 or bridge in the plugin's block of the host configuration", args...)
}

// collides looks for routes and addresses of the host in the pool's networks. A
// default route is in nobody's way.
func (h *host) collides(pl *pool) error {
	routes, err := dump.Whole(func() ([]netlink.Route, error) {
		return h.route.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return fmt.Errorf("listing routes: %w", err)
	}
	for _, r := range routes {
		if r.Dst == nil || r.Type == unix.RTN_MULTICAST || r.Type == unix.RTN_BROADCAST {
			continue
		}
		ip, ok := netip.AddrFromSlice(r.Dst.IP)
		ones, _ := r.Dst.Mask.Size()
		dst := netip.PrefixFrom(ip.Unmap(), ones)
		if !ok || ones == 0 || !dst.Overlaps(pl.v4) && !dst.Overlaps(pl.v6) {
			continue
		}
		mine := pl.v4
		if dst.Addr().Is6() {
			mine = pl.v6
		}
		dev := "another network"
		if l, err := h.route.LinkByIndex(r.LinkIndex); err == nil {
			dev = l.Attrs().Name
		}
		return pl.wrong("the network %s collides with %s, to which this host has a route by %s", mine, dst, dev)
	}
	return nil
}
