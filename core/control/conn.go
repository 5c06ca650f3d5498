package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/internal/failpoint"
)

// sendLimit bounds how long a peer may leave its messages unread.
const sendLimit = 5 * time.Second

// Conn is one end of a connection. Sends are atomic and may come from several
// goroutines; receives belong to one at a time.
type Conn struct {
	file *os.File
	raw  syscall.RawConn
	peer unix.Ucred
	// serving is set at the server's end, which answers what it cannot read.
	serving bool

	sendLimit time.Duration
	sending   sync.Mutex

	ends sync.Mutex
	// over is set when this side has ended the receives, and keeps a later
	// deadline from reviving them.
	over   bool
	closed atomic.Bool
}

// newConn takes over a connected, non-blocking socket: the runtime's poller
// waits for it, and an idle connection holds no thread.
func newConn(fd int, serving bool) (*Conn, error) {
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		_ = unix.Close(fd)
		return nil, os.NewSyscallError("getsockopt SO_PEERCRED", err)
	}
	file, raw, err := pollable(fd)
	if err != nil {
		return nil, err
	}
	return &Conn{file: file, raw: raw, peer: *cred, serving: serving, sendLimit: sendLimit}, nil
}

func pollable(fd int) (*os.File, syscall.RawConn, error) {
	file := os.NewFile(uintptr(fd), SocketName)
	if file == nil {
		return nil, nil, os.ErrInvalid
	}
	raw, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return nil, nil, err
	}
	return file, raw, nil
}

// Peer tells who was at the other end when it connected, or listened.
func (c *Conn) Peer() (pid, uid, gid int) {
	return int(c.peer.Pid), int(c.peer.Uid), int(c.peer.Gid)
}

// Close ends the connection; further calls do nothing.
func (c *Conn) Close() error {
	c.interrupt()
	c.closed.Store(true)
	if err := c.file.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// cut ends the connection for both sides and lets its descriptor live: a
// waiting Send or Recv comes back.
func (c *Conn) cut() {
	_ = c.raw.Control(func(fd uintptr) {
		_ = unix.Shutdown(int(fd), unix.SHUT_RDWR) // ENOTCONN: the peer was first
	})
}

func (c *Conn) readBy(t time.Time) error {
	c.ends.Lock()
	defer c.ends.Unlock()
	if c.over {
		return os.ErrClosed
	}
	return c.file.SetReadDeadline(t)
}

// interrupt ends receives and leaves sends, so that an answer can still go out.
func (c *Conn) interrupt() {
	c.ends.Lock()
	defer c.ends.Unlock()
	c.over = true
	_ = c.file.SetReadDeadline(time.Unix(1, 0)) // it fails if closed already, when nobody waits
}

func (c *Conn) interrupted() bool {
	c.ends.Lock()
	defer c.ends.Unlock()
	return c.over
}

// Send sends one message; body is nil for none. The descriptors stay the
// caller's. It waits no longer than a few seconds for a peer that does not
// read, and then cuts it off. ErrGone does not mean that there is no answer.
func (c *Conn) Send(kind string, body any, fds ...*os.File) error {
	b, err := encode(kind, body)
	if err != nil {
		return err
	}
	if len(fds) > MaxFDs {
		return fmt.Errorf("control message %q with %d descriptors: at most %d can be sent", kind, len(fds), MaxFDs)
	}
	oob, err := rightsOf(fds)
	if err != nil {
		return fmt.Errorf("control message %q: %w", kind, err)
	}
	defer runtime.KeepAlive(fds)
	failpoint.Hit("sending " + kind)
	if err := c.sendBytes(b, oob); err != nil {
		return fmt.Errorf("control message %q: %w", kind, err)
	}
	failpoint.Hit("sent " + kind)
	return nil
}

// Fail answers a request with an error: err as it is if it is an *Error, else
// as one that failed.
func (c *Conn) Fail(err error) error {
	var e *Error
	if !errors.As(err, &e) {
		e = refuse(CodeFailed, "%v", err)
		var hinted interface{ Remedy() string }
		if errors.As(err, &hinted) {
			e.Hint = hinted.Remedy()
		}
	}
	return c.Send(KindError, e)
}

// rightsOf does not use Fd, which makes a descriptor block: with it all who
// share its open file, another process among them.
func rightsOf(files []*os.File) ([]byte, error) {
	if len(files) == 0 {
		return nil, nil
	}
	fds := make([]int, 0, len(files))
	for _, f := range files {
		raw, err := f.SyscallConn()
		if err == nil {
			err = raw.Control(func(fd uintptr) { fds = append(fds, int(fd)) })
		}
		if err != nil {
			return nil, fmt.Errorf("descriptor to send: %w", err)
		}
	}
	return unix.UnixRights(fds...), nil
}

func (c *Conn) sendBytes(b, oob []byte) error {
	c.sending.Lock()
	defer c.sending.Unlock()
	var sent error
	err := c.file.SetWriteDeadline(time.Now().Add(c.sendLimit))
	if err == nil {
		err = c.raw.Write(func(fd uintptr) bool {
			sent = again(func() error { return unix.Sendmsg(int(fd), b, oob, nil, unix.MSG_NOSIGNAL) })
			return !errors.Is(sent, unix.EAGAIN)
		})
	}
	switch {
	case err != nil && c.closed.Load():
		return os.ErrClosed
	case errors.Is(err, os.ErrDeadlineExceeded):
		c.cut()
		return fmt.Errorf("the other side has not read for %v: %w", c.sendLimit, err)
	case err != nil:
		return err
	case errors.Is(sent, unix.EPIPE), errors.Is(sent, unix.ECONNRESET), errors.Is(sent, unix.ENOTCONN):
		return ErrGone
	case errors.Is(sent, unix.EMSGSIZE):
		// The host's socket buffers are smaller than the default.
		return &TooLargeError{Size: len(b), Max: c.sendBuffer()}
	}
	return os.NewSyscallError("sendmsg", sent)
}

func (c *Conn) sendBuffer() (size int) {
	_ = c.raw.Control(func(fd uintptr) {
		size, _ = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF) // 0 is said for want of better
	})
	return size
}

