// Package netstack owns the flows that come as packets, through a tap device: where the
// sandbox's kernel has no nftables for it, or the sandbox has a kernel of its own. A
// network stack (gVisor's) ends TCP and UDP here, as whatever address was meant, and
// package exit says what becomes of them, as it does for package kernel. The stack has
// no address, forwards nothing, and answers for no port that the policy has not opened,
// but for the resolver of a sandbox that has it here.
package netstack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/relay"
	"github.com/nucleus-runtime/nucleus/plugins/network/netuserspace/internal/exit"
	"github.com/nucleus-runtime/nucleus/plugins/network/netuserspace/internal/inside"
	"github.com/nucleus-runtime/nucleus/plugins/network/netuserspace/internal/packet"
	"github.com/nucleus-runtime/nucleus/plugins/network/netuserspace/internal/ping"
)

const (
	nic = 1
	// firsts is how many TCP connections may be on their way, sessions how many UDP
	// flows there may be.
	firsts   = 4096
	sessions = 4096
	// bufferSize is that of TCP's windows: a few packets of the largest size.
	bufferSize = 1 << 20

	idleOnce = 60 * time.Second
	idle     = 180 * time.Second
)

// Path serves one sandbox.
type Path struct {
	exit   *exit.Exit
	stack  *stack.Stack
	link   *link
	pings  *ping.Pings
	slots  chan struct{} // one for each TCP connection
	udps   chan struct{} // and each UDP flow
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	published published
	resolver  *listener // nil where it is not served here

	mu    sync.Mutex
	first map[flow][]byte // of connections that are not decided on
}

// New takes the tap device over if it succeeds.
func New(tap *os.File, mtu uint32, e *exit.Exit) (*Path, error) {
	l, err := newLink(tap, mtu)
	if err != nil {
		return nil, fmt.Errorf("the tap device: %w", err)
	}
	p := &Path{exit: e, link: l, slots: make(chan struct{}, exit.Conns()), udps: make(chan struct{}, sessions), first: make(map[flow][]byte)}
	p.pings = ping.New(e, l.give)
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol},
	})
	if err := p.configure(); err != nil {
		p.stack.Close()
		p.pings.Close()
		return nil, err
	}
	return p, nil
}

func (p *Path) configure() error {
	s := p.stack
	sack, moderate := tcpip.TCPSACKEnabled(true), tcpip.TCPModerateReceiveBufferOption(true)
	rcv := tcpip.TCPReceiveBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: bufferSize, Max: 4 * bufferSize}
	snd := tcpip.TCPSendBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: bufferSize, Max: 4 * bufferSize}
	for _, o := range []tcpip.SettableTransportProtocolOption{&sack, &moderate, &rcv, &snd} {
		if err := s.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			return errors.New(err.String())
		}
	}
	if err := s.CreateNIC(nic, p.link); err != nil {
		return errors.New(err.String())
	}
	// It answers as whatever address was meant.
	if err := s.SetPromiscuousMode(nic, true); err != nil {
		return errors.New(err.String())
	}
	if err := s.SetSpoofing(nic, true); err != nil {
		return errors.New(err.String())
	}
	s.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: nic}, {Destination: header.IPv6EmptySubnet, NIC: nic}})
	s.SetTransportProtocolHandler(tcp.ProtocolNumber, tcp.NewForwarder(s, 0, firsts, p.tcp).HandlePacket)
	s.SetTransportProtocolHandler(udp.ProtocolNumber, udp.NewForwarder(s, p.udp).HandlePacket)
	return nil
}

// Start serves until Close.
func (p *Path) Start() { p.wg.Go(p.read) }

// Close ends all flows, and waits until they have.
func (p *Path) Close() {
	p.cancel()
	p.published.close()
	inside.Leave(p.link.file)
	p.pings.Close()
	p.stack.Close()
	p.wg.Wait()
	p.stack.Wait()
}

// Gone tells whether the sandbox's interface has been removed.
func (p *Path) Gone() bool { return inside.Gone(p.link.file) }

// read takes the sandbox's packets.
func (p *Path) read() {
	v := p.link.room()
	defer func() { v.Release() }()
	for {
		n, err := p.link.file.Read(v.AsSlice())
		if err != nil {
			return // closed, or the namespace is gone
		}
		if n <= ethernet || p.neighbour(v.AsSlice()[:n]) {
			continue
		}
		whole := p.take(v.AsSlice()[ethernet:n])
		switch {
		case len(whole) == 0:
		case len(whole) < large:
			p.link.inject(buffer.NewViewWithData(whole))
		default:
			v.CapLength(ethernet + len(whole))
			v.TrimFront(ethernet)
			p.link.inject(v)
			v = p.link.room()
		}
	}
}

// take gives of what has come what the stack may see, and answer: an echo request it
// would, as any address that it is asked for.
func (p *Path) take(b []byte) []byte {
	s, ok := packet.Parse(b)
	if !ok {
		return nil
	}
	switch s.Protocol {
	case unix.IPPROTO_TCP, unix.IPPROTO_UDP:
		if s.Dst.Addr().IsMulticast() {
			return nil
		}
		if s.First() && !p.resolver.is(s.Dst) {
			if p.exit.Quick(exit.TCP, s.Dst) != nil {
				p.refuse(&s)
				return nil
			}
			p.remember(&s)
		}
		return s.Whole
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		if answer := packet.Advertisement(&s, inside.Gateway6, p.link.far); answer != nil {
			p.link.give(answer)
			return nil
		}
		p.pings.Take(&s)
	default:
		if !s.Dst.Addr().IsMulticast() {
			_ = p.exit.Refuse(fmt.Sprint(s.Protocol), s.Dst)
			p.refuse(&s)
		}
	}
	return nil
}

