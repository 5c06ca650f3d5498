package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// What is here works in the calling thread's namespace.

// Route sends messages of NETLINK_ROUTE: over a socket that is open already, or one of
// its own if it is negative.
type Route int

// Here is the calling thread's namespace.
const Here Route = -1

func (r Route) do(m Message) error {
	if r >= 0 {
		return Exchange(int(r), m, nil)
	}
	return once(unix.NETLINK_ROUTE, m, nil)
}

// AddVeth makes a pair of links, the second in another namespace, with a number there;
// 0 is any.
func AddVeth(name, peer string, in *os.File, index uint32) error {
	m := NewMessage(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, make([]byte, unix.SizeofIfInfomsg)).Text(unix.IFLA_IFNAME, name)
	m = m.Nest(unix.IFLA_LINKINFO, func(m Message) Message {
		return m.Text(unix.IFLA_INFO_KIND, "veth").Nest(unix.IFLA_INFO_DATA, func(m Message) Message {
			const vethInfoPeer = 1
			return m.Nest(vethInfoPeer, func(m Message) Message {
				m = append(m, make([]byte, 4)...)
				m = append(append(m, ne32(index)...), make([]byte, 8)...)
				return m.Text(unix.IFLA_IFNAME, peer).Uint32(unix.IFLA_NET_NS_FD, uint32(in.Fd()))
			})
		})
	})
	if err := Here.do(m); err != nil {
		return fmt.Errorf("making the links %s and %s: %w", name, peer, err)
	}
	return nil
}

// AddBridge makes a link that joins none.
func AddBridge(name string) error {
	m := NewMessage(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, make([]byte, unix.SizeofIfInfomsg)).Text(unix.IFLA_IFNAME, name)
	return Here.do(m.Nest(unix.IFLA_LINKINFO, func(m Message) Message { return m.Text(unix.IFLA_INFO_KIND, "bridge") }))
}

// DelLink removes a link, which need not be there.
func DelLink(name string) error {
	err := Here.do(NewMessage(unix.RTM_DELLINK, 0, make([]byte, unix.SizeofIfInfomsg)).Text(unix.IFLA_IFNAME, name))
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("removing the link %s: %w", name, err)
	}
	return nil
}

// Up takes a link into use.
func Up(name string) error { return Here.Up(name) }

// Up takes a link into use.
func (r Route) Up(name string) error {
	h := make([]byte, unix.SizeofIfInfomsg)
	h[8], h[12] = unix.IFF_UP, unix.IFF_UP
	if err := r.do(NewMessage(unix.RTM_NEWLINK, 0, h).Text(unix.IFLA_IFNAME, name)); err != nil {
		return fmt.Errorf("taking the link %s up: %w", name, err)
	}
	return nil
}

// Index of a link; 0 for none.
func (r Route) Index(name string) (uint32, error) {
	var index uint32
	m := NewMessage(unix.RTM_GETLINK, 0, make([]byte, unix.SizeofIfInfomsg)).Text(unix.IFLA_IFNAME, name)
	each := func(_ uint16, b []byte) { index = number(b[4:]) }
	var err error
	if r >= 0 {
		err = Exchange(int(r), m, each)
	} else {
		err = once(unix.NETLINK_ROUTE, m, each)
	}
	if errors.Is(err, unix.ENODEV) {
		err = nil
	}
	return index, err
}

// AddAddr gives a link an address, without duplicate address detection.
func (r Route) AddAddr(link string, p netip.Prefix) error {
	index, err := r.Index(link)
	if err != nil {
		return err
	}
	h := []byte{family(p.Addr()), byte(p.Bits()), unix.IFA_F_NODAD, 0}
	m := NewMessage(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL, append(h, ne32(index)...))
	m = m.Attr(unix.IFA_LOCAL, p.Addr().AsSlice()).Attr(unix.IFA_ADDRESS, p.Addr().AsSlice())
	if err := r.do(m); err != nil {
		return fmt.Errorf("giving %s the address %s: %w", link, p, err)
	}
	return nil
}

// AddRoute sends what is for dst over a link, by a gateway on it if that is valid. It
// goes into a table; 0 is the main one.
func (r Route) AddRoute(dst netip.Prefix, via netip.Addr, link string, table byte) error {
	index, err := r.Index(link)
	if err != nil {
		return err
	}
	if table == 0 {
		table = unix.RT_TABLE_MAIN
	}
	h := []byte{family(dst.Addr()), byte(dst.Bits()), 0, 0, table, unix.RTPROT_STATIC, unix.RT_SCOPE_UNIVERSE, unix.RTN_UNICAST, 0, 0, 0, 0}
	if via.IsValid() {
		h[8] = unix.RTNH_F_ONLINK
	} else if dst.Addr().Is4() {
		h[6] = unix.RT_SCOPE_LINK
	}
	m := NewMessage(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, h).Attr(unix.RTA_DST, dst.Addr().AsSlice()).Uint32(unix.RTA_OIF, index)
	if via.IsValid() {
		m = m.Attr(unix.RTA_GATEWAY, via.AsSlice())
	}
	if err := r.do(m); err != nil {
		return fmt.Errorf("adding the route to %s over %s: %w", dst, link, err)
	}
	return nil
}

func family(a netip.Addr) byte {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// links by their names, without loopback.
func links() (map[string]uint32, error) {
	out := map[string]uint32{}
	err := once(unix.NETLINK_ROUTE, NewMessage(unix.RTM_GETLINK, unix.NLM_F_DUMP, make([]byte, unix.SizeofIfInfomsg)), func(_ uint16, b []byte) {
		if name := text(attributes(b[unix.SizeofIfInfomsg:])[unix.IFLA_IFNAME]); name != "lo" {
			out[name] = number(b[4:])
		}
	})
	return out, err
}

// Links are the names of all links but loopback.
func Links() ([]string, error) {
	all, err := links()
	var out []string
	for name := range all {
		out = append(out, name)
	}
	return out, err
}

// HasAddress tells whether a link has an address.
func (n *Namespace) HasAddress(a netip.Addr) (has bool, err error) {
	err = n.Do(func() error {
		all, err := net.InterfaceAddrs()
		for _, x := range all {
			if p, err := netip.ParsePrefix(x.String()); err == nil && p.Addr() == a {
				has = true
			}
		}
		return err
	})
	return has, err
}
