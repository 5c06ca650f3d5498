// Package netlab is a laboratory of network namespaces for tests: a host, on which
// Nucleus and its plugins run, and an internet behind its one uplink, with name
// servers, echo servers and a capture of every packet that the host lets out. It needs
// root, touches no link, table or sysctl of the machine, and is gone with the test.
package netlab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The addresses of the uplink. They are public ones, so that a policy that denies them
// does so since they are the host's and not since they are private.
var (
	HostV4    = netip.MustParseAddr("151.101.7.2")
	HostV6    = netip.MustParseAddr("2a04:4e42:7::2")
	GatewayV4 = netip.MustParseAddr("151.101.7.1")
	GatewayV6 = netip.MustParseAddr("2a04:4e42:7::1")
)

// What the internet answers for besides the gateway's addresses: any address of these.
var (
	PublicV4  = netip.MustParsePrefix("93.184.216.0/24")
	PublicV6  = netip.MustParsePrefix("2606:2800:220::/48")
	PrivateV4 = netip.MustParsePrefix("10.77.0.0/24")
	PrivateV6 = netip.MustParsePrefix("fd77::/64")
	// SharedV4 is what providers use behind their address translation (RFC 6598).
	SharedV4   = netip.MustParsePrefix("100.64.9.0/24")
	MetadataV4 = netip.MustParseAddr("169.254.169.254")
	MetadataV6 = netip.MustParseAddr("fd00:ec2::254")
	// OtherV4 and OtherV6 are a public resolver, of which no job says anything.
	OtherV4 = netip.MustParseAddr("9.9.9.9")
	OtherV6 = netip.MustParseAddr("2620:fe::fe")
)

// DNSV4 and DNSV6 are where the laboratory's name server is asked.
var (
	DNSV4 = netip.MustParseAddr("93.184.216.53")
	DNSV6 = netip.MustParseAddr("2606:2800:220::53")
)

// Uplink is the name of the host's one link to the internet.
const Uplink = "uplink0"

// Lab is a host and the internet.
type Lab struct {
	Host     *Namespace
	Internet *Namespace
	// DNS answers on port 53 of every address of the internet.
	DNS *DNS
	// Uplink sees what comes out of the host.
	Uplink *Capture
}

// New makes a laboratory that ends with the test. Echo servers run where the test wants
// them: see Echo.
func New(t testing.TB) *Lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("network namespaces need root: see Needs")
	}
	l := &Lab{Host: newNamespace(t, "host"), Internet: newNamespace(t, "internet")}
	if err := l.cable(); err != nil {
		t.Fatalf("connecting the namespaces: %v", err)
	}
	for _, n := range []*Namespace{l.Host, l.Internet} {
		if err := n.settle(Uplink); err != nil {
			t.Fatalf("waiting for the link of the %s: %v", n.Name, err)
		}
	}
	conf := fmt.Sprintf("nameserver %s\n", DNSV4)
	if err := l.Host.furnish(conf); err != nil {
		t.Fatalf("furnishing the host: %v", err)
	}
	l.Uplink = newCapture(t, l.Internet, Uplink)
	l.DNS = newDNS(t, l.Internet)
	return l
}

// The addresses of a host's other network, which Join makes: the host's own, and those
// of what is there.
var (
	LanHostV4 = netip.MustParseAddr("10.99.0.1")
	LanHostV6 = netip.MustParseAddr("fd99::1")
	LanV4     = netip.MustParseAddr("10.99.0.2")
	LanV6     = netip.MustParseAddr("fd99::2")
)

// Join gives the host another link, to a network of its own that knows no way but
// through the host.
func (l *Lab) Join(t testing.TB, link string) *Namespace {
	t.Helper()
	lan := newNamespace(t, link)
	err := l.veth(lan, link)
	if err == nil {
		err = l.Host.handle(func(h *netlink.Handle) error {
			return up(h, link, netip.PrefixFrom(LanHostV4, 24), netip.PrefixFrom(LanHostV6, 64))
		})
	}
	if err == nil {
		err = lan.handle(func(h *netlink.Handle) error {
			if err := up(h, link, netip.PrefixFrom(LanV4, 24), netip.PrefixFrom(LanV6, 64)); err != nil {
				return err
			}
			return errors.Join(route(h, link, netip.MustParsePrefix("0.0.0.0/0"), LanHostV4),
				route(h, link, netip.MustParsePrefix("::/0"), LanHostV6))
		})
	}
	for _, n := range []*Namespace{l.Host, lan} {
		if err == nil {
			err = n.settle(link)
		}
	}
	if err != nil {
		t.Fatalf("joining the network %q: %v", link, err)
	}
	return lan
}

// veth joins a namespace to the host by a pair of devices of one name.
func (l *Lab) veth(n *Namespace, name string) error {
	return n.handle(func(h *netlink.Handle) error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		return h.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: name, PeerNamespace: netlink.NsFd(int(l.Host.net.Fd()))})
	})
}

