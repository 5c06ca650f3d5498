package kernel

import (
	"container/list"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/hostport"
	"github.com/nucleus-runtime/nucleus/plugins/network/internal/relay"
	"github.com/nucleus-runtime/nucleus/plugins/network/netuserspace/internal/packet"
)

// unspec lets x/sys aside, which has no address of that family.
func unspec(fd int) error {
	sa := unix.RawSockaddrInet4{Family: unix.AF_UNSPEC}
	if _, _, e := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&sa)), unsafe.Sizeof(sa)); e != 0 {
		return e
	}
	return nil
}

const (
	// guestLimit is how many clients of published UDP ports there may be. The one that
	// was heard of longest ago makes room.
	guestLimit = 4096
	// firstPort is the first of those that clients get who cannot have their own.
	firstPort = 1024
)

// guests are the clients of published UDP ports. Their datagrams are sent within the
// sandbox as if they came from them, and the answers come to the plugin as all that is
// for foreign addresses does.
type guests struct {
	path    *Path
	gateway netip.Addr
	conns   []*net.UDPConn

	mu       sync.Mutex
	byClient map[client]*guest
	bySeen   map[flow]*guest // by the flow of the answers
	used     list.List       // of *guest, the one heard of last in front
	port     uint16
}

type client struct {
	conn *net.UDPConn
	from netip.AddrPort
}

type guest struct {
	client  client
	seen    flow
	local   []byte // the host's address that the client speaks to, for sendmsg
	heard   time.Time
	element *list.Element
}

func newGuests(p *Path, gateway netip.Addr) *guests {
	return &guests{path: p, gateway: gateway, byClient: make(map[client]*guest), bySeen: make(map[flow]*guest), port: firstPort}
}

func (g *guests) listen(at netip.AddrPort, port uint16) (uint16, error) {
	var c net.ListenConfig
	pc, err := c.ListenPacket(g.path.ctx, hostport.Family("udp", at.Addr()), at.String())
	if err != nil {
		return 0, err
	}
	u, ok := pc.(*net.UDPConn)
	if !ok {
		pc.Close()
		return 0, errors.New("a socket of UDP is none")
	}
	if err := wantLocal(u, at.Addr().Is6()); err != nil {
		u.Close()
		return 0, err
	}
	g.conns = append(g.conns, u)
	g.path.wg.Go(func() { g.serve(u, port) })
	a, _ := u.LocalAddr().(*net.UDPAddr)
	return a.AddrPort().Port(), nil
}

// wantLocal has the kernel tell which of the host's addresses a datagram came to.
func wantLocal(u *net.UDPConn, v6 bool) error {
	level, option := unix.SOL_IP, unix.IP_PKTINFO
	if v6 {
		level, option = unix.SOL_IPV6, unix.IPV6_RECVPKTINFO
	}
	return relay.Control(u, func(fd int) error { return unix.SetsockoptInt(fd, level, option, 1) })
}

// local makes of what the kernel told what makes an answer come from there.
func local(oob []byte) []byte {
	ms, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for _, m := range ms {
		switch {
		case m.Header.Level == unix.SOL_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= unix.SizeofInet4Pktinfo:
			return unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: [4]byte(m.Data[4:])})
		case m.Header.Level == unix.SOL_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= unix.SizeofInet6Pktinfo:
			// With the interface, for addresses that are of one link alone.
			return unix.PktInfo6(&unix.Inet6Pktinfo{Addr: [16]byte(m.Data), Ifindex: *(*uint32)(unsafe.Pointer(&m.Data[16]))})
		}
	}
	return nil
}

func (g *guests) serve(u *net.UDPConn, port uint16) {
	b, oob := make([]byte, packet.MaxUDP+1), make([]byte, 128)
	own := g.path.own[0]
	for {
		n, noob, _, from, err := u.ReadMsgUDPAddrPort(b, oob)
		if err != nil {
			if g.path.ctx.Err() != nil {
				return
			}
			continue
		}
		if n > packet.MaxUDP {
			continue
		}
		src := g.hear(client{u, from}, netip.AddrPortFrom(own, port), oob[:noob])
		g.path.answer(own, func(out []byte) []byte { return packet.UDP(out, src, netip.AddrPortFrom(own, port), b[:n]) })
	}
}

// hear notes a client, and gives the address that it has in the sandbox.
func (g *guests) hear(c client, server netip.AddrPort, oob []byte) netip.AddrPort {
	g.mu.Lock()
	defer g.mu.Unlock()
	q := g.byClient[c]
	if q == nil {
		for len(g.byClient) >= guestLimit {
			g.remove()
		}
		q = &guest{client: c, seen: flow{src: server, dst: g.seen(c.from, server)}}
		q.element = g.used.PushFront(q)
		g.byClient[c], g.bySeen[q.seen] = q, q
	}
	g.used.MoveToFront(q.element)
	q.heard, q.local = time.Now(), local(oob)
	for o, ok := g.used.Back().Value.(*guest); ok && time.Since(o.heard) > idle; o, ok = g.used.Back().Value.(*guest) {
		g.remove()
	}
	return q.seen.dst
}

// remove forgets the client that was heard of longest ago.
func (g *guests) remove() {
	if q, ok := g.used.Remove(g.used.Back()).(*guest); ok {
		delete(g.byClient, q.client)
		delete(g.bySeen, q.seen)
	}
}

// seen is the address that a new client has in the sandbox.
func (g *guests) seen(from, server netip.AddrPort) netip.AddrPort {
	a := netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
	if g.path.published.guest(a.Addr()) == a.Addr() && g.bySeen[flow{server, a}] == nil {
		return a
	}
	for {
		if g.port++; g.port < firstPort {
			g.port = firstPort
		}
		a = netip.AddrPortFrom(g.gateway, g.port)
		if g.bySeen[flow{server, a}] == nil { // there are more ports than guests
			return a
		}
	}
}

// reply carries an answer of a published port. It reports whether it is one.
func (g *guests) reply(f flow, data []byte) bool {
	g.mu.Lock()
	q := g.bySeen[f]
	if q == nil {
		g.mu.Unlock()
		return false
	}
	q.heard = time.Now()
	g.used.MoveToFront(q.element)
	c, oob := q.client, slices.Clone(q.local)
	g.mu.Unlock()
	_, _, _ = c.conn.WriteMsgUDPAddrPort(data, oob, c.from) // a network may lose datagrams
	return true
}

func (g *guests) close() {
	for _, c := range g.conns {
		c.Close()
	}
}
