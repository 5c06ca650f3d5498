// Package descriptors carries open descriptors beside gRPC, which cannot. A host
// makes a Pair before it starts a plugin, lets the plugin inherit one end, and sends
// on the other, before a call, what the call speaks of; the id of the request says
// which belongs to which. Authors find them in the request.
//
// The two ends are a pair of sequenced-packet sockets: a message arrives whole or not
// at all, and nobody else can have connected to it (unix(7), SCM_RIGHTS).
package descriptors

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// Bounds of one message. The kernel's own is 253 descriptors.
const (
	MaxFiles = 250
	MaxTag   = 128
)

// A message is a byte for its form, one for the number of descriptors, and the tag.
// The number is there because the kernel gives fewer descriptors than were sent to
// who has no room for them.
const (
	form   = 1
	header = 2
)

// Sender is a host's end.
type Sender struct {
	conn *net.UnixConn
	mu   sync.Mutex // one message has the deadline at a time
}

// Pair makes both ends. The file is for the plugin to inherit under the number that
// handshake.EnvDescriptorsFD tells; the caller closes it when the plugin has been
// started, or its end would not be noticed.
func Pair() (*Sender, *os.File, error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_SEQPACKET|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "descriptors"), os.NewFile(uintptr(fds[1]), "descriptors")
	defer ours.Close()
	conn, err := Conn(ours)
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return &Sender{conn: conn}, theirs, nil
}

// Conn takes a copy of an end of a pair. It fails for what is no such socket.
func Conn(f *os.File) (*net.UnixConn, error) {
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	c, ok := conn.(*net.UnixConn)
	if !ok || c.LocalAddr().Network() != "unixpacket" {
		conn.Close()
		return nil, errors.New("it is no sequenced-packet unix socket")
	}
	return c, nil
}

// ErrClosed is a side channel whose other end is gone.
var ErrClosed = errors.New("the other end of the side channel for descriptors is closed")

// Send sends descriptors under a tag. The files stay the caller's. It waits while the
// plugin does not read, and no longer than the context.
func (s *Sender) Send(ctx context.Context, tag string, files []*os.File) error {
	if tag == "" || len(tag) > MaxTag {
		return fmt.Errorf("descriptors under %q: a tag has 1 to %d bytes", tag, MaxTag)
	}
	if len(files) == 0 || len(files) > MaxFiles {
		return fmt.Errorf("%d descriptors at once: 1 to %d can be sent", len(files), MaxFiles)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	fired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = s.conn.SetWriteDeadline(time.Unix(1, 0)) // it fails on a closed one, whose Write fails, too
		close(fired)
	})
	err := withNumbers(files, nil, func(fds []int) error {
		_, _, err := s.conn.WriteMsgUnix(append([]byte{form, byte(len(fds))}, tag...), syscall.UnixRights(fds...), nil)
		return err
	})
	if !stop() {
		<-fired
		_ = s.conn.SetWriteDeadline(time.Time{}) // as above
	}
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("sending descriptors: %w", ctx.Err())
	case errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.ECONNRESET), errors.Is(err, net.ErrClosed):
		return ErrClosed
	default:
		return fmt.Errorf("sending descriptors: %w", err)
	}
}

// withNumbers keeps all files open while f works. File.Fd would, besides, change how
// the other holders of a file read it: it takes O_NONBLOCK away.
func withNumbers(files []*os.File, fds []int, f func([]int) error) error {
	if len(files) == 0 {
		return f(fds)
	}
	raw, err := files[0].SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = withNumbers(files[1:], append(fds, int(fd)), f) }); err != nil {
		return err
	}
	return inner
}

// Close ends the channel. What the plugin has not taken yet it can still take.
func (s *Sender) Close() error { return s.conn.Close() }
