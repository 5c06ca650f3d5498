// Package tracer answers the system calls of processes under a filter that asks for an answer to each of them
// (seccomp_unotify(2)). What the answer is, somebody else decides.
package tracer

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Flags are the SECCOMP_FILTER_FLAG_* that such a filter is loaded with.
func Flags() uint32 {
	const (
		listener = unix.SECCOMP_FILTER_FLAG_NEW_LISTENER
		killable = listener | unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
	)
	// The kernel looks at the flags before it reads the filter, of which there is none. Without the second flag, before
	// Linux 5.19, a call that a signal interrupts is asked for anew, and counted twice.
	if _, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, killable, 0); e == unix.EFAULT {
		return killable
	}
	return listener
}

// Decide tells what becomes of a call: 0 lets it through.
type Decide func(number uint32, args [6]uint64) syscall.Errno

// Tracer answers the calls of the processes that it follows.
type Tracer struct {
	decide Decide
	failed func(error)

	mu        sync.Mutex
	epoll     int // of the listeners, and of wake; -1 before the first
	wake      int
	listeners map[int]bool
	closed    bool
	err       error
	serving   sync.WaitGroup
}

// New makes one that follows nobody yet. If a listener is lost while somebody could call, failed is called with the reason:
// its processes get ENOSYS for every call from then on, and cannot even end.
func New(decide Decide, failed func(error)) *Tracer {
	return &Tracer{decide: decide, failed: failed, epoll: -1, wake: -1, listeners: map[int]bool{}}
}

// ErrClosed is what Follow says after Close.
var ErrClosed = errors.New("the trace has ended")

// Follow takes the listener of a process's filter, which is its descriptor fd, and answers the calls of the process and
// of all that come of it.
func (t *Tracer) Follow(pidfd, fd int) error {
	got, _, e := unix.Syscall(unix.SYS_PIDFD_GETFD, uintptr(pidfd), uintptr(fd), 0)
	if e != 0 {
		return os.NewSyscallError("pidfd_getfd", e)
	}
	listener := int(got)
	err := t.add(listener, fd)
	if err != nil {
		_ = unix.Close(listener)
	}
	return err
}

func (t *Tracer) add(listener, fd int) error {
	// No call has the number 0. Any other file knows no such question.
	var id uint64
	if e := control(listener, unix.SECCOMP_IOCTL_NOTIF_ID_VALID, unsafe.Pointer(&id)); e != 0 && e != unix.ENOENT {
		return fmt.Errorf("descriptor %d is not the listener of a filter: %w", fd, e)
	}
	// Whoever calls is about to sleep, and whoever answers may have its processor (Linux 6.6).
	_, _, _ = unix.Syscall(unix.SYS_IOCTL, uintptr(listener), unix.SECCOMP_IOCTL_NOTIF_SET_FLAGS, unix.SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return ErrClosed
	}
	if err := t.begin(); err != nil {
		return err
	}
	if err := watch(t.epoll, listener); err != nil {
		return err
	}
	t.listeners[listener] = true
	return nil
}

// begin makes what the listeners are waited for with. Not Go's poller: an edge that is lost, or the error that the kernel
// gives a poll that a signal has interrupted (seccomp_notify_poll()), is for good there.
func (t *Tracer) begin() (err error) {
	if t.epoll >= 0 {
		return nil
	}
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("epoll_create1", err)
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return errors.Join(os.NewSyscallError("eventfd2", err), unix.Close(epoll))
	}
	if err := watch(epoll, wake); err != nil {
		return errors.Join(err, unix.Close(wake), unix.Close(epoll))
	}
	t.epoll, t.wake = epoll, wake
	t.serving.Go(t.serve)
	return nil
}

func watch(epoll, fd int) error {
	return os.NewSyscallError("epoll_ctl", unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}))
}

// Close ends the answers, and gives what kept some call from its own. Processes that are followed then are to be dead.
func (t *Tracer) Close() error {
	t.mu.Lock()
	t.closed = true
	if t.epoll < 0 {
		t.mu.Unlock()
		return nil
	}
	_, err := unix.Write(t.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	t.mu.Unlock()
	if err != nil {
		return os.NewSyscallError("write", err)
	}
	t.serving.Wait()
	for fd := range t.listeners {
		_ = unix.Close(fd)
	}
	_ = unix.Close(t.wake)
	_ = unix.Close(t.epoll)
	return t.err
}

// The kernel's struct seccomp_notif and seccomp_notif_resp (seccomp_unotify(2)).
type (
	notice struct {
		id     uint64
		pid    uint32
		flags  uint32
		number int32
		arch   uint32
		ip     uint64
		args   [6]uint64
	}
	answer struct {
		id    uint64
		value int64
		errno int32
		flags uint32
	}
)

// serve answers until it is woken up.
func (t *Tracer) serve() {
	events := make([]unix.EpollEvent, 16)
	for {
		n, err := unix.EpollWait(t.epoll, events, -1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			t.lost(os.NewSyscallError("epoll_wait", err))
			return
		}
		for _, ev := range events[:max(n, 0)] {
			fd := int(ev.Fd)
			switch {
			case fd == t.wake:
				return
			case ev.Events&unix.EPOLLIN != 0:
				if err := t.one(fd); err != nil {
					t.forget(fd)
					t.lost(err)
				}
			case ev.Events&unix.EPOLLHUP != 0: // the last process under the filter has ended
				t.forget(fd)
			}
			// Else the look at the listener was interrupted by a signal: another one follows.
		}
	}
}

func (t *Tracer) forget(fd int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.listeners, fd)
	_ = unix.Close(fd)
}

func (t *Tracer) lost(err error) {
	t.mu.Lock()
	first := t.err == nil
	if first {
		t.err = err
	}
	t.mu.Unlock()
	if first {
		t.failed(err)
	}
}

// one answers one call.
func (t *Tracer) one(fd int) error {
	var n notice
	switch e := control(fd, unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(&n)); e {
	case 0:
	case unix.ENOENT: // who called has been killed
		return nil
	default:
		return fmt.Errorf("receiving a call: %w", e)
	}
	a := answer{id: n.id}
	if e := t.decide(uint32(n.number), n.args); e != 0 {
		a.errno = -int32(e)
	} else {
		a.flags = unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE
	}
	if e := control(fd, unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&a)); e != 0 && e != unix.ENOENT {
		return fmt.Errorf("answering a call: %w", e)
	}
	return nil
}

// control asks a listener something. A signal to this process may keep the kernel from its lock, and nothing has been done
// then.
func control(fd int, request uintptr, what unsafe.Pointer) syscall.Errno {
	for {
		if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(what)); e != unix.EINTR {
			return e
		}
	}
}
