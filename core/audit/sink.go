package audit

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
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
	if !s.socket && !isPtmx(&st) {
		// That it does not block is a property of what others have as well (F_SETFL in
		// fcntl(2)): so by a description of our own.
		own, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_WRONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
		if err == nil {
			s.own = own
		}
	}
	return s
}

// isPtmx tells whether it is the master of a pseudo-terminal, whose device makes another pair
// each time that it is opened (ptmx(4)).
func isPtmx(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == unix.Mkdev(5, 2)
}

type unclosed struct{ io.Writer }

func (unclosed) Close() error { return nil }

// stream is a sink whose reader may not read.
type stream struct {
	fd       int
	own      int // -1 for none: it is somebody else's, or cannot be opened once more
	socket   bool
	patience time.Duration
	err      error
}

// Write writes one event.
func (s *stream) Write(b []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	if s.own < 0 && !s.socket {
		return s.beside(b)
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
	return unix.Write(s.own, b)
}

// beside has another thread write what may block, and leaves it there if it does: nothing tells
// before whether it will. A terminal that takes a byte has no room for the two of a newline, and
// whoever has its other end may stop it meanwhile.
func (s *stream) beside(b []byte) (int, error) {
	var left atomic.Bool
	type result struct {
		n   int
		err error
	}
	done := make(chan result, 1)
	go func(b []byte) {
		n := 0
		for n < len(b) && !left.Load() {
			more, err := unix.Write(s.fd, b[n:])
			n += max(more, 0)
			switch {
			case errors.Is(err, unix.EAGAIN):
				_, _ = s.poll(s.patience)
			case err != nil && !errors.Is(err, unix.EINTR):
				done <- result{n, os.NewSyscallError("write", err)}
				return
			}
		}
		done <- result{n, nil}
	}(bytes.Clone(b))
	late := time.NewTimer(s.patience)
	defer late.Stop()
	select {
	case r := <-done:
		s.err = r.err
		return r.n, r.err
	case <-late.C:
		left.Store(true)
		s.err = ErrUnread
		return 0, s.err
	}
}

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
