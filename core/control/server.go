package control

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxConns bounds the connections that one server serves at once.
	maxConns = 256
	// helloLimit is how long a client may stay silent after it connected.
	helloLimit = 10 * time.Second
	// backlog is how many clients may wait to be looked at.
	backlog = 128
)

// Handler serves one request. The context ends when the client goes away or
// the server is closed; the answer may still be sent after that. The handler
// may exchange further messages on c. Descriptors that it takes over it sets to
// nil in fds; the others are closed afterwards, and so is c.
type Handler func(ctx context.Context, c *Conn, m Message, fds []*os.File)

// Server listens in the directory of a sandbox.
type Server struct {
	file     *os.File
	raw      syscall.RawConn
	dir      int
	dev, ino uint64

	uid                   int
	helloLimit, sendLimit time.Duration

	path string
	fd   int // the socket until Listen

	once   sync.Once
	closed chan struct{}
	err    error
}

// TakenError is a place that is not free for the socket.
type TakenError struct{ Path, Why string }

func (e *TakenError) Error() string { return fmt.Sprintf("control socket %q: %s", e.Path, e.Why) }

// Listen is Bind and Server.Listen.
func Listen(dir string) (*Server, error) {
	s, err := Bind(dir)
	if err != nil {
		return nil, err
	}
	if err := s.Listen(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Bind binds the socket in the directory dir, which must be ours alone, and
// replaces one that nobody listens on any more. Until Listen clients find nobody, as if
// there were no socket.
func Bind(dir string) (*Server, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("control socket in %q: %w", dir, os.NewSyscallError("open", err))
	}
	s := &Server{dir: fd, fd: -1, uid: os.Geteuid(), helloLimit: helloLimit, sendLimit: sendLimit, closed: make(chan struct{})}
	s.path = filepath.Join(dir, SocketName)
	if err := s.make(s.path); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return s, nil
}

// Listen lets clients connect. Serve answers them.
func (s *Server) Listen() error {
	if err := unix.Listen(s.fd, backlog); err != nil {
		return fmt.Errorf("control socket %q: %w", s.path, os.NewSyscallError("listen", err))
	}
	fd := s.fd
	s.fd = -1 // the file's
	var err error
	s.file, s.raw, err = pollable(fd)
	return err
}

func (s *Server) make(path string) error {
	// An address has room for 107 bytes of path (unix(7)), fewer than a state
	// root may need.
	at := fmt.Sprintf("/proc/self/fd/%d/%s", s.dir, SocketName)
	if err := s.clear(path, at); err != nil {
		return err
	}
	fd, err := newSocket()
	if err != nil {
		return err
	}
	if err := s.bind(fd, at); err != nil {
		_ = unix.Close(fd)
		return fmt.Errorf("control socket %q: %w", path, err)
	}
	s.fd = fd
	return nil
}

func (s *Server) bind(fd int, at string) error {
	// The file takes its mode from the socket, less the umask: changed
	// afterwards, it would be open to others for a moment.
	if err := unix.Fchmod(fd, 0o600); err != nil {
		return os.NewSyscallError("fchmod", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: at}); err != nil {
		return os.NewSyscallError("bind", err)
	}
	var st unix.Stat_t
	if err := unix.Fstatat(s.dir, SocketName, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return os.NewSyscallError("fstatat", err)
	}
	s.dev, s.ino = st.Dev, st.Ino
	return nil
}

// clear makes room. Only a socket of ours that refuses connections is a server's
// remains; anything else was put there by somebody who will want it back.
func (s *Server) clear(path, at string) error {
	var st unix.Stat_t
	err := unix.Fstatat(s.dir, SocketName, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("control socket %q: %w", path, os.NewSyscallError("fstatat", err))
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return &TakenError{Path: path, Why: "something else has its name"}
	}
	if int(st.Uid) != s.uid {
		return &TakenError{Path: path, Why: fmt.Sprintf("uid %d has made one", st.Uid)}
	}
	fd, err := newSocket()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	err = again(func() error { return unix.Connect(fd, &unix.SockaddrUnix{Name: at}) })
	if !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, unix.ENOENT) {
		return &TakenError{Path: path, Why: "somebody listens on it"}
	}
	if err := unix.Unlinkat(s.dir, SocketName, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("control socket %q: %w", path, os.NewSyscallError("unlinkat", err))
	}
	return nil
}

// unlink takes the socket from the directory, unless it is another's by now.
func (s *Server) unlink() {
	var st unix.Stat_t
	if err := unix.Fstatat(s.dir, SocketName, &st, unix.AT_SYMLINK_NOFOLLOW); err == nil && st.Dev == s.dev && st.Ino == s.ino {
		_ = unix.Unlinkat(s.dir, SocketName, 0) // what stays refuses connections, and the next server replaces it
	}
}

// Close takes the socket away and ends the contexts and receives of all
// handlers. It does not wait for them: Serve does. Further calls do nothing.
func (s *Server) Close() error {
	s.once.Do(func() {
		close(s.closed)
		s.unlink()
		if s.file != nil {
			s.err = s.file.Close()
		} else if s.fd >= 0 {
			s.err = os.NewSyscallError("close", unix.Close(s.fd))
		}
		s.err = errors.Join(s.err, os.NewSyscallError("close", unix.Close(s.dir)))
	})
	return s.err
}

// Serve answers clients until Close, or until ctx ends, which closes the
// server. It returns when its last handler has.
func (s *Server) Serve(ctx context.Context, handle Handler) error {
	ctx, cancel := context.WithCancel(ctx)
	serving := serving{server: s, handle: handle, slots: make(chan struct{}, maxConns)}
	stop := context.AfterFunc(ctx, func() { _ = s.Close() }) // Close keeps its error
	defer stop()
	defer serving.clients.Wait()
	defer cancel()
	for {
		fd, err := s.accept(ctx)
		if err != nil {
			select {
			case <-s.closed:
				return nil
			default:
				return errors.Join(fmt.Errorf("control socket: %w", err), s.Close())
			}
		}
		serving.admit(ctx, fd)
	}
}

// accept waits for a client. Want of descriptors or memory passes when other
// clients leave, and is no reason to stop serving.
func (s *Server) accept(ctx context.Context) (int, error) {
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		fd, failed := -1, error(nil)
		err := s.raw.Read(func(listener uintptr) bool {
			failed = again(func() (err error) {
				fd, _, err = unix.Accept4(int(listener), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
				return err
			})
			return !errors.Is(failed, unix.EAGAIN)
		})
		if err != nil || failed == nil {
			return fd, err
		}
		switch {
		case errors.Is(failed, unix.ECONNABORTED):
			continue
		case errors.Is(failed, unix.EMFILE), errors.Is(failed, unix.ENFILE), errors.Is(failed, unix.ENOBUFS), errors.Is(failed, unix.ENOMEM):
		default:
			return -1, os.NewSyscallError("accept4", failed)
		}
		select {
		case <-ctx.Done():
			return -1, ctx.Err()
		case <-s.closed:
			return -1, os.ErrClosed
		case <-time.After(pause):
		}
	}
}
