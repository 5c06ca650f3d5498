package kernel

import (
	"encoding/binary"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/plugins/network/netuserspace/internal/exit"
	"github.com/nucleus-runtime/nucleus/plugins/network/netuserspace/internal/packet"
)

const (
	// pingLimit is how many programs may ping at once, and pingIdle how long one may
	// pause.
	pingLimit = 64
	pingIdle  = 10 * time.Second
)

// pings are the sockets of those who ping. They are guarded by Path's lock.
type pings map[pinger]*pingSocket

type pingSocket struct {
	*os.File
	v6 bool
}

type pinger struct {
	src, dst netip.Addr
	id       uint16
}

// ping carries an echo request through a socket that ordinary users may have, where
// net.ipv4.ping_group_range says so.
func (p *Path) ping(s *packet.Packet, frame []byte) {
	body, ok := s.Echo()
	if !ok {
		return
	}
	k := pinger{s.Src.Addr(), s.Dst.Addr(), binary.BigEndian.Uint16(body)}
	p.mu.Lock()
	socket := p.pings[k]
	full := len(p.pings) >= pingLimit || p.closed
	if socket != nil {
		socket.send(body)
	}
	p.mu.Unlock()
	if socket != nil || full {
		return
	}
	if err := p.exit.Quick(exit.ICMP, s.Dst); err != nil {
		p.unreachable(s.Whole, k.src, k.dst, unix.EACCES)
		return
	}
	b, head, whole := append([]byte(nil), body...), [ethernet]byte(frame), append([]byte(nil), s.Whole...)
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return
	}
	p.wg.Add(1)
	p.mu.Unlock()
	go func() {
		defer p.wg.Done()
		p.runPing(k, b, whole, head)
	}()
}

func (p *Path) runPing(k pinger, first, whole []byte, frame [ethernet]byte) {
	t, err := p.exit.Find(p.ctx, exit.ICMP, netip.AddrPortFrom(k.dst, 0))
	if err != nil {
		p.unreachable(whole, k.src, k.dst, unix.EACCES)
		return
	}
	socket, err := openPing(t.Addrs)
	if err != nil {
		p.unreachable(whole, k.src, k.dst, err)
		return
	}
	defer socket.Close()
	p.mu.Lock()
	if p.closed || p.pings[k] != nil {
		p.mu.Unlock()
		return
	}
	if p.pings == nil {
		p.pings = make(pings)
	}
	p.pings[k] = socket
	socket.send(first)
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		delete(p.pings, k)
		p.mu.Unlock()
	}()
	b := make([]byte, 64<<10)
	for socket.SetReadDeadline(time.Now().Add(pingIdle)) == nil {
		n, err := socket.Read(b)
		if err != nil {
			return
		}
		if n < 8 {
			continue
		}
		body := b[4:n]
		binary.BigEndian.PutUint16(body, k.id) // the kernel has given it one of its own
		// Through the interface, to which the program's socket may be bound.
		_, _ = p.tap.file.Write(packet.EchoReply(frame[:], k.dst, k.src, body))
	}
}

// openPing opens one to the first address that there is a route to.
func openPing(to []netip.AddrPort) (*pingSocket, error) {
	failed := error(unix.ENETUNREACH)
	for _, a := range to {
		family, protocol := unix.AF_INET, unix.IPPROTO_ICMP
		var sa unix.Sockaddr
		if a.Addr().Is4() {
			sa = &unix.SockaddrInet4{Addr: a.Addr().As4()}
		} else {
			family, protocol = unix.AF_INET6, unix.IPPROTO_ICMPV6
			sa = &unix.SockaddrInet6{Addr: a.Addr().As16()}
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
		return &pingSocket{os.NewFile(uintptr(fd), "ping"), a.Addr().Is6()}, nil
	}
	return nil, failed
}

// send sends an echo request of the family that is spoken on the host's side.
func (s *pingSocket) send(body []byte) {
	kind := byte(8)
	if s.v6 {
		kind = 128
	}
	_, _ = s.Write(append([]byte{kind, 0, 0, 0}, body...))
}
