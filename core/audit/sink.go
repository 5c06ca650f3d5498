package audit

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long an event waits for who reads what is no file of a file system.
const patience = 5 * time.Second

// ErrUnread ends a sink that nobody reads.
var ErrUnread = fmt.Errorf("nobody has read them for %v, and no more are written there", patience)

// Bounded gives what to write events for f to, so that a pipe, a terminal or a socket that is
// full holds nobody up for long: a sandbox could fill it, and would never be ended. After one
// event that was not taken no other is tried. f stays the caller's.
func Bounded(f *os.File) io.WriteCloser {
	var st unix.Stat_t
	fd := int(f.Fd())
	if unix.Fstat(fd, &st) != nil || st.Mode&unix.S_IFMT == unix.S_IFREG {
		return unclosed{f}
	}
	s := &stream{fd: fd, patience: patience, socket: st.Mode&unix.S_IFMT == unix.S_IFSOCK, own: -1}
	if !s.socket {
		// That it does not block is a property of what others have as well (F_SETFL in
		// fcntl(2)): so by a description of our own.
		own, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_WRONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
		if err == nil {
			s.own = own
		}
	}
	return s
}

type unclosed struct{ io.Writer }

func (unclosed) Close() error { return nil }

// stream is a sink whose reader may not read.
type stream struct {
	fd       int
	own      int // -1 for none: it is somebody else's pipe
	socket   bool
	patience time.Duration
	err      error
}

// Write writes one event.
func (s *stream) Write(b []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	end := time.Now().Add(s.patience)
	for done := 0; ; {
		n, err := s.some(b[done:])
		done += max(n, 0)
		switch {
		case done == len(b):
			return done, nil
		case err == nil, errors.Is(err, unix.EINTR):
			continue
		case !errors.Is(err, unix.EAGAIN):
			s.err = os.NewSyscallError("write", err)
			return done, s.err
		}
		left := time.Until(end)
		if left <= 0 {
			s.err = ErrUnread
			return done, s.err
		}
		_, _ = s.poll(left)
	}
}

// some writes what can be without waiting.
func (s *stream) some(b []byte) (int, error) {
	if s.socket {
		return unix.SendmsgN(s.fd, b, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	}
	if s.own >= 0 {
		return unix.Write(s.own, b)
	}
	// A pipe that can be written to at all takes so much in one piece (pipe(7)).
	if ready, err := s.poll(0); !ready {
		return 0, errors.Join(err, syscall.EAGAIN)
	}
	return unix.Write(s.fd, b[:min(len(b), pipeBuf)])
}

// pipeBuf is PIPE_BUF of limits.h.
const pipeBuf = 4096

func (s *stream) poll(within time.Duration) (bool, error) {
	fds := []unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLOUT}}
	n, err := unix.Poll(fds, int(within.Milliseconds()))
	return n > 0, err
}

// Close lets go of what the sink has of its own.
func (s *stream) Close() error {
	if s.own < 0 {
		return nil
	}
	own := s.own
	s.own, s.err = -1, os.ErrClosed
	return unix.Close(own)
}
