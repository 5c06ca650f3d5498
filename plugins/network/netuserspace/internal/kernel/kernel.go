// Package kernel owns the flows that the sandbox's own kernel brings to listeners of
// the plugin's (see package inside): TCP is accepted there and joined with a socket of
// the host's, UDP is carried datagram by datagram. What to do with a flow is exit's to
// say.
package kernel

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"

	"github.com/nucleus-runtime/nucleus/plugins/network/netuserspace/internal/exit"
	"github.com/nucleus-runtime/nucleus/plugins/network/netuserspace/internal/inside"
	"github.com/nucleus-runtime/nucleus/plugins/network/netuserspace/internal/ping"
)

const (
	// firsts is how many connections may be on their way.
	firsts = 4096
)

// Sockets are those of the sandbox's namespace. What a kernel has not is nil.
type Sockets struct {
	TCP [2]*os.File // of IPv4 and IPv6
	UDP [2]*os.File
	Raw [2]*os.File
	Tap *os.File
}

// Path serves one sandbox.
type Path struct {
	exit *exit.Exit
	own  [2]netip.Addr
	raw  [2]*raw
	tap  *tap
	tcp  []*net.TCPListener
	udp  []*sessions
	// published carries what comes from outside, if anything does.
	published *published
	slots     chan struct{} // one for each connection
	ctx       context.Context
	cancel    context.CancelFunc
	wg        sync.WaitGroup

	mu      sync.Mutex
	pending map[flow]*pending
	open    map[*net.TCPConn]struct{} // both ends of each connection
	closed  bool
}

// flow names a connection as the sandbox sees it.
type flow struct{ src, dst netip.AddrPort }

// New takes the sockets over if it succeeds. own are the sandbox's addresses.
func New(s Sockets, e *exit.Exit, own4, own6 netip.Addr) (*Path, error) {
	p := &Path{
		exit: e, own: [2]netip.Addr{own4, own6},
		slots: make(chan struct{}, exit.Conns()), pending: make(map[flow]*pending), open: make(map[*net.TCPConn]struct{}),
	}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	if err := p.take(s); err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

func (p *Path) take(s Sockets) error {
	for i := range 2 {
		if s.Raw[i] != nil {
			p.raw[i] = &raw{s.Raw[i]}
		}
		if s.TCP[i] != nil {
			l, err := net.FileListener(s.TCP[i])
			if err != nil {
				return err
			}
			t, ok := l.(*net.TCPListener)
			if !ok {
				l.Close()
				return errors.New("a listener of TCP is none")
			}
			p.tcp = append(p.tcp, t)
		}
		if s.UDP[i] != nil {
			u, err := newSessions(p, s.UDP[i], p.raw[i])
			if err != nil {
				return err
			}
			p.udp = append(p.udp, u)
		}
	}
	if s.Tap != nil {
		p.tap = &tap{file: s.Tap}
		p.tap.pings = ping.New(p.exit, p.tap.give)
	}
	// The net package has copies of the others.
	for _, f := range append(s.TCP[:], s.UDP[:]...) {
		if f != nil {
			f.Close()
		}
	}
	return nil
}

// Start serves until Close.
func (p *Path) Start() {
	for _, l := range p.tcp {
		p.wg.Go(func() { p.accept(l) })
	}
	for _, u := range p.udp {
		p.wg.Go(u.serve)
	}
	if p.tap != nil {
		p.wg.Go(p.readTap)
	}
}

// Close ends all flows and waits until they have.
func (p *Path) Close() {
	p.cancel()
	for _, l := range p.tcp {
		l.Close()
	}
	for _, u := range p.udp {
		u.close()
	}
	if p.published != nil {
		p.published.close()
	}
	if p.tap != nil {
		inside.Leave(p.tap.file)
		p.tap.pings.Close()
	}
	p.mu.Lock()
	p.closed = true
	for c := range p.open {
		c.Close()
	}
	for _, f := range p.pending {
		f.drop()
	}
	p.mu.Unlock()
	p.wg.Wait()
	if p.published != nil {
		p.published.release()
	}
	for _, r := range p.raw {
		if r != nil {
			r.file.Close()
		}
	}
}

// track has Close close the connections. It reports whether there is anything to do.
func (p *Path) track(cs ...*net.TCPConn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	for _, c := range cs {
		p.open[c] = struct{}{}
	}
	return true
}

func (p *Path) untrack(cs ...*net.TCPConn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range cs {
		delete(p.open, c)
	}
}

func index(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

func (p *Path) local(a netip.Addr) bool { return a.IsLoopback() || a == p.own[index(a)] }
