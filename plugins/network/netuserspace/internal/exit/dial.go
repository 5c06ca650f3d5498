package exit

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/ledger"
)

// attemptDelay is how long an address has before the next one is tried beside it (RFC
// 8305), and attempts how many are tried.
const (
	attemptDelay = 250 * time.Millisecond
	attempts     = 8
)

// DialTCP connects to the first address that accepts. The flow is in the ledger from
// then on.
func (e *Exit) DialTCP(ctx context.Context, dst netip.AddrPort) (*net.TCPConn, *ledger.Flow, error) {
	ctx, cancel := context.WithTimeout(ctx, DialTimeout)
	defer cancel()
	t, err := e.Find(ctx, TCP, dst)
	if err != nil {
		return nil, nil, err
	}
	var c *net.TCPConn
	if t.job != nil {
		c, err = e.dialJobTCP(ctx, t)
	} else {
		c, err = race(ctx, t.Addrs[:min(len(t.Addrs), attempts)])
	}
	if err != nil {
		return nil, nil, err
	}
	return c, e.ledger.Open(t.Name), nil
}

func dialTCP(ctx context.Context, a netip.AddrPort) (*net.TCPConn, error) {
	// The address is spelled by netip and parsed by net, both without names and zones.
	return new(net.Dialer).DialTCP(ctx, "tcp", netip.AddrPort{}, a)
}

type attempt struct {
	c   *net.TCPConn
	err error
}

func race(ctx context.Context, addrs []netip.AddrPort) (*net.TCPConn, error) {
	if len(addrs) == 1 {
		return dialTCP(ctx, addrs[0])
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	results := make(chan attempt, len(addrs))
	next, running := 0, 0
	var first error
	timer := time.NewTimer(0)
	defer timer.Stop()
	for next < len(addrs) || running > 0 {
		var start bool
		select {
		case r := <-results:
			running--
			if r.err == nil {
				go drop(results, running)
				return r.c, nil
			}
			first = errors.Join(first, r.err)
			start = next < len(addrs)
		case <-timer.C:
			start = next < len(addrs)
		}
		if start {
			a := addrs[next]
			go func() {
				c, err := dialTCP(ctx, a)
				results <- attempt{c, err}
			}()
			next++
			running++
			timer.Reset(attemptDelay)
		}
	}
	return nil, first
}

// drop closes those that came too late.
func drop(results <-chan attempt, n int) {
	for range n {
		if r := <-results; r.err == nil {
			r.c.Close()
		}
	}
}

// keepAlive is how long a connection may be silent until its far end is asked whether
// it is there, and how often, in seconds: as the net package has it.
const keepAlive = 15

// NoDelay has every write sent at once: the programs at the two ends have delays of
// their own. What a listener accepts inherits it.
func NoDelay(fd int) error {
	return os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1))
}

// KeepAlive gives a connection an end whose far end has gone without a word. What a
// listener accepts inherits it.
func KeepAlive(fd int) error {
	var failed error
	for _, o := range []struct{ level, name, value int }{
		{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, keepAlive},
		{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, keepAlive},
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
	} {
		failed = errors.Join(failed, os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, o.level, o.name, o.value)))
	}
	return failed
}

// Sockaddr gives an address as the kernel wants it, with its family.
func Sockaddr(a netip.AddrPort) (family int, sa unix.Sockaddr) {
	if a.Addr().Is4() {
		return unix.AF_INET, &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return unix.AF_INET6, &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// Begin begins to connect a socket, and waits for nothing. Often it is done at once.
// Whoever has it for long calls KeepAlive.
func Begin(to netip.AddrPort) (fd int, done bool, err error) {
	family, _ := Sockaddr(to)
	fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, false, os.NewSyscallError("socket", err)
	}
	if err = NoDelay(fd); err == nil {
		if done, err = Proceed(fd, to); !done && err == nil {
			done, err = Proceed(fd, to) // the answer of a near end has come meanwhile
		}
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, false, err
	}
	return fd, done, nil
}

// Proceed tells of a socket that was begun whether it is connected.
func Proceed(fd int, to netip.AddrPort) (done bool, err error) {
	_, sa := Sockaddr(to)
	switch err := unix.Connect(fd, sa); {
	case err == nil || errors.Is(err, unix.EISCONN):
		return true, nil
	case errors.Is(err, unix.EINPROGRESS), errors.Is(err, unix.EALREADY), errors.Is(err, unix.EINTR):
		return false, nil
	default:
		return false, os.NewSyscallError("connect", err)
	}
}

// Opened notes a connection to the target, and gives what counts its bytes.
func (e *Exit) Opened(t Target) *ledger.Flow { return e.ledger.Open(t.Name) }
