package netbridge

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strings"

	"github.com/nucleus-runtime/nucleus/sdk/config"
	"github.com/nucleus-runtime/nucleus/sdk/errs"
)

// Config is the operator's part.
type Config struct {
	Bridge  string `hcl:"bridge,optional" desc:"name of the bridge of sandboxes that name no subnet" default:"nucleus0" pattern:"[a-zA-Z][a-zA-Z0-9_.-]{0,14}"`
	Subnet  string `hcl:"subnet,optional" desc:"IPv4 network of sandboxes that name none" default:"10.203.0.0/16" format:"cidr"`
	Subnet6 string `hcl:"subnet6,optional" desc:"IPv6 network of sandboxes that name none" default:"fd6e:7563:6c65:1::/64" format:"cidr"`
	MTU     int    `hcl:"mtu,optional" desc:"largest packet, in bytes; default: that of the interface with the default route" min:"1280" max:"65535"`
}

// Instance is one sandbox's network.
type Instance struct {
	Subnet  string `hcl:"subnet,optional" desc:"IPv4 network of the sandbox, on a bridge of its own; default: that of the host configuration" format:"cidr"`
	Subnet6 string `hcl:"subnet6,optional" desc:"IPv6 network beside subnet; default: one made of subnet" format:"cidr"`
	MTU     int    `hcl:"mtu,optional" desc:"largest packet, in bytes; default: that of the host configuration" min:"1280" max:"65535"`
}

// portPrefix begins the names of the host's ends. No other interface may have it:
// what comes from one without addresses of its own is dropped.
const portPrefix = "nkp"

// pool is a bridge and the addresses on it.
type pool struct {
	bridge string
	v4, v6 netip.Prefix
	mtu    int
	// own means that the job named it, and errors about it are the job's.
	own bool
}

// Configure takes the operator's part.
func (p *Plugin) Configure(_ context.Context, in config.Instance, c Config) error {
	pl := pool{bridge: c.Bridge, mtu: c.MTU}
	var err error
	if pl.v4, err = subnet4("subnet", c.Subnet); err != nil {
		return err
	}
	if pl.v6, err = subnet6("subnet6", c.Subnet6); err != nil {
		return err
	}
	if strings.HasPrefix(c.Bridge, portPrefix) {
		return errs.ConfigErrorf(errs.Path("bridge"), "names that begin with %q are for the links of sandboxes", portPrefix)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pool, p.root = pl, rootMark(in.StateRoot)
	return nil
}

// ConfigureInstance takes one sandbox's part.
func (p *Plugin) ConfigureInstance(_ context.Context, in config.Instance, c Instance) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	pl := p.pool
	if c.MTU != 0 {
		pl.mtu = c.MTU
	}
	switch {
	case c.Subnet != "":
		var err error
		if pl.v4, err = subnet4("subnet", c.Subnet); err != nil {
			return err
		}
		pl.v6 = derived6(pl.v4)
		if c.Subnet6 != "" {
			if pl.v6, err = subnet6("subnet6", c.Subnet6); err != nil {
				return err
			}
		}
		if pl.v4 != p.pool.v4 || pl.v6 != p.pool.v6 {
			pl.own, pl.bridge = true, derivedBridge(pl.v4)
		}
	case c.Subnet6 != "":
		return errs.ConfigErrorf(errs.Path("subnet6"), `subnet6 goes with a subnet: add one, such as subnet = "10.42.0.0/24"`)
	}
	p.instances[in.ID] = pl
	return nil
}

func subnet4(attr, s string) (netip.Prefix, error) {
	pre, err := netip.ParsePrefix(s)
	switch {
	case err != nil || !pre.Addr().Is4():
		return pre, errs.ConfigErrorf(errs.Path(attr), "%q is no IPv4 network", s)
	case pre.Masked() != pre:
		return pre, errs.ConfigErrorf(errs.Path(attr), "%q has bits beyond its prefix: write %q", s, pre.Masked())
	case pre.Bits() > 30:
		return pre, errs.ConfigErrorf(errs.Path(attr), "%q is too small: it holds no gateway and a sandbox; a /30 is the smallest that does", s)
	case pre.Bits() < 8:
		return pre, errs.ConfigErrorf(errs.Path(attr), "%q is too large: a /8 is the largest network", s)
	case !unicast(pre):
		return pre, errs.ConfigErrorf(errs.Path(attr), "%q is not for sandboxes: it has loopback, multicast, link-local or the addresses that stand for names (198.18.0.0/15)", s)
	}
	return pre, nil
}