func (p *Path) refuse(s *packet.Packet) {
	p.link.give(packet.Unreachable(nil, s.Whole, s.Dst.Addr(), s.Src.Addr(), packet.Prohibited))
}

type flow struct{ src, dst netip.AddrPort }

// quoted is how much of a packet an error quotes: of TCP the ports and the number, by
// which the sandbox's kernel knows it.
const quoted = 48

// remember keeps the beginning of a connection's first packet while it is decided on.
func (p *Path) remember(s *packet.Packet) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.first) < firsts {
		p.first[flow{s.Src, s.Dst}] = slices.Clone(s.Whole[:min(len(s.Whole), quoted)])
	}
}

// recall gives what remember has kept, once.
func (p *Path) recall(id stack.TransportEndpointID) []byte {
	f := flow{sender(id), meant(id)}
	p.mu.Lock()
	defer p.mu.Unlock()
	b := p.first[f]
	delete(p.first, f)
	return b
}

// meant gives what a flow's sender asked for.
func meant(id stack.TransportEndpointID) netip.AddrPort {
	a, _ := netip.AddrFromSlice(id.LocalAddress.AsSlice())
	return netip.AddrPortFrom(a, id.LocalPort)
}

// sender is who asked.
func sender(id stack.TransportEndpointID) netip.AddrPort {
	a, _ := netip.AddrFromSlice(id.RemoteAddress.AsSlice())
	return netip.AddrPortFrom(a, id.RemotePort)
}

// tcp takes the first packet of a connection. It is answered when the far side has.
func (p *Path) tcp(r *tcp.ForwarderRequest) {
	if p.resolver.is(meant(r.ID())) {
		p.resolver.take(p, r)
		return
	}
	select {
	case p.slots <- struct{}{}:
	default:
		p.recall(r.ID())
		r.Complete(false) // it comes again
		return
	}
	p.wg.Go(func() {
		defer func() { <-p.slots }()
		p.connect(r)
	})
}

func (p *Path) connect(r *tcp.ForwarderRequest) {
	id := r.ID() // Complete takes it away
	out, count, err := p.exit.DialTCP(p.ctx, meant(id))
	first := p.recall(id)
	if err != nil {
		errno := error(exit.Errno(err))
		if errors.Is(err, exit.ErrRefused) {
			errno = unix.EACCES
		}
		there := errors.Is(errno, unix.ECONNREFUSED) || first == nil
		r.Complete(there) // with a reset
		if !there {
			why := packet.Unreachable(nil, first, meant(id).Addr(), sender(id).Addr(), packet.Because(errno))
			packet.Insist(func() { p.link.give(why) })
		}
		return
	}
	var q waiter.Queue
	ep, failed := r.CreateEndpoint(&q)
	r.Complete(failed != nil)
	if failed != nil {
		relay.Reset(out)
		return
	}
	ep.SocketOptions().SetDelayOption(false)
	in := gonet.NewTCPConn(&q, ep)
	stop := context.AfterFunc(p.ctx, func() { in.Close(); out.Close() })
	defer stop()
	relay.Copy(in, out, count.Add, func() { reset(in, ep) })
}

// reset ends a connection at once.
func reset(c *gonet.TCPConn, ep tcpip.Endpoint) {
	ep.SocketOptions().SetLinger(tcpip.LingerOption{Enabled: true})
	c.Close()
}

// udp takes the first datagram of a flow.
func (p *Path) udp(r *udp.ForwarderRequest) {
	id := r.ID()
	dst := meant(id)
	if p.exit.Quick(exit.UDP, dst) != nil {
		p.unreachable(id, unix.EACCES)
		return
	}
	select {
	case p.udps <- struct{}{}:
	default:
		return
	}
	var q waiter.Queue
	ep, failed := r.CreateEndpoint(&q)
	if failed != nil {
		<-p.udps
		return
	}
	in := gonet.NewUDPConn(&q, ep)
	p.wg.Go(func() {
		defer func() { <-p.udps }()
		defer in.Close()
		if err := p.carry(in, dst); err != nil {
			p.unreachable(id, err)
		}
	})
}

func (p *Path) unreachable(id stack.TransportEndpointID, err error) {
	src, dst := sender(id), meant(id)
	p.link.give(packet.Unreachable(nil, packet.UDP(nil, src, dst, nil), dst.Addr(), src.Addr(), packet.Because(err)))
}

// carry carries datagrams until the flow was idle for long, or the network says that
// there is nobody.
func (p *Path) carry(in *gonet.UDPConn, dst netip.AddrPort) error {
	out, count, err := p.exit.DialUDP(p.ctx, dst)
	if errors.Is(err, exit.ErrRefused) {
		return unix.EACCES
	} else if err != nil {
		return exit.Errno(err)
	}
	defer out.Close()
	stop := context.AfterFunc(p.ctx, func() { in.Close(); out.Close() })
	defer stop()
	until := make(chan error, 2)
	timer := time.AfterFunc(idleOnce, func() { until <- nil })
	defer timer.Stop()
	move := func(dst, src net.Conn, rx bool) {
		b := make([]byte, packet.MaxUDP+1)
		for {
			n, err := src.Read(b)
			if err == nil {
				_, err = dst.Write(b[:n])
			}
			if err != nil {
				until <- err
				return
			}
			timer.Reset(idle)
			if rx {
				count.Add(uint64(n), 0)
			} else {
				count.Add(0, uint64(n))
			}
		}
	}
	p.wg.Go(func() { move(out, in, false) })
	p.wg.Go(func() { move(in, out, true) })
	err = <-until
	in.Close()
	out.Close()
	if errors.Is(err, unix.ECONNREFUSED) {
		return unix.ECONNREFUSED
	}
	return nil
}
