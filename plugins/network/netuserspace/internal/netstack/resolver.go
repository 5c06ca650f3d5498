package netstack

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// askers is how many may ask the resolver over TCP at a time.
const askers = 32

// Resolver opens sockets of the stack at an address of IPv4, for a sandbox that meets
// nothing in its namespace. What is asked there is no flow, and not the policy's. It is
// called before Start; they end with Close at the latest.
func (p *Path) Resolver(at netip.AddrPort) (net.PacketConn, net.Listener, error) {
	local := full(at)
	udp, err := gonet.DialUDP(p.stack, &local, nil, ipv4.ProtocolNumber)
	if err != nil {
		return nil, nil, fmt.Errorf("the socket for the resolver: %w", err)
	}
	l := &listener{at: at, slots: make(chan struct{}, askers), conns: make(chan net.Conn)}
	l.ctx, l.cancel = context.WithCancel(p.ctx)
	p.resolver = l
	return udp, l, nil
}

// listener takes the connections to one address. One of the stack's own would let whoever
// connects again and again leave as many behind: they linger after their end.
type listener struct {
	at     netip.AddrPort
	slots  chan struct{}
	conns  chan net.Conn
	ctx    context.Context
	cancel context.CancelFunc
}

// is tells whether connections to an address are its; nobody's listener has none.
func (l *listener) is(dst netip.AddrPort) bool { return l != nil && l.at == dst }

// take has a connection accepted, or refuses it where there are too many.
func (l *listener) take(p *Path, r *tcp.ForwarderRequest) {
	select {
	case l.slots <- struct{}{}:
	default:
		r.Complete(true)
		return
	}
	p.wg.Go(func() {
		var q waiter.Queue
		ep, failed := r.CreateEndpoint(&q)
		r.Complete(failed != nil)
		if failed != nil {
			<-l.slots
			return
		}
		c := &asker{TCPConn: gonet.NewTCPConn(&q, ep), ep: ep, slots: l.slots}
		select {
		case l.conns <- c:
		case <-l.ctx.Done():
			c.Close()
		}
	})
}

// Accept gives the next connection.
func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.ctx.Done():
		return nil, net.ErrClosed
	}
}

// Close refuses what comes.
func (l *listener) Close() error {
	l.cancel()
	return nil
}

// Addr is where it listens.
func (l *listener) Addr() net.Addr { return net.TCPAddrFromAddrPort(l.at) }

// asker is a connection that leaves nothing behind.
type asker struct {
	*gonet.TCPConn
	ep    tcpip.Endpoint
	slots chan struct{}
	once  sync.Once
}

// Close resets the connection: all that was answered has been sent by then.
func (c *asker) Close() error {
	c.once.Do(func() {
		reset(c.TCPConn, c.ep)
		<-c.slots
	})
	return nil
}
