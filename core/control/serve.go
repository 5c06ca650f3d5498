package control

import (
	"context"
	"errors"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// serving is one call of Serve, the owner of its goroutines.
type serving struct {
	server  *Server
	handle  Handler
	slots   chan struct{}
	clients sync.WaitGroup
}

// admit decides about a new connection without waiting for it: whoever is
// turned away takes no place, and no time of others.
func (s *serving) admit(ctx context.Context, fd int) {
	c, err := newConn(fd, true)
	if err != nil {
		return // the client went at once, or sees the end of its connection
	}
	c.sendLimit = s.server.sendLimit
	// The socket's mode and its directory keep others away already; this holds
	// when a user has opened either.
	if _, uid, _ := c.Peer(); uid != 0 && uid != s.server.uid {
		turnAway(c, refuse(CodeDenied, "this supervisor serves uid %d and root, not uid %d", s.server.uid, uid))
		return
	}
	select {
	case s.slots <- struct{}{}:
	default:
		turnAway(c, refuse(CodeBusy, "this supervisor serves %d connections already", cap(s.slots)))
		return
	}
	s.clients.Go(func() {
		defer func() { <-s.slots }()
		defer c.Close()
		s.serve(ctx, c)
	})
}

// turnAway sends to a socket whose buffer is empty, so that it cannot wait.
func turnAway(c *Conn, why *Error) {
	_ = c.Fail(why) // who has gone needs no answer
	c.Close()
}

func (s *serving) serve(ctx context.Context, c *Conn) {
	defer context.AfterFunc(ctx, c.interrupt)()
	if err := c.readBy(time.Now().Add(s.server.helloLimit)); err != nil {
		return
	}
	m, fds, err := c.Recv()
	if errors.Is(err, os.ErrDeadlineExceeded) {
		_ = c.Fail(refuse(CodeBadRequest, "no request has come within %v", s.server.helloLimit)) // cut off either way
	}
	if err != nil {
		return
	}
	defer func() { CloseAll(fds) }()
	if err := c.readBy(time.Time{}); err != nil {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	watch, err := watchEnd(c, cancel)
	if err != nil {
		_ = c.Fail(err) // who has gone needs no answer
		return
	}
	defer watch.stop()
	s.handle(ctx, c, m, fds)
}

// watch sees a client's end while its handler does something else. The socket
// has a second descriptor for it: a descriptor has one reader at a time in the
// poller, and that is Recv.
type watch struct {
	file *os.File
	done chan struct{}
}

func watchEnd(c *Conn, gone func()) (*watch, error) {
	fd, failed := -1, error(nil)
	err := c.raw.Control(func(socket uintptr) {
		fd, failed = unix.FcntlInt(socket, unix.F_DUPFD_CLOEXEC, 0)
	})
	if err = errors.Join(err, os.NewSyscallError("fcntl F_DUPFD_CLOEXEC", failed)); err != nil {
		return nil, err
	}
	file, raw, err := pollable(fd)
	if err != nil {
		return nil, err
	}
	w := &watch{file: file, done: make(chan struct{})}
	go w.run(raw, gone)
	return w, nil
}

func (w *watch) run(raw syscall.RawConn, gone func()) {
	defer close(w.done)
	// POLLHUP and not POLLRDHUP: a client that has shut down its sending side
	// waits for the answer.
	if err := raw.Read(func(fd uintptr) bool { return hungUp(int(fd), unix.POLLHUP) }); err == nil {
		gone()
	}
}

func (w *watch) stop() {
	w.file.Close()
	<-w.done
}
