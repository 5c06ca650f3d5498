package exec

import (
	"errors"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Output reads what a sandbox writes into a pipe. The sandbox's end of it may outlive the
// sandbox: a process of it can send that to anybody whom a socket leads to, who could
// keep it open for ever.
type Output struct {
	From *os.File
	gone bool
	left int
}

// Gone says that no process of the sandbox is left: what the pipe holds now is the last
// of its output, and its end.
func (o *Output) Gone() { _ = o.From.SetReadDeadline(time.Now()) } // closed: it has ended

// Read is io.Reader's.
func (o *Output) Read(b []byte) (int, error) {
	if !o.gone {
		n, err := o.From.Read(b)
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return n, err
		}
		o.gone = true
		if err := withFD(o.From, func(fd int) (err error) {
			o.left, err = unix.IoctlGetInt(fd, unix.TIOCINQ) // FIONREAD
			return err
		}); err != nil {
			return 0, err
		}
	}
	b = b[:min(len(b), o.left)]
	if len(b) == 0 {
		return 0, io.EOF
	}
	n := 0
	err := withFD(o.From, func(fd int) (err error) { // does not block: Go's pipes do not
		for {
			if n, err = unix.Read(fd, b); !errors.Is(err, unix.EINTR) {
				return err
			}
		}
	})
	if n > 0 {
		o.left -= n
		return n, nil
	}
	if err == nil || errors.Is(err, unix.EAGAIN) { // somebody else has read it
		err = io.EOF
	}
	return 0, err
}

// withFD calls do with the descriptor of a file that others may close meanwhile: until do
// is over, its number is no other's.
func withFD(f *os.File, do func(fd int) error) error {
	c, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var derr error
	if err := c.Control(func(fd uintptr) { derr = do(int(fd)) }); err != nil {
		return err
	}
	return derr
}

// maxScreen is more than a terminal holds (TTYB_DEFAULT_MEM_LIMIT in
// drivers/tty/tty_buffer.c).
const maxScreen = 1 << 20

// screen reads what a sandbox writes to its terminal, as Output does: a process of it can
// send its side of that, too. Its master is shared with those who write to it, and blocks.
type screen struct {
	master *os.File
	gone   int // a pipe whose other end is closed with the sandbox
	over   bool
	left   int
}

func (s *screen) Read(b []byte) (int, error) {
	var there bool
	err := withFD(s.master, func(fd int) error {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(s.gone), Events: unix.POLLIN}}
		wait := -1
		for {
			if s.over {
				fds, wait = fds[:1], 0
			}
			_, err := unix.Poll(fds, wait)
			switch {
			case errors.Is(err, unix.EINTR):
				continue
			case err != nil:
				return os.NewSyscallError("poll", err)
			}
			there = fds[0].Revents != 0
			if s.over || fds[1].Revents == 0 {
				return nil
			}
			s.over = true
		}
	})
	if err != nil {
		return 0, err
	}
	if s.over {
		b = b[:min(len(b), s.left)]
	}
	if !there || len(b) == 0 {
		return 0, io.EOF
	}
	n, err := s.master.Read(b)
	if s.over {
		s.left -= n
	}
	return n, err
}
