package netbridge

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// outsideAt is where a sandbox whose network stack is not the kernel's finds its
// resolver, which is on the host then. RFC 7335 keeps the block for the two ends of a
// link: it is nobody's, and on no route.
var outsideAt = netip.AddrFrom4([4]byte{192, 0, 0, 1})

// sockets are those of a resolver.
type sockets struct {
	udp net.PacketConn
	tcp net.Listener
}

func (s sockets) close() {
	if s.udp != nil {
		_ = s.udp.Close()
	}
	if s.tcp != nil {
		_ = s.tcp.Close()
	}
}

func (s sandbox) resolverAt() netip.Addr {
	if len(s.asked) > 0 {
		return outsideAt
	}
	return resolverAt
}

// listen takes the sockets over that init has opened, or has some at the bridge.
func (a *attachment) listen(in files) (out sockets, err error) {
	defer func() {
		if err != nil {
			out.close()
			err = fmt.Errorf("the resolver's socket: %w", err)
		}
	}()
	if in.udp != nil {
		if out.udp, err = net.FilePacketConn(in.udp); err == nil {
			out.tcp, err = net.FileListener(in.tcp)
		}
		return out, err
	}
	at := net.JoinHostPort(a.pool.gateway4().String(), "0")
	udp, err := net.ListenPacket("udp4", at)
	if err != nil {
		return out, err
	}
	out.udp = &guestPackets{udp, a.v4}
	tcp, err := net.Listen("tcp4", at)
	if err != nil {
		return out, err
	}
	out.tcp = &guestConns{tcp, a.v4}
	a.sandbox.asked = map[byte]uint16{}
	for proto, addr := range map[byte]net.Addr{unix.IPPROTO_UDP: udp.LocalAddr(), unix.IPPROTO_TCP: tcp.Addr()} {
		p, err := netip.ParseAddrPort(addr.String())
		if err != nil {
			return out, err
		}
		a.sandbox.asked[proto] = p.Port()
	}
	return out, nil
}

// askElsewhere leads questions to the resolver.
func (c *change) askElsewhere(s sandbox) {
	f := inet4()
	for proto, port := range s.asked {
		c.rule(c.inet, s.name()+chainNames, f.only(), header(f.dst, f.size, r0), eq(r0, outsideAt.AsSlice()), protocol(proto), dport(r0), eq(r0, binaryutil.BigEndian.PutUint16(53)),
			load(r0, s.pool.gateway4().AsSlice()), load(r0+f.words, binaryutil.BigEndian.PutUint16(port)),
			exprs{&expr.NAT{Type: expr.NATTypeDestNAT, Family: f.nfproto, RegAddrMin: r0, RegProtoMin: r0 + f.words, Specified: true}})
	}
}

// answer passes questions that were led to the resolver, and no other way to its port.
func (c *change) answer(s sandbox) {
	f := inet4()
	for proto, port := range s.asked {
		c.rule(c.inet, s.name()+chainNo, f.only(), translated(true), header(f.dst, f.size, r0), eq(r0, s.pool.gateway4().AsSlice()), protocol(proto), dport(r0), eq(r0, binaryutil.BigEndian.PutUint16(port)), s.tag.pass())
	}
}

// load puts a value into a register.
func load(reg uint32, data []byte) exprs {
	return exprs{&expr.Immediate{Register: reg, Data: data}}
}

// guestPackets hears nobody but the sandbox: what the host's own programs send to the
// port passes no rule.
type guestPackets struct {
	net.PacketConn
	guest netip.Addr
}

func (g *guestPackets) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		n, from, err := g.PacketConn.ReadFrom(b)
		if err != nil || isFrom(from, g.guest) {
			return n, from, err
		}
	}
}

// guestConns is guestPackets for connections.
type guestConns struct {
	net.Listener
	guest netip.Addr
}

func (g *guestConns) Accept() (net.Conn, error) {
	for {
		c, err := g.Listener.Accept()
		if err != nil || isFrom(c.RemoteAddr(), g.guest) {
			return c, err
		}
		_ = c.Close()
	}
}

func isFrom(a net.Addr, guest netip.Addr) bool {
	p, err := netip.ParseAddrPort(a.String())
	return err == nil && p.Addr().Unmap() == guest
}