// again repeats a system call that a signal has interrupted; Go's own
// preemption sends them.
func again(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// Recv receives one message and its descriptors, close-on-exec, now the
// caller's. At the end of the connection the error is io.EOF, and os.ErrClosed
// if it was ended here. At the server's end, what is not a message is answered
// with an error that says so before it comes back as an *Error, and the
// connection is over.
func (c *Conn) Recv() (Message, []*os.File, error) {
	m, files, err := c.receive()
	var e *Error
	if errors.As(err, &e) && c.serving {
		_ = c.Fail(e) // the peer may be gone; it is cut off either way
		c.cut()
	}
	return m, files, err
}

// receive takes an error of any version from a server, and no request but one
// of ours from a client.
func (c *Conn) receive() (Message, []*os.File, error) {
	var p packet
	err := c.raw.Read(func(fd uintptr) bool {
		p = receivePacket(int(fd))
		return !errors.Is(p.err, unix.EAGAIN)
	})
	if err != nil {
		if c.interrupted() {
			err = os.ErrClosed
		}
		return Message{}, nil, fmt.Errorf("control message: %w", err)
	}
	m, err := p.message()
	if err == nil && c.serving && m.V != Version {
		err = otherVersion(m.V)
	}
	if err != nil {
		CloseAll(p.files)
		return Message{}, nil, err
	}
	failpoint.Hit("received " + m.Kind)
	return m, p.files, nil
}

// Call sends a request and receives its one answer into answer, unless that is
// nil. An error that the server answers with comes back as an *Error. A Call
// that its context ended has ended the connection, too, and with it the request.
func (c *Conn) Call(ctx context.Context, kind string, body, answer any, fds ...*os.File) error {
	stop := context.AfterFunc(ctx, c.cut)
	defer stop()
	err := c.exchange(kind, body, answer, fds)
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("control message %q: %w", kind, context.Cause(ctx))
	}
	return err
}

func (c *Conn) exchange(kind string, body, answer any, fds []*os.File) error {
	m, files, err := c.Ask(kind, body, fds...)
	CloseAll(files)
	switch {
	case err != nil:
		return err
	case m.Kind != KindOK:
		return refuse(CodeVersion, "message %q: the answer is a message %q, of another release perhaps", kind, m.Kind)
	case answer == nil:
		return nil
	}
	return m.Decode(answer)
}

// Ask begins a longer request: it sends it and receives the first answer, whose
// descriptors are the caller's. An answer that is an error comes back as an *Error.
func (c *Conn) Ask(kind string, body any, fds ...*os.File) (Message, []*os.File, error) {
	sent := c.Send(kind, body, fds...)
	if sent != nil && !errors.Is(sent, ErrGone) {
		return Message{}, nil, sent
	}
	// A server that refuses a client does not wait for its request.
	m, files, err := c.Recv()
	switch {
	case errors.Is(err, io.EOF):
		err = fmt.Errorf("control message %q: no answer: %w", kind, ErrGone)
	case err != nil:
	case m.Kind == KindError:
		err = m.Err()
	default:
		err = sent
	}
	if err != nil {
		CloseAll(files)
		return Message{}, nil, err
	}
	return m, files, nil
}

// CloseAll closes descriptors that are not wanted after all; those that
// somebody took over are nil.
func CloseAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
