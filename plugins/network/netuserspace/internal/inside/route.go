package inside

import (
	"encoding/binary"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	netlinkRoute     = unix.NETLINK_ROUTE
	netlinkNetfilter = unix.NETLINK_NETFILTER
)

// family is what differs between IPv4 and IPv6.
type family struct {
	number           uint8
	address, gateway netip.Addr
	bits             uint8
	loopback         netip.Prefix
	listen           netip.AddrPort
}

var (
	v4 = &family{
		number: unix.AF_INET, address: Address4, gateway: Gateway4, bits: 32,
		loopback: netip.MustParsePrefix("127.0.0.0/8"), listen: listen4,
	}
	v6 = &family{
		number: unix.AF_INET6, address: Address6, gateway: Gateway6, bits: 128,
		loopback: netip.MustParsePrefix("::1/128"), listen: listen6,
	}
)

const (
	loIndex = 1

	tableLocal = 100 // every address is a local one
	tableTap   = 101 // every address is behind the tap device
	markLocal  = 1
	markTap    = 2

	// Before the main table (32766), after the local one (0).
	priorityTap      = 100
	priorityLoopback = 150
	priorityLocal    = 200
)

// batch puts messages one after the other.
type batch []byte

func (b *batch) add(kind, flags int, parts ...nl.NetlinkRequestData) {
	r := nl.NewNetlinkRequest(kind, flags|unix.NLM_F_ACK)
	for _, p := range parts {
		r.AddData(p)
	}
	*b = append(*b, r.Serialize()...)
}

const create = unix.NLM_F_CREATE | unix.NLM_F_EXCL

func attr(kind int, data []byte) *nl.RtAttr { return nl.NewRtAttr(kind, data) }
func number(kind int, n uint32) *nl.RtAttr  { return attr(kind, nl.Uint32Attr(n)) }

// link readies the tap device, and makes it the way to everywhere, for this kernel or
// for a network stack that takes over what it has.
func link(f *family, p Path) []byte {
	var b batch
	if f == v4 {
		b.add(unix.RTM_NEWLINK, 0, tapLink(0, 0), number(unix.IFLA_MTU, MTU), noAutoconf())
		// NOARP: behind the device is the plugin, and nobody to ask for.
		up := uint32(unix.IFF_UP | unix.IFF_NOARP)
		b.add(unix.RTM_NEWLINK, 0, tapLink(up, up))
	}
	b.address(f, TapIndex)
	if p != Frames {
		b.host(f)
	}
	b.gateway(f, unix.RT_TABLE_MAIN)
	b.gateway(f, tableTap)
	return b
}

// tapLink is the head of a message about the tap device.
func tapLink(flags, change uint32) *nl.IfInfomsg {
	m := nl.NewIfInfomsg(unix.AF_UNSPEC)
	m.Index, m.Flags, m.Change = TapIndex, flags, change
	return m
}

// IFLA_INET6_ADDR_GEN_MODE and IN6_ADDR_GEN_MODE_NONE.
const (
	addrGenMode = 8
	addrGenNone = 1
)

// noAutoconf keeps IPv6 from giving the device an address and asking for routers.
func noAutoconf() *nl.RtAttr {
	spec := attr(unix.IFLA_AF_SPEC, nil)
	spec.AddRtAttr(unix.AF_INET6, nil).AddRtAttr(addrGenMode, []byte{addrGenNone})
	return spec
}

func (b *batch) address(f *family, index uint32) {
	m := nl.NewIfAddrmsg(int(f.number))
	m.Prefixlen, m.Index, m.Flags = f.bits, index, unix.IFA_F_NODAD
	local := f.address.AsSlice()
	b.add(unix.RTM_NEWADDR, create, m, attr(unix.IFA_LOCAL, local), attr(unix.IFA_ADDRESS, local))
}

