package relay

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// End is one of the two ends of a flow: a connected socket of TCP's.
type End interface {
	Half
	syscall.Conn
	SetLinger(seconds int) error
}

// Socket is an End that the net package knows nothing of, which would ask the kernel a
// dozen things about it.
type Socket struct{ *os.File }

// NewSocket takes over a descriptor that does not block.
func NewSocket(fd int) Socket { return Socket{os.NewFile(uintptr(fd), "tcp")} }

// CloseWrite says that nothing more is sent.
func (s Socket) CloseWrite() error {
	return Control(s, func(fd int) error { return os.NewSyscallError("shutdown", unix.Shutdown(fd, unix.SHUT_WR)) })
}

// SetLinger says what becomes of what was not sent when the socket is closed, as that
// of net.TCPConn.
func (s Socket) SetLinger(seconds int) error {
	l := unix.Linger{Linger: int32(seconds)}
	if seconds >= 0 {
		l.Onoff = 1
	}
	return Control(s, func(fd int) error {
		return os.NewSyscallError("setsockopt", unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &l))
	})
}

// Control does something with the descriptor of what has one.
func Control(c syscall.Conn, do func(fd int) error) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	if err := raw.Control(func(fd uintptr) { failed = do(int(fd)) }); err != nil {
		return err
	}
	return failed
}