func subnet6(attr, s string) (netip.Prefix, error) {
	pre, err := netip.ParsePrefix(s)
	switch {
	case err != nil || !pre.Addr().Is6() || pre.Addr().Is4In6():
		return pre, errs.ConfigErrorf(errs.Path(attr), "%q is no IPv6 network", s)
	case pre.Masked() != pre:
		return pre, errs.ConfigErrorf(errs.Path(attr), "%q has bits beyond its prefix: write %q", s, pre.Masked())
	case pre.Bits() > 126:
		return pre, errs.ConfigErrorf(errs.Path(attr), "%q is too small: it holds no gateway and a sandbox; a /126 is the smallest that does", s)
	case !unicast(pre):
		return pre, errs.ConfigErrorf(errs.Path(attr), "%q is not for sandboxes: it has loopback, multicast, link-local or the addresses that stand for names (%s)", s, synthetic6)
	}
	return pre, nil
}

func unicast(p netip.Prefix) bool {
	for _, s := range []string{"0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3", synthetic4.String(), "::/8", "fe80::/10", "ff00::/8", synthetic6.String()} {
		if netip.MustParsePrefix(s).Overlaps(p) {
			return false
		}
	}
	return true
}

// derived6 is the ULA network that goes with an IPv4 network, and with no other that
// can be in use beside it.
func derived6(v4 netip.Prefix) netip.Prefix {
	a := [16]byte{0xfd, 0x6e, 0x75, 0x63}
	b := v4.Addr().As4()
	copy(a[4:], b[:])
	return netip.PrefixFrom(netip.AddrFrom16(a), 64)
}

func derivedBridge(v4 netip.Prefix) string {
	a := v4.Addr().As4()
	return fmt.Sprintf("nkb%08x%02d", binary.BigEndian.Uint32(a[:]), v4.Bits())
}

func (pl *pool) gateway4() netip.Addr { return add(pl.v4.Addr(), 1) }
func (pl *pool) gateway6() netip.Addr { return add(pl.v6.Addr(), 1) }

// size is how many addresses there are to try, the first at 2.
func (pl *pool) last() uint32 {
	n := uint32(1)<<(32-pl.v4.Bits()) - 2
	if bits := 128 - pl.v6.Bits(); bits < 32 {
		n = min(n, uint32(1)<<bits-1)
	}
	return n
}

// mac is the bridge's. It follows from the network, so that the neighbour entries of
// sandboxes outlive the bridge.
func (pl *pool) mac() net.HardwareAddr { return macOf(pl.gateway4()) }

func macOf(a netip.Addr) net.HardwareAddr {
	b := a.As4()
	return net.HardwareAddr{0x0a, 0x58, b[0], b[1], b[2], b[3]}
}

func add(a netip.Addr, n uint32) netip.Addr {
	if a.Is4() {
		b := a.As4()
		binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+n)
		return netip.AddrFrom4(b)
	}
	b := a.As16()
	binary.BigEndian.PutUint32(b[12:], binary.BigEndian.Uint32(b[12:])+n)
	return netip.AddrFrom16(b)
}

// slot is a place in a pool.
type slot struct {
	pool   *pool
	n      uint32
	v4, v6 netip.Addr
}

func (pl *pool) slot(n uint32) slot {
	return slot{pl, n, add(pl.v4.Addr(), n), add(pl.v6.Addr(), n)}
}

// name is that of the link, and of all that is the sandbox's own in nftables.
func (s slot) name() string {
	b := s.v4.As4()
	return fmt.Sprintf("%s%x", portPrefix, b[:])
}

// index is the place of an IPv4 address in the pool.
func (pl *pool) index(a netip.Addr) (uint32, bool) {
	if !a.Is4() || !pl.v4.Contains(a) {
		return 0, false
	}
	b, base := a.As4(), pl.v4.Addr().As4()
	n := binary.BigEndian.Uint32(b[:]) - binary.BigEndian.Uint32(base[:])
	return n, n >= 2 && n <= pl.last()
}

// hasIPv6 tells whether links that are made now can have IPv6: the kernel may have none,
// and a host may have switched it off, for all links or for new ones.
func hasIPv6() bool { return ipv6On("all") && ipv6On("default") }

// ipv6On tells whether a link has it. Where it is switched off the kernel refuses
// addresses with EACCES (inet6_addr_add).
func ipv6On(link string) bool {
	return sysctl(filepath.Join(sysctls, "ipv6/conf", link, "disable_ipv6")) == "0"
}