// host makes packets for the address come in here. The kernel does it as well, but for
// IPv6 in a queue that is worked through later (addrconf_dad_work), and till then what
// the first connections get would be lost. The route stays when the address is taken
// over by somebody else, to whom the kernel would send resets.
func (b *batch) host(f *family) {
	if f != v6 {
		return
	}
	m := nl.NewRtMsg()
	m.Family, m.Dst_len, m.Table, m.Type, m.Scope = f.number, f.bits, unix.RT_TABLE_LOCAL, unix.RTN_LOCAL, unix.RT_SCOPE_HOST
	b.add(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, m, attr(unix.RTA_DST, f.address.AsSlice()), number(unix.RTA_OIF, loIndex))
}

// gateway makes the tap device the way to everywhere, in one table. A gateway, though
// there is none, spares the kernel a neighbour for each destination.
func (b *batch) gateway(f *family, table uint8) {
	m := nl.NewRtMsg()
	m.Family, m.Table, m.Flags = f.number, table, unix.RTNH_F_ONLINK
	b.add(unix.RTM_NEWROUTE, create, m,
		attr(unix.RTA_GATEWAY, f.gateway.AsSlice()), number(unix.RTA_OIF, TapIndex), attr(unix.RTA_PREFSRC, f.address.AsSlice()))
}

// steer leads what capture has marked back to capture.
func steer(f *family) []byte {
	var b batch
	// Also where there is no tap device, the sandbox has an address, and a way out.
	b.address(f, loIndex)
	b.host(f)
	b.local(f, tableLocal)
	b.rule(f, tableTap, priorityTap, number(nl.FRA_FWMARK, markTap))
	b.rule(f, tableLocal, priorityLocal, number(nl.FRA_FWMARK, markLocal))
	b.local(f, unix.RT_TABLE_MAIN) // last: what fails before it leads nothing there
	return b
}

// shortcut gives TCP from its socket on the way on which capture would lead it else, packet
// by packet: of a connection only the first one is still led elsewhere.
func shortcut(f *family) []byte {
	var b batch
	if f == v4 {
		// What is bound to 127.0.0.1 is told by connect that it cannot leave (EINVAL).
		b.from(f, f.loopback, unix.RT_TABLE_MAIN, priorityLoopback)
	}
	b.rule(f, tableLocal, priorityLocal, attr(nl.FRA_IP_PROTO, []byte{unix.IPPROTO_TCP}))
	return b
}

// lastResort is the metric of a route that is used where there is no other.
const lastResort = 1 << 20

// local makes every address a local one.
func (b *batch) local(f *family, table uint8) {
	m := nl.NewRtMsg()
	m.Family, m.Table, m.Type, m.Scope = f.number, table, unix.RTN_LOCAL, unix.RT_SCOPE_HOST
	b.add(unix.RTM_NEWROUTE, create, m, number(unix.RTA_OIF, loIndex), number(unix.RTA_PRIORITY, lastResort), attr(unix.RTA_PREFSRC, f.address.AsSlice()))
}

// rule has what selects it looked up in a table.
func (b *batch) rule(f *family, table uint8, priority uint32, selector *nl.RtAttr) {
	m := nl.NewRtMsg()
	m.Family, m.Table, m.Type = f.number, table, unix.RTN_UNICAST // FR_ACT_TO_TBL
	b.add(unix.RTM_NEWRULE, create, m, number(nl.FRA_PRIORITY, priority), selector)
}

// from has what comes from some addresses looked up in a table.
func (b *batch) from(f *family, src netip.Prefix, table uint8, priority uint32) {
	m := nl.NewRtMsg()
	m.Family, m.Table, m.Type, m.Src_len = f.number, table, unix.RTN_UNICAST, uint8(src.Bits())
	b.add(unix.RTM_NEWRULE, create, m, number(nl.FRA_PRIORITY, priority), attr(nl.FRA_SRC, src.Masked().Addr().AsSlice()))
}

func be16(n uint16) []byte { return binary.BigEndian.AppendUint16(nil, n) }
