package lifecycle

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/audit"
	"github.com/nucleus-runtime/nucleus/core/initproto"
	"github.com/nucleus-runtime/nucleus/core/initproto/channel"
	"github.com/nucleus-runtime/nucleus/core/member"
	sdk "github.com/nucleus-runtime/nucleus/sdk/network"
	"github.com/nucleus-runtime/nucleus/sdk/network/egress"
	wire "github.com/nucleus-runtime/nucleus/sdk/network/member"
)

// openBroker gives the plugin's end of what it asks for other jobs on, nil if it has no
// use for one.
func (s *Sandbox) openBroker() (*os.File, error) {
	c := &s.net
	if c.want.JobsRule() < 0 || !c.link.DialsMembers() {
		return nil, nil
	}
	if s.cfg.Dial == nil {
		return nil, errors.New("there is nobody to reach other jobs of the stack")
	}
	policy, err := egress.New(c.want.Egress)
	if err != nil {
		return nil, err
	}
	b, theirs, err := member.New(policy, s.cfg.Dial, member.Tell{Failed: s.unreached(), Denied: s.denied})
	if err != nil {
		return nil, err
	}
	c.broker = b
	return theirs, nil
}

// maxUnreached is how many events there are of what keeps jobs from being reached.
const maxUnreached = 20

// unreached tells what keeps a job from being reached, each once.
func (s *Sandbox) unreached() func(job string, err error) {
	var mu sync.Mutex
	told := map[string]bool{}
	return func(job string, err error) {
		mu.Lock()
		defer mu.Unlock()
		what := job + " " + err.Error()
		if told[what] || len(told) >= maxUnreached {
			return
		}
		told[what] = true
		detail := map[string]any{"backend": s.plan.Network.Backend}
		if job != "" {
			detail["name"] = audit.Clean(job)
		}
		s.log.Emit(audit.NetworkUnreached, err, detail)
	}
}

// insides are the sockets that init was asked for.
type insides struct {
	mu   sync.Mutex
	last uint32
	byID map[uint32]chan inside
	over bool // nobody answers any more
}

type inside struct {
	errno syscall.Errno
	fd    int // -1 for none
}

// maxInsides bounds how many are waited for, and with them what others of the stack may
// take of the places of the control socket, by which the sandbox is stopped.
const maxInsides = 128

// BusyError says that as many want something as there may be at a time.
type BusyError struct{ What string }

func (e *BusyError) Error() string { return e.What }

func (t *insides) add() (uint32, chan inside, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.over:
		return 0, nil, errEnded
	case len(t.byID) >= maxInsides:
		return 0, nil, &BusyError{fmt.Sprintf("%d connections to the job are being made already", maxInsides)}
	case t.byID == nil:
		t.byID = map[uint32]chan inside{}
	}
	t.last++ // no earlier one of this number is left: they are few
	came := make(chan inside, 1)
	t.byID[t.last] = came
	return t.last, came, nil
}

// forget is for one that nobody waits for any more.
func (t *insides) forget(id uint32, came chan inside) {
	t.mu.Lock()
	delete(t.byID, id)
	t.mu.Unlock()
	select {
	case x := <-came:
		if x.fd >= 0 {
			_ = unix.Close(x.fd)
		}
	default:
	}
}

// hear takes what init says of one. Descriptors are its own from here.
func (t *insides) hear(msg []byte, fds []int) error {
	var m initproto.SocketMade
	err := initproto.Decode(msg, &m)
	if err == nil && (len(fds) > 1 || (len(fds) == 1) != (m.Errno == 0)) {
		err = fmt.Errorf("%w: %d descriptors", initproto.ErrMessage, len(fds))
	}
	if err != nil {
		channel.CloseAll(fds)
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	came := t.byID[m.ID]
	delete(t.byID, m.ID)
	if came == nil { // its client has gone
		channel.CloseAll(fds)
		return nil
	}
	x := inside{syscall.Errno(m.Errno), -1}
	if len(fds) == 1 {
		x.fd = fds[0]
	}
	came <- x // one answer to each: there is room
	return nil
}

// close ends what init can tell no more of.
func (t *insides) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.over = true
	for id, came := range t.byID {
		delete(t.byID, id)
		came <- inside{unix.ENOTCONN, -1}
	}
}

// socket asks init for one.
func (s *Sandbox) socket(ctx context.Context, want initproto.Socket) (fd int, err error) {
	id, came, err := s.insides.add()
	if err != nil {
		return -1, err
	}
	defer s.insides.forget(id, came)
	want.ID = id
	if err := s.conn.Send(initproto.Encode(initproto.KindSocket, &want)); err != nil {
		return -1, errEnded
	}
	select {
	case x := <-came:
		if x.fd < 0 {
			return -1, os.NewSyscallError("socket", cmp.Or(x.errno, unix.EIO))
		}
		return x.fd, nil
	case <-ctx.Done():
		return -1, context.Cause(ctx)
	}
}