// cable joins host and internet.
func (l *Lab) cable() error {
	if err := l.veth(l.Internet, Uplink); err != nil {
		return err
	}
	err := l.Host.handle(func(h *netlink.Handle) error {
		if err := up(h, Uplink, netip.PrefixFrom(HostV4, 24), netip.PrefixFrom(HostV6, 64)); err != nil {
			return err
		}
		return errors.Join(route(h, Uplink, netip.MustParsePrefix("0.0.0.0/0"), GatewayV4),
			route(h, Uplink, netip.MustParsePrefix("::/0"), GatewayV6))
	})
	if err != nil {
		return err
	}
	return l.Internet.handle(func(h *netlink.Handle) error {
		if err := up(h, Uplink, netip.PrefixFrom(GatewayV4, 24), netip.PrefixFrom(GatewayV6, 64)); err != nil {
			return err
		}
		for _, p := range everywhere() {
			if err := anyIP(h, p); err != nil {
				return err
			}
		}
		// Datagrams come from the address that was asked, and IPv6 knows no whole block as local there.
		return os.WriteFile("/proc/sys/net/ipv6/ip_nonlocal_bind", []byte("1"), 0)
	})
}

func everywhere() []netip.Prefix {
	all := []netip.Prefix{PublicV4, PublicV6, PrivateV4, PrivateV6, SharedV4}
	for _, a := range []netip.Addr{MetadataV4, MetadataV6, OtherV4, OtherV6} {
		all = append(all, netip.PrefixFrom(a, a.BitLen()))
	}
	return all
}

// handle calls f with a netlink socket of the namespace.
func (n *Namespace) handle(f func(*netlink.Handle) error) (err error) {
	n.Do(func() {
		var h *netlink.Handle
		if h, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
			return
		}
		defer h.Close()
		err = f(h)
	})
	return err
}

// pristine undoes what a namespace inherits of the machine: ip-sysctl(7),
// devconf_inherit_init_net.
func pristine() error {
	for name, value := range map[string]string{
		"ipv4/ip_forward":                  "0",
		"ipv4/conf/all/rp_filter":          "0",
		"ipv4/conf/default/rp_filter":      "0",
		"ipv4/conf/all/route_localnet":     "0",
		"ipv4/conf/default/route_localnet": "0",
		"ipv6/conf/all/forwarding":         "0",
		"ipv6/conf/all/accept_ra":          "0",
		"ipv6/conf/default/accept_ra":      "0",
		"ipv4/ping_group_range":            "0 2147483647",
	} {
		if err := os.WriteFile(filepath.Join("/proc/sys/net", name), []byte(value), 0); err != nil {
			return err
		}
	}
	return nil
}

func up(h *netlink.Handle, name string, addresses ...netip.Prefix) error {
	lo, err := h.LinkByName("lo")
	if err != nil {
		return err
	}
	link, err := h.LinkByName(name)
	if err != nil {
		return err
	}
	// Without duplicate address detection, which would keep addresses for a second, and so
	// change what a census finds. It stays on for the links that plugins make.
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/accept_dad", []byte("0"), 0); err != nil {
		return err
	}
	for _, p := range addresses {
		if err := h.AddrAdd(link, &netlink.Addr{IPNet: ipNet(p), Flags: unix.IFA_F_NODAD}); err != nil {
			return fmt.Errorf("adding %s: %w", p, err)
		}
	}
	return errors.Join(h.LinkSetUp(lo), h.LinkSetUp(link))
}

// settle waits until the link has all that the kernel gives it by and by, so that
// nothing changes later by itself.
func (n *Namespace) settle(name string) error {
	return n.handle(func(h *netlink.Handle) error {
		for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
			link, err := h.LinkByName(name)
			if err != nil {
				return err
			}
			addrs, err := h.AddrList(link, netlink.FAMILY_V6)
			if err != nil {
				return err
			}
			local := slices.ContainsFunc(addrs, func(a netlink.Addr) bool {
				return a.IP.IsLinkLocalUnicast() && a.Flags&unix.IFA_F_TENTATIVE == 0
			})
			if local && link.Attrs().OperState == netlink.OperUp {
				return nil
			}
		}
		return errors.New("it is not up")
	})
}

// Route sends what is for a block by way of an address, from now on.
func (n *Namespace) Route(t testing.TB, dst netip.Prefix, via netip.Addr) {
	t.Helper()
	if err := n.handle(func(h *netlink.Handle) error { return route(h, Uplink, dst, via) }); err != nil {
		t.Fatal(err)
	}
}

// Sysctl sets one below /proc/sys/net.
func (n *Namespace) Sysctl(t testing.TB, name, value string) {
	t.Helper()
	n.Do(func() {
		if err := os.WriteFile(filepath.Join("/proc/sys/net", name), []byte(value), 0); err != nil {
			t.Fatal(err)
		}
	})
}

func route(h *netlink.Handle, dev string, dst netip.Prefix, via netip.Addr) error {
	link, err := h.LinkByName(dev)
	if err != nil {
		return err
	}
	err = h.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(dst), Gw: via.AsSlice()})
	if err != nil {
		return fmt.Errorf("adding the route to %s: %w", dst, err)
	}
	return nil
}

// anyIP makes a whole block local, so that one socket answers for all its addresses.
func anyIP(h *netlink.Handle, p netip.Prefix) error {
	lo, err := h.LinkByName("lo")
	if err != nil {
		return err
	}
	err = h.RouteAdd(&netlink.Route{
		LinkIndex: lo.Attrs().Index, Dst: ipNet(p), Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Scope: netlink.SCOPE_HOST,
	})
	if err != nil {
		return fmt.Errorf("making %s local: %w", p, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// realResolvConf follows the link that /etc/resolv.conf is on many machines.
func realResolvConf() (string, error) { return filepath.EvalSymlinks("/etc/resolv.conf") }
