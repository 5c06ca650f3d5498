package kernel

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/hostport"
	"github.com/nucleus-runtime/nucleus/plugins/network/internal/relay"
	"github.com/nucleus-runtime/nucleus/sdk/network"
)

// published are the ports of the sandbox that the host reaches. What is behind them is
// reached at the sandbox's address: a server that listens at 127.0.0.1 alone is not.
// It sees who connects, except for clients of the host's own and of IPv6, which seem to
// come from the gateway: no packet from outside is to seem to be the sandbox's own.
type published struct {
	path    *Path
	gateway netip.Addr
	pool    chan *os.File // sockets of the sandbox's, not connected
	tcp     []*net.TCPListener
	udp     *guests
}

// Publish opens ports of the host, and tells which. sockets are of the sandbox's
// namespace, one for each connection that there may be at once. It is called before
// Start.
func (p *Path) Publish(ports []network.PortMap, sockets []*os.File, gateway netip.Addr) ([]network.PortMap, error) {
	s := &published{path: p, gateway: gateway, pool: make(chan *os.File, len(sockets)), udp: newGuests(p, gateway)}
	p.published = s
	for _, f := range sockets {
		s.pool <- f
	}
	return hostport.All(ports, s.listenTCP, s.udp.listen)
}

func (s *published) listenTCP(at netip.AddrPort, port uint16) (uint16, error) {
	var c net.ListenConfig
	l, err := c.Listen(s.path.ctx, hostport.Family("tcp", at.Addr()), at.String())
	if err != nil {
		return 0, err
	}
	t, ok := l.(*net.TCPListener)
	if !ok {
		l.Close()
		return 0, errors.New("a listener of TCP is none")
	}
	s.tcp = append(s.tcp, t)
	s.path.wg.Go(func() { s.accept(t, port) })
	return tcpAddr(t.Addr()).Port(), nil
}

func tcpAddr(a net.Addr) netip.AddrPort {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(t.AddrPort().Addr().Unmap().WithZone(""), t.AddrPort().Port())
}

func (s *published) accept(l *net.TCPListener, port uint16) {
	for {
		c, err := l.AcceptTCP()
		if err != nil {
			if s.path.ctx.Err() != nil {
				return
			}
			time.Sleep(10 * time.Millisecond)
			continue
		}
		select {
		case s.path.slots <- struct{}{}:
			s.path.wg.Go(func() { s.serve(c, port) })
		default:
			relay.Reset(c)
		}
	}
}

// waitForSocket is how long a connection waits until another ends.
const waitForSocket = 10 * time.Second

func (s *published) serve(c *net.TCPConn, port uint16) {
	defer func() { <-s.path.slots }()
	if !s.path.track(c) {
		c.Close()
		return
	}
	defer s.path.untrack(c)
	ctx, cancel := context.WithTimeout(s.path.ctx, waitForSocket)
	defer cancel()
	var socket *os.File
	select {
	case socket = <-s.pool:
	case <-ctx.Done():
		relay.Reset(c)
		return
	}
	in, err := connect(socket, s.guest(tcpAddr(c.RemoteAddr()).Addr()), netip.AddrPortFrom(s.path.own[0], port))
	if err != nil {
		relay.Reset(c)
	} else if s.path.track(in) {
		relay.Run(in, c, func(uint64, uint64) {})
		s.path.untrack(in)
	} else {
		in.Close()
		c.Close()
	}
	if disconnect(socket) != nil {
		socket.Close() // the pool is one smaller
		return
	}
	s.pool <- socket
}

// guest is the address that a client has in the sandbox.
func (s *published) guest(a netip.Addr) netip.Addr {
	if !a.Is4() || a.IsLoopback() || a == s.path.own[0] || a.IsUnspecified() {
		return s.gateway
	}
	return a
}

// connect uses a socket of the pool, which stays the pool's.
func connect(socket *os.File, from netip.Addr, to netip.AddrPort) (*net.TCPConn, error) {
	raw, err := socket.SyscallConn()
	if err != nil {
		return nil, err
	}
	copied := -1
	var failed error
	err = raw.Control(func(fd uintptr) {
		// The port is chosen at connect, or each connection would have a whole port.
		failed = errors.Join(unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1),
			unix.SetsockoptLinger(int(fd), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{}),
			unix.SetNonblock(int(fd), true), unix.Bind(int(fd), &unix.SockaddrInet4{Addr: from.As4()}))
		if failed == nil {
			copied, failed = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0)
		}
	})
	if err = errors.Join(err, failed); err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(copied), "published")
	defer f.Close()
	if err := f.SetWriteDeadline(time.Now().Add(waitForSocket)); err != nil {
		return nil, err
	}
	if raw, err = f.SyscallConn(); err != nil {
		return nil, err
	}
	started := false
	err = raw.Write(func(fd uintptr) bool {
		if started {
			var number int
			if number, failed = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR); failed == nil && number != 0 {
				failed = unix.Errno(number)
			}
			return true
		}
		started = true
		failed = unix.Connect(int(fd), &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())})
		if errors.Is(failed, unix.EINPROGRESS) {
			failed = nil
			return false
		}
		return true
	})
	if err = errors.Join(err, failed); err != nil {
		return nil, err
	}
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	t, ok := c.(*net.TCPConn)
	if !ok {
		c.Close()
		return nil, errors.New("a socket of TCP is none")
	}
	return t, nil
}

// disconnect makes a socket fit to connect again: connect(2), AF_UNSPEC.
func disconnect(socket *os.File) error { return relay.Control(socket, unspec) }

func (s *published) close() {
	for _, l := range s.tcp {
		l.Close()
	}
	s.udp.close()
}

// release closes what connections had borrowed. It is called after they have ended.
func (s *published) release() {
	for len(s.pool) > 0 {
		(<-s.pool).Close()
	}
}
