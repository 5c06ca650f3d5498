// Package ping owns the echo requests of the sandbox: it sends them from the host's side
// through sockets that ordinary users may have, where net.ipv4.ping_group_range says so,
// and gives the answers back.
package ping

import (
	"context"
	"encoding/binary"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/relay"
	"github.com/nucleus-runtime/nucleus/plugins/network/netuserspace/internal/exit"
	"github.com/nucleus-runtime/nucleus/plugins/network/netuserspace/internal/packet"
)

const (
	// limit is how many programs may ping at once, and idle how long one may pause.
	limit = 64
	idle  = 10 * time.Second
)

// Pings are the sockets of those who ping.
type Pings struct {
	exit *exit.Exit
	// give sends a packet to the sandbox.
	give   func([]byte)
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu     sync.Mutex
	by     map[pinger]*socket
	closed bool
}

// New gives what is to come into the sandbox to give.
func New(e *exit.Exit, give func([]byte)) *Pings {
	p := &Pings{exit: e, give: give, by: make(map[pinger]*socket)}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p
}

// Close ends all, and waits until they have.
func (p *Pings) Close() {
	p.cancel()
	p.mu.Lock()
	p.closed = true
	for _, s := range p.by {
		s.Close()
	}
	p.mu.Unlock()
	p.wg.Wait()
}

type socket struct {
	*os.File
	v6 bool
}

type pinger struct {
	src, dst netip.Addr
	id       uint16
}

// Take carries an echo request; of ICMP it knows nothing else.
func (p *Pings) Take(s *packet.Packet) {
	body, ok := s.Echo()
	if !ok {
		return
	}
	k := pinger{s.Src.Addr(), s.Dst.Addr(), binary.BigEndian.Uint16(body)}
	p.mu.Lock()
	known := p.by[k]
	full := len(p.by) >= limit || p.closed
	if known != nil {
		known.send(body)
	}
	p.mu.Unlock()
	if known != nil || full {
		return
	}
	if err := p.exit.Quick(exit.ICMP, s.Dst); err != nil {
		p.refuse(s.Whole, k, unix.EACCES)
		return
	}
	first, whole := append([]byte(nil), body...), append([]byte(nil), s.Whole...)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	p.wg.Go(func() { p.run(k, first, whole) })
}

func (p *Pings) refuse(whole []byte, k pinger, err error) {
	p.give(packet.Unreachable(nil, whole, k.dst, k.src, packet.Because(err)))
}

func (p *Pings) run(k pinger, first, whole []byte) {
	t, err := p.exit.Find(p.ctx, exit.ICMP, netip.AddrPortFrom(k.dst, 0))
	if err != nil {
		p.refuse(whole, k, unix.EACCES)
		return
	}
	s, err := open(t.Addrs)
	if err != nil {
		p.refuse(whole, k, err)
		return
	}
	defer s.Close()
	p.mu.Lock()
	if p.closed || p.by[k] != nil {
		p.mu.Unlock()
		return
	}
	p.by[k] = s
	s.send(first)
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		delete(p.by, k)
		p.mu.Unlock()
	}()
	b := make([]byte, 64<<10)
	for s.SetReadDeadline(time.Now().Add(idle)) == nil {
		n, err := s.Read(b)
		if err != nil {
			return
		}
		if n < 8 {
			continue
		}
		body := b[4:n]
		binary.BigEndian.PutUint16(body, k.id) // the kernel has given it one of its own
		p.give(packet.EchoReply(nil, k.dst, k.src, body))
	}
}

// open opens one to the first address that there is a route to.
func open(to []netip.AddrPort) (*socket, error) {
	failed := error(unix.ENETUNREACH)
	for _, a := range to {
		family, sa := exit.Sockaddr(netip.AddrPortFrom(a.Addr(), 0))
		protocol := unix.IPPROTO_ICMP
		if a.Addr().Is6() {
			protocol = unix.IPPROTO_ICMPV6
		}
		fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
		if err != nil {
			failed = err
			continue
		}
		if err := unix.Connect(fd, sa); err != nil {
			_ = unix.Close(fd)
			failed = err
			continue
		}
		return &socket{os.NewFile(uintptr(fd), "ping"), a.Addr().Is6()}, nil
	}
	return nil, failed
}

// send sends an echo request of the family that is spoken on the host's side.
func (s *socket) send(body []byte) {
	kind := byte(8)
	if s.v6 {
		kind = 128
	}
	// It waits for nobody: where there is no room it is lost.
	_ = relay.Control(s, func(fd int) error {
		_, err := unix.Write(fd, append([]byte{kind, 0, 0, 0}, body...))
		return err
	})
}
