package kernel

import (
	"container/list"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/ledger"
	"github.com/nucleus-runtime/nucleus/plugins/network/netuserspace/internal/exit"
	"github.com/nucleus-runtime/nucleus/plugins/network/netuserspace/internal/packet"
)

const (
	// sessionLimit is how many a family may have. The one that was used longest ago
	// makes room.
	sessionLimit = 4096
	// idleOnce is how long a session lives that had no answer, idle how long others do.
	idleOnce = 60 * time.Second
	idle     = 180 * time.Second
	// early is how many datagrams wait while a name is resolved.
	early = 16
	// earlyBytes is how much of a family's waits in all.
	earlyBytes = 4 << 20
)

// sessions are the UDP flows of a family.
type sessions struct {
	path *Path
	conn *net.UDPConn
	raw  *raw

	mu     sync.Mutex
	byFlow map[flow]*session
	used   list.List // of *session, the one used last in front
	kept   int       // bytes that wait
	closed bool
}

// keep lets a datagram wait, or loses it. The lock is held.
func (u *sessions) keep(s *session, data []byte) {
	if len(s.waiting) >= early || u.kept+len(data) > earlyBytes {
		return
	}
	u.kept += len(data)
	s.waiting = append(s.waiting, slices.Clone(data))
}

// taken gives what has waited. The lock is held.
func (u *sessions) taken(s *session) [][]byte {
	out := s.waiting
	s.waiting = nil
	for _, d := range out {
		u.kept -= len(d)
	}
	return out
}

// session is a flow with its socket on the host's side.
type session struct {
	flow    flow
	element *list.Element
	// Guarded by the lock of sessions.
	out     *net.UDPConn // nil until it is known where to
	control syscall.RawConn
	waiting [][]byte
	used    time.Time
	timeout time.Duration
	count   *ledger.Flow
}

func newSessions(p *Path, f *os.File, r *raw) (*sessions, error) {
	pc, err := net.FilePacketConn(f)
	if err != nil {
		return nil, err
	}
	c, ok := pc.(*net.UDPConn)
	if !ok {
		pc.Close()
		return nil, errors.New("a socket of UDP is none")
	}
	u := &sessions{path: p, conn: c, raw: r, byFlow: make(map[flow]*session)}
	if err := wantDestination(c); err != nil {
		c.Close()
		return nil, fmt.Errorf("a listener of UDP: %w", err)
	}
	return u, nil
}

// wantDestination has the kernel tell where each datagram was sent to.
func wantDestination(c *net.UDPConn) error {
	conn, err := c.SyscallConn()
	if err != nil {
		return err
	}
	level, option := unix.SOL_IP, unix.IP_RECVORIGDSTADDR
	if a, ok := c.LocalAddr().(*net.UDPAddr); ok && a.IP.To4() == nil {
		level, option = unix.SOL_IPV6, unix.IPV6_RECVORIGDSTADDR
	}
	var set error
	err = conn.Control(func(fd uintptr) {
		set = unix.SetsockoptInt(int(fd), level, option, 1)
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<20) // as much as it may be
	})
	return errors.Join(err, set)
}

// destination reads what wantDestination asked for.
func destination(oob []byte) (netip.AddrPort, bool) {
	ms, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return netip.AddrPort{}, false
	}
	for _, m := range ms {
		switch {
		case m.Header.Level == unix.SOL_IP && m.Header.Type == unix.IP_ORIGDSTADDR && len(m.Data) >= 8:
			return netip.AddrPortFrom(netip.AddrFrom4([4]byte(m.Data[4:])), binary.BigEndian.Uint16(m.Data[2:])), true
		case m.Header.Level == unix.SOL_IPV6 && m.Header.Type == unix.IPV6_ORIGDSTADDR && len(m.Data) >= 24:
			return netip.AddrPortFrom(netip.AddrFrom16([16]byte(m.Data[8:])), binary.BigEndian.Uint16(m.Data[2:])), true
		}
	}
	return netip.AddrPort{}, false
}

func (u *sessions) serve() {
	b, oob := make([]byte, packet.MaxUDP+1), make([]byte, 128)
	for {
		n, noob, _, src, err := u.conn.ReadMsgUDPAddrPort(b, oob)
		if err != nil {
			if u.path.ctx.Err() != nil {
				return
			}
			continue
		}
		dst, ok := destination(oob[:noob])
		if !ok || u.path.local(dst.Addr()) {
			continue
		}
		u.take(flow{netip.AddrPortFrom(src.Addr().Unmap().WithZone(""), src.Port()), dst}, b[:n])
	}
}

// take carries a datagram of the sandbox's.
func (u *sessions) take(f flow, data []byte) {
	if p := u.path.published; p != nil && p.udp.reply(f, data) {
		return
	}
	u.mu.Lock()
	s := u.byFlow[f]
	if s == nil {
		u.mu.Unlock()
		u.begin(f, data)
		return
	}
	s.used = time.Now()
	u.used.MoveToFront(s.element)
	if s.out == nil {
		u.keep(s, data)
		u.mu.Unlock()
		return
	}
	u.mu.Unlock()
	u.send(s, data)
}

