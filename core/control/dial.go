package control

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// dialLimit bounds the wait for a place in the server's queue, which a server
// that runs makes room in at once.
const dialLimit = 5 * time.Second

// ForeignError is a socket that another user listens on.
type ForeignError struct {
	Path string
	UID  int
}

func (e *ForeignError) Error() string {
	return fmt.Sprintf("%s: uid %d listens there, and neither we nor root", e.Path, e.UID)
}

// Dial connects to the supervisor whose sandbox has the directory dir. It is
// ErrNoSupervisor if nobody listens there.
func Dial(ctx context.Context, dir string) (*Conn, error) {
	path := filepath.Join(dir, SocketName)
	c, err := dial(ctx, path)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) {
		err = ErrNoSupervisor
	}
	if err != nil {
		return nil, fmt.Errorf("control socket %q: %w", path, err)
	}
	if _, uid, _ := c.Peer(); uid != 0 && uid != os.Geteuid() {
		c.Close()
		return nil, &ForeignError{Path: path, UID: uid}
	}
	return c, nil
}

func dial(ctx context.Context, path string) (*Conn, error) {
	// The socket's own handle: an address has room for 107 bytes of path, and
	// what was looked at is what is connected to.
	at, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("open", err)
	}
	defer unix.Close(at)
	var st unix.Stat_t
	if err := unix.Fstat(at, &st); err != nil {
		return nil, os.NewSyscallError("fstat", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return nil, errors.New("not a socket")
	}
	fd, err := newSocket()
	if err != nil {
		return nil, err
	}
	if err := connect(ctx, fd, fmt.Sprintf("/proc/self/fd/%d", at)); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return newConn(fd, false)
}

func newSocket() (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	return fd, os.NewSyscallError("socket", err)
}

// connect waits by asking again: a non-blocking AF_UNIX socket does not tell
// when the server's queue has room (connect(2), EAGAIN).
func connect(ctx context.Context, fd int, path string) error {
	end := time.Now().Add(dialLimit)
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		err := again(func() error { return unix.Connect(fd, &unix.SockaddrUnix{Name: path}) })
		if !errors.Is(err, unix.EAGAIN) {
			return os.NewSyscallError("connect", err)
		}
		if time.Now().After(end) {
			return refuse(CodeBusy, "its supervisor has taken no connection for %v", dialLimit)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pause):
		}
	}
}
