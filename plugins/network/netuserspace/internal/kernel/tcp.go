package kernel

import (
	"errors"
	"io"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/relay"
	"github.com/nucleus-runtime/nucleus/plugins/network/netuserspace/internal/exit"
)

// listener accepts connections, whose local address is the one that was meant.
type listener struct {
	path   *Path
	fd     int
	paused bool
}

// accepts is how many connections are accepted before others have their turn.
const accepts = 64

// takeListener has the loop accept what comes to a listener.
func (p *Path) takeListener(file *os.File) (*listener, error) {
	fd, err := takeOver(file)
	if err != nil {
		return nil, err
	}
	l := &listener{path: p, fd: fd}
	// What it accepts inherits the options.
	if err = errors.Join(unix.SetNonblock(fd, true), exit.NoDelay(fd), exit.KeepAlive(fd), p.loop.watch(fd, unix.EPOLLIN, l)); err != nil {
		p.loop.close(fd)
		return nil, err
	}
	return l, nil
}

// takeOver gives a descriptor of a file or a connection that Go's own loop does not
// watch. The other is closed.
func takeOver(c interface {
	syscall.Conn
	io.Closer
},
) (fd int, err error) {
	defer c.Close()
	err = relay.Control(c, func(f int) error {
		fd, err = unix.FcntlInt(uintptr(f), unix.F_DUPFD_CLOEXEC, 0)
		return err
	})
	return fd, err
}

// unwatched gives a file of its own to a descriptor that Go's own loop does not watch: it
// would wake a thread for each packet that has left.
func unwatched(f *os.File) (*os.File, error) {
	fd, err := takeOver(f)
	if err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(fd, false); err != nil { // or it would be watched as a file
		_ = unix.Close(fd)
		return nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

func (l *listener) drop() {} // the path closes it

func (l *listener) ready(int, uint32) {
	for range accepts {
		if !l.accept() {
			return
		}
	}
}

// accept accepts one connection, and reports whether there may be more.
func (l *listener) accept() bool {
	// That of x/sys asks the kernel for the protocol of each address.
	fd, from, err := syscall.Accept4(l.fd, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
	switch {
	case err == nil:
		l.path.accepted(fd, addrPort(from))
	case errors.Is(err, unix.EAGAIN):
		return false
	case errors.Is(err, unix.EINTR), errors.Is(err, unix.ECONNABORTED):
	case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.ENOMEM):
		l.pause()
		return false
	default:
		// Who rules the namespace has destroyed it (ss -K): it would say so for ever.
		l.path.loop.forget(l.fd)
		return false
	}
	return true
}

// pause lets others come to something first.
func (l *listener) pause() {
	if l.paused {
		return
	}
	l.paused = true
	l.path.loop.forget(l.fd)
	time.AfterFunc(10*time.Millisecond, func() {
		l.path.loop.post(func() {
			l.paused = false
			_ = l.path.loop.watch(l.fd, unix.EPOLLIN, l)
		})
	})
}

func addrPort(sa syscall.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *syscall.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *syscall.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

func (p *Path) accepted(fd int, from netip.AddrPort) {
	to, err := syscall.Getsockname(fd)
	if err != nil {
		_ = unix.Close(fd)
		return
	}
	f := flow{from, addrPort(to)}
	switch d := p.pending[f]; {
	case d != nil && d.done:
		p.settle(f, d)
		p.join(fd, d.fd, d.count)
	case p.ctx.Err() != nil: // nobody would answer
		reset(fd)
	case d != nil && d.early < 0:
		d.early = fd
	default:
		p.late(fd, f)
	}
}

// reset ends a connection at once.
func reset(fd int) {
	breakOff(fd)
	_ = unix.Close(fd)
}

// breakOff has what is closed next be a reset.
func breakOff(fd int) {
	_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
}