func (u *sessions) send(s *session, data []byte) {
	var sent error
	err := s.control.Control(func(fd uintptr) { sent = unix.Send(int(fd), data, unix.MSG_DONTWAIT) })
	switch {
	case err != nil: // closed meanwhile
	case sent == nil:
		s.count.Add(0, uint64(len(data)))
	case errors.Is(sent, unix.ECONNREFUSED), errors.Is(sent, unix.EHOSTUNREACH), errors.Is(sent, unix.ENETUNREACH):
		u.fail(s, sent)
	}
}

// begin opens a session for a flow.
func (u *sessions) begin(f flow, data []byte) {
	if err := u.path.exit.Quick(exit.UDP, f.dst); err != nil {
		u.refuse(f, unix.EACCES)
		return
	}
	s := &session{flow: f, used: time.Now(), timeout: idleOnce}
	u.mu.Lock()
	if u.closed {
		u.mu.Unlock()
		return
	}
	u.keep(s, data)
	if len(u.byFlow) >= sessionLimit {
		if old, ok := u.used.Back().Value.(*session); ok {
			u.remove(old)
		}
	}
	u.byFlow[f] = s
	s.element = u.used.PushFront(s)
	u.path.wg.Add(1)
	u.mu.Unlock()
	go func() {
		defer u.path.wg.Done()
		u.run(s)
	}()
}

// remove takes a session out, and ends it. The lock is held.
func (u *sessions) remove(s *session) {
	if u.byFlow[s.flow] != s {
		return
	}
	delete(u.byFlow, s.flow)
	u.used.Remove(s.element)
	u.taken(s)
	if s.out != nil {
		s.out.Close()
	}
}

func (u *sessions) fail(s *session, err error) {
	u.mu.Lock()
	u.remove(s)
	u.mu.Unlock()
	u.refuse(s.flow, err)
}

// refuse tells the sender that there is nobody.
func (u *sessions) refuse(f flow, err error) {
	u.path.unreachable(packet.UDP(nil, f.src, f.dst, nil), f.src.Addr(), f.dst.Addr(), err)
}

// run carries what comes back.
func (u *sessions) run(s *session) {
	out, count, err := u.path.exit.DialUDP(u.path.ctx, s.flow.dst)
	if err != nil {
		if errors.Is(err, exit.ErrRefused) {
			err = unix.EACCES
		}
		u.fail(s, exit.Errno(err))
		return
	}
	defer out.Close()
	control, err := out.SyscallConn()
	if err != nil {
		u.fail(s, unix.EHOSTUNREACH)
		return
	}
	u.mu.Lock()
	if u.byFlow[s.flow] != s || u.closed {
		u.mu.Unlock()
		return
	}
	s.out, s.control, s.count = out, control, count
	waiting := u.taken(s)
	u.mu.Unlock()
	for _, data := range waiting {
		u.send(s, data)
	}
	if err := u.receive(s, out); err != nil {
		u.fail(s, err)
		return
	}
	u.mu.Lock()
	u.remove(s)
	u.mu.Unlock()
}

// receive carries datagrams until the session is over, or the network says that there
// is nobody.
func (u *sessions) receive(s *session, out *net.UDPConn) error {
	for {
		u.mu.Lock()
		until := s.used.Add(s.timeout)
		u.mu.Unlock()
		if time.Now().After(until) || out.SetReadDeadline(until) != nil {
			return nil
		}
		n, err := u.one(s, out)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			continue // it may have been used since
		case errors.Is(err, net.ErrClosed):
			return nil
		case err != nil:
			return err
		}
		s.count.Add(uint64(n), 0)
		u.mu.Lock()
		s.used, s.timeout = time.Now(), idle
		if u.byFlow[s.flow] == s {
			u.used.MoveToFront(s.element)
		}
		u.mu.Unlock()
	}
}

// one carries one datagram; what waits for it holds no buffer.
func (u *sessions) one(s *session, out *net.UDPConn) (n int, err error) {
	var failed error
	err = s.control.Read(func(fd uintptr) bool {
		b, _ := datagrams.Get().(*[packet.MaxUDP + 1]byte)
		defer datagrams.Put(b)
		n, failed = unix.Read(int(fd), b[:])
		if errors.Is(failed, unix.EAGAIN) {
			return false
		}
		if failed == nil {
			u.deliver(s.flow, b[:n])
		}
		return true
	})
	return n, errors.Join(err, failed)
}

var datagrams = sync.Pool{New: func() any { return new([packet.MaxUDP + 1]byte) }}

// deliver gives the sandbox a datagram that comes from where the flow goes.
func (u *sessions) deliver(f flow, data []byte) {
	if len(data) > packet.MaxUDP {
		return
	}
	u.path.answer(f.src.Addr(), func(b []byte) []byte { return packet.UDP(b, f.dst, f.src, data) })
}

func (u *sessions) close() {
	u.mu.Lock()
	u.closed = true
	for _, s := range u.byFlow {
		u.remove(s)
	}
	u.mu.Unlock()
	u.conn.Close()
}