// Connect gives, to another member of the sandbox's stack, a socket that is connected to
// one of its own ports or about to be, and the families in which it has an address. What
// listens on loopback alone is not reached. Without a protocol there is no socket.
func (s *Sandbox) Connect(ctx context.Context, q wire.Request) (wire.Families, *os.File, error) {
	if st := s.Status(); st != StatusRunning {
		return 0, nil, &StateError{What: "connect", Status: st}
	}
	if s.net.over.Load() {
		return 0, nil, &StateError{What: "connect", Status: "without a network"}
	}
	if s.foreign.ownStack() {
		return 0, nil, &PhaseError{Phase: "network", Origin: "runtime", Err: fmt.Errorf("job %q is in a network stack of its runtime's own, where no connection can be made from outside", s.plan.Name)}
	}
	if !s.plan.Init {
		return 0, nil, &PhaseError{Phase: "network", Err: fmt.Errorf("job %q has no init, which makes the sockets that others reach it by", s.plan.Name), Hint: "write init = true in that job"}
	}
	var families wire.Families
	to := netip.AddrPort{}
	for _, ip := range s.net.ips {
		f := wire.V6
		if ip.Is4() {
			f = wire.V4
		}
		if families&f == 0 && f == q.Family {
			to = netip.AddrPortFrom(ip, q.Port)
		}
		families |= f
	}
	switch {
	case q.Protocol == wire.None:
		return families, nil, nil
	case !to.IsValid():
		return families, nil, os.NewSyscallError("connect", unix.ENETUNREACH)
	}
	fd, err := s.socket(ctx, initproto.Socket{V6: q.Family == wire.V6, Datagram: q.Protocol == wire.UDP})
	if err != nil {
		return families, nil, err
	}
	if err := connectOnly(fd, to); err != nil {
		_ = unix.Close(fd)
		return families, nil, err
	}
	return families, os.NewFile(uintptr(fd), "member"), nil
}

// connectOnly connects a socket, as far as that can be done without waiting, and keeps
// whoever has it from connecting it to anything else: it is one of a sandbox's inside,
// and could be connected anew (connect(2), AF_UNSPEC). Nothing passes its filter but what
// comes from that port, and the filter cannot be taken off (socket(7), SO_LOCK_FILTER).
func connectOnly(fd int, to netip.AddrPort) error {
	filter := onlyFrom(to)
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}); err != nil {
		return os.NewSyscallError("setsockopt SO_ATTACH_FILTER", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_LOCK_FILTER, 1); err != nil {
		return os.NewSyscallError("setsockopt SO_LOCK_FILTER", err)
	}
	// An address that is not the sandbox's own, whoever says that it is, cannot be bound to:
	// nothing begins to leave its namespace here. Which port it is, connect says: bind would
	// take one for all destinations.
	if err := unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1); err != nil {
		return os.NewSyscallError("setsockopt IP_BIND_ADDRESS_NO_PORT", err)
	}
	if err := unix.Bind(fd, sockaddr(to.Addr(), 0)); err != nil {
		return os.NewSyscallError("bind", err)
	}
	err := unix.Connect(fd, sockaddr(to.Addr(), to.Port()))
	if errors.Is(err, unix.EINPROGRESS) || errors.Is(err, unix.EINTR) {
		return nil // whoever gets it sees what comes of it
	}
	return os.NewSyscallError("connect", err)
}

func sockaddr(a netip.Addr, port uint16) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Port: int(port), Addr: a.As4()}
	}
	return &unix.SockaddrInet6{Port: int(port), Addr: a.As16()}
}

// onlyFrom is the filter of a socket that drops what does not come from an address and
// its port. It is given the packet from the header of TCP or UDP on, and finds the protocol
// and the header of IP by SKF_AD_OFF and SKF_NET_OFF (linux/filter.h): a socket of IPv6
// may get packets of IPv4.
func onlyFrom(from netip.AddrPort) []unix.SockFilter {
	const (
		protocol = 0xfffff000 // SKF_AD_OFF + SKF_AD_PROTOCOL
		netOff   = 0xfff00000 // SKF_NET_OFF
	)
	family, source := uint32(unix.ETH_P_IPV6), uint32(8)
	if from.Addr().Is4() {
		family, source = unix.ETH_P_IP, 12
	}
	var out []unix.SockFilter
	address := from.Addr().AsSlice()
	checks := len(address)/4 + 2
	check := func(load uint16, at, want uint32) {
		left := uint8(2*(checks-1-len(out)/2) + 1) // to the last instruction
		out = append(out,
			unix.SockFilter{Code: load | unix.BPF_ABS | unix.BPF_LD, K: at},
			unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: left, K: want})
	}
	check(unix.BPF_W, protocol, family)
	for i := 0; i < len(address); i += 4 {
		check(unix.BPF_W, netOff+source+uint32(i), uint32(address[i])<<24|uint32(address[i+1])<<16|uint32(address[i+2])<<8|uint32(address[i+3]))
	}
	check(unix.BPF_H, 0, uint32(from.Port()))
	return append(out,
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: 0xffffffff},
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K})
}

// remember keeps the addresses by which the sandbox is reached.
func (c *connection) remember(got *sdk.AttachResponse) {
	for _, ip := range got.IPs {
		if a := ip.Address.Addr().Unmap(); a.IsValid() && !a.IsLoopback() && !a.IsUnspecified() && !a.IsMulticast() && !(a.Is6() && a.IsLinkLocalUnicast()) {
			c.ips = append(c.ips, a)
		}
	}
}
