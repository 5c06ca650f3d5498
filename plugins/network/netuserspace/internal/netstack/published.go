package netstack

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/hostport"
	"github.com/nucleus-runtime/nucleus/plugins/network/internal/relay"
	"github.com/nucleus-runtime/nucleus/plugins/network/netuserspace/internal/packet"
	"github.com/nucleus-runtime/nucleus/sdk/network"
)

// connectTime is how long a server of the sandbox's may take to accept.
const connectTime = 10 * time.Second

// published are the ports of the sandbox that the host reaches. Their servers see all
// clients come from the gateway.
type published struct {
	path          *Path
	gateway, own  netip.Addr
	listeners     []net.Listener
	packetSockets []*net.UDPConn
}

// Publish opens ports of the host, and tells which. It is called before Start; Close
// closes them, also where it fails.
func (p *Path) Publish(ports []network.PortMap, gateway, own netip.Addr) ([]network.PortMap, error) {
	s := &p.published
	s.path, s.gateway, s.own = p, gateway, own
	return hostport.All(ports, s.listenTCP, s.listenUDP)
}

func (s *published) close() {
	for _, l := range s.listeners {
		l.Close()
	}
	for _, u := range s.packetSockets {
		u.Close()
	}
}

func full(a netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: nic, Addr: tcpip.AddrFromSlice(a.Addr().AsSlice()), Port: a.Port()}
}

func (s *published) listenTCP(at netip.AddrPort, port uint16) (uint16, error) {
	l, err := net.ListenTCP(hostport.Family("tcp", at.Addr()), net.TCPAddrFromAddrPort(at))
	if err != nil {
		return 0, err
	}
	s.listeners = append(s.listeners, l)
	s.path.wg.Go(func() { s.accept(l, netip.AddrPortFrom(s.own, port)) })
	a, ok := l.Addr().(*net.TCPAddr)
	if !ok {
		return 0, errors.New("a listener of TCP is none")
	}
	return a.AddrPort().Port(), nil
}

func (s *published) accept(l *net.TCPListener, server netip.AddrPort) {
	for {
		c, err := l.AcceptTCP()
		if err != nil {
			if s.path.ctx.Err() != nil {
				return
			}
			time.Sleep(10 * time.Millisecond) // out of descriptors or memory
			continue
		}
		select {
		case s.path.slots <- struct{}{}:
			s.path.wg.Go(func() {
				defer func() { <-s.path.slots }()
				s.serve(c, server)
			})
		default:
			relay.Reset(c)
		}
	}
}

func (s *published) serve(c *net.TCPConn, server netip.AddrPort) {
	ctx, cancel := context.WithTimeout(s.path.ctx, connectTime)
	var q waiter.Queue
	ep, err := s.dial(ctx, &q, server)
	cancel()
	if err != nil {
		relay.Reset(c)
		return
	}
	in := gonet.NewTCPConn(&q, ep)
	stop := context.AfterFunc(s.path.ctx, func() { in.Close(); c.Close() })
	defer stop()
	relay.Copy(in, c, func(uint64, uint64) {}, func() { reset(in, ep) })
}

// dial is gonet's, with an endpoint that can be reset.
func (s *published) dial(ctx context.Context, q *waiter.Queue, server netip.AddrPort) (tcpip.Endpoint, error) {
	ep, failed := s.path.stack.NewEndpoint(tcp.ProtocolNumber, ipv4.ProtocolNumber, q)
	if failed != nil {
		return nil, errors.New(failed.String())
	}
	entry, connected := waiter.NewChannelEntry(waiter.WritableEvents)
	q.EventRegister(&entry)
	defer q.EventUnregister(&entry)
	if failed = ep.Bind(full(netip.AddrPortFrom(s.gateway, 0))); failed == nil {
		failed = ep.Connect(full(server))
	}
	if _, started := failed.(*tcpip.ErrConnectStarted); started {
		select {
		case <-connected:
			failed = ep.LastError()
		case <-ctx.Done():
			ep.Close()
			return nil, ctx.Err()
		}
	}
	if failed != nil {
		ep.Close()
		return nil, errors.New(failed.String())
	}
	ep.SocketOptions().SetDelayOption(false)
	return ep, nil
}

func (s *published) listenUDP(at netip.AddrPort, port uint16) (uint16, error) {
	u, err := net.ListenUDP(hostport.Family("udp", at.Addr()), net.UDPAddrFromAddrPort(at))
	if err != nil {
		return 0, err
	}
	s.packetSockets = append(s.packetSockets, u)
	g := &guests{published: s, outside: u, server: netip.AddrPortFrom(s.own, port), by: make(map[netip.AddrPort]*gonet.UDPConn)}
	s.path.wg.Go(g.receive)
	a, ok := u.LocalAddr().(*net.UDPAddr)
	if !ok {
		return 0, errors.New("a socket of UDP is none")
	}
	return a.AddrPort().Port(), nil
}

// guests are the clients of a published UDP port, each with a port of the gateway's.
type guests struct {
	*published
	outside *net.UDPConn
	server  netip.AddrPort

	mu sync.Mutex
	by map[netip.AddrPort]*gonet.UDPConn
}

func (g *guests) receive() {
	b := make([]byte, packet.MaxUDP+1)
	for {
		n, from, err := g.outside.ReadFromUDPAddrPort(b)
		switch {
		case g.path.ctx.Err() != nil:
			return
		case err != nil || n > packet.MaxUDP:
			continue
		}
		if in := g.get(from); in != nil {
			_ = in.SetReadDeadline(time.Now().Add(idle))
			_, _ = in.Write(b[:n]) // a network may lose datagrams
		}
	}
}

// get gives a client's connection; nil if there are too many.
func (g *guests) get(from netip.AddrPort) *gonet.UDPConn {
	g.mu.Lock()
	defer g.mu.Unlock()
	if in := g.by[from]; in != nil {
		return in
	}
	select {
	case g.path.udps <- struct{}{}:
	default:
		return nil
	}
	local, remote := full(netip.AddrPortFrom(g.gateway, 0)), full(g.server)
	in, err := gonet.DialUDP(g.path.stack, &local, &remote, ipv4.ProtocolNumber)
	if err != nil {
		<-g.path.udps
		return nil
	}
	g.by[from] = in
	g.path.wg.Go(func() {
		defer func() { <-g.path.udps }()
		g.answer(in, from)
	})
	return in
}

// answer carries what the server says, until the client was quiet for long.
func (g *guests) answer(in *gonet.UDPConn, to netip.AddrPort) {
	stop := context.AfterFunc(g.path.ctx, func() { in.Close() })
	defer stop()
	b := make([]byte, packet.MaxUDP+1)
	for {
		n, err := in.Read(b)
		if err != nil {
			break
		}
		_, _ = g.outside.WriteToUDPAddrPort(b[:n], to) // likewise
	}
	g.mu.Lock()
	delete(g.by, to)
	g.mu.Unlock()
	in.Close()
}
