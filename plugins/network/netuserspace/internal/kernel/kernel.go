// Package kernel owns the flows that the sandbox's own kernel brings to listeners of
// the plugin's (see package inside): TCP is accepted there and joined with a socket of
// the host's, UDP is carried datagram by datagram. What to do with a flow is exit's to
// say.
package kernel

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"os"
	"sync"

	"golang.org/x/sys/unix"

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
	udp  []*sessions
	// loop has what is below, until it ends.
	loop      *loop
	listeners [2]*listener
	pending   map[flow]*pending
	queue     queue
	sweeping  bool
	// published carries what comes from outside, if anything does.
	published *published
	slots     chan struct{} // one for each connection
	ctx       context.Context
	cancel    context.CancelFunc
	wg        sync.WaitGroup

	mu     sync.Mutex
	open   map[io.Closer]struct{} // both ends of each connection that is not the loop's
	closed bool
}

// flow names a connection as the sandbox sees it.
type flow struct{ src, dst netip.AddrPort }

// New takes the sockets over. own are the sandbox's addresses.
func New(s Sockets, e *exit.Exit, own4, own6 netip.Addr) (*Path, error) {
	p := &Path{
		exit: e, own: [2]netip.Addr{own4, own6},
		slots: make(chan struct{}, exit.Conns()), queue: queue{most: exit.Waiting()}, pending: make(map[flow]*pending), open: make(map[io.Closer]struct{}),
	}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	var err error
	if p.loop, err = newLoop(); err != nil {
		p.cancel()
		return nil, err
	}
	if err := p.take(s); err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

func (p *Path) take(s Sockets) error {
	for i := range 2 {
		if s.Raw[i] != nil {
			f, err := unwatched(s.Raw[i])
			if err != nil {
				return err
			}
			p.raw[i] = &raw{f}
		}
		if s.TCP[i] != nil {
			l, err := p.takeListener(s.TCP[i])
			if err != nil {
				return err
			}
			p.listeners[i] = l
		}
		if s.UDP[i] != nil {
			u, err := newSessions(p, s.UDP[i], p.raw[i])
			if err != nil {
				return err
			}
			p.udp = append(p.udp, u)
		}
	}
	// The net package has copies.
	for _, f := range s.UDP {
		if f != nil {
			f.Close()
		}
	}
	if s.Tap == nil {
		return nil
	}
	file, err := unwatched(s.Tap)
	if err != nil {
		return err
	}
	fd := int(file.Fd())
	p.tap = &tap{file: file}
	p.tap.pings = ping.New(p.exit, p.tap.give)
	return errors.Join(unix.SetNonblock(fd, true), p.loop.watch(fd, unix.EPOLLIN, tapReader{p, fd}))
}

// Start serves until Close.
func (p *Path) Start() {
	p.wg.Go(p.loop.run)
	for _, u := range p.udp {
		p.wg.Go(u.serve)
	}
}

// Close ends all flows and waits until they have.
func (p *Path) Close() {
	p.cancel()
	p.loop.end()
	for _, u := range p.udp {
		u.close()
	}
	if p.published != nil {
		p.published.close()
	}
	p.mu.Lock()
	p.closed = true
	for c := range p.open {
		c.Close()
	}
	p.mu.Unlock()
	if p.tap != nil {
		p.tap.pings.Close()
	}
	p.wg.Wait()
	p.loop.giveUp()
	for _, l := range p.listeners {
		if l != nil {
			_ = unix.Close(l.fd)
		}
	}
	p.queue.drop()
	for _, d := range p.pending {
		if d.done {
			reset(d.fd)
		}
	}
	if p.tap != nil {
		inside.Leave(p.tap.file)
	}
	if p.published != nil {
		p.published.release()
	}
	for _, r := range p.raw {
		if r != nil {
			r.file.Close()
		}
	}
}

// Gone tells whether the sandbox's interface has been removed.
func (p *Path) Gone() bool { return p.tap != nil && inside.Gone(p.tap.file) }

// track has Close close the connections. It reports whether there is anything to do.
func (p *Path) track(cs ...io.Closer) bool {
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

func (p *Path) untrack(cs ...io.Closer) {
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
