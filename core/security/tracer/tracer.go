// Package tracer answers the system calls of processes under a filter that asks for an answer to each of them
// (seccomp_unotify(2)). What the answer is, somebody else decides.
package tracer

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
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

	mu        sync.Mutex
	listeners []*os.File
	closed    bool
	err       error
	serving   sync.WaitGroup
}

// New makes one that follows nobody yet.
func New(decide Decide) *Tracer { return &Tracer{decide: decide} }

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
	// No call has the number 0. Any other file knows no such question.
	var id uint64
	e = control(listener, unix.SECCOMP_IOCTL_NOTIF_ID_VALID, unsafe.Pointer(&id))
	if e != 0 && e != unix.ENOENT {
		_ = unix.Close(listener)
		return fmt.Errorf("descriptor %d is not the listener of a filter: %w", fd, e)
	}
	// Whoever calls is about to sleep, and whoever answers may have its processor (Linux 6.6).
	_, _, _ = unix.Syscall(unix.SYS_IOCTL, got, unix.SECCOMP_IOCTL_NOTIF_SET_FLAGS, unix.SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP)
	if err := unix.SetNonblock(listener, true); err != nil { // for Go's poller: the requests below wait all the same
		_ = unix.Close(listener)
		return os.NewSyscallError("fcntl", err)
	}
	f := os.NewFile(got, "seccomp listener")
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return errors.Join(ErrClosed, f.Close())
	}
	t.listeners = append(t.listeners, f)
	t.serving.Go(func() { t.ended(f, t.serve(f)) })
	return nil
}

func (t *Tracer) ended(f *os.File, err error) {
	_ = f.Close() // calls that come yet fail (ENOSYS)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.listeners = slices.DeleteFunc(t.listeners, func(o *os.File) bool { return o == f })
	if !t.closed && t.err == nil {
		t.err = err
	}
}

// Close ends the answers, and gives what kept some call from its own. Processes that are followed then are to be dead.
func (t *Tracer) Close() error {
	t.mu.Lock()
	t.closed = true
	for _, f := range t.listeners {
		_ = f.Close()
	}
	t.mu.Unlock()
	t.serving.Wait()
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

// serve answers until nobody is left who could call.
func (t *Tracer) serve(f *os.File) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var served error
	err = conn.Read(func(fd uintptr) bool {
		for {
			fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			n, err := unix.Poll(fds, 0)
			switch {
			case errors.Is(err, unix.EINTR):
				continue
			case err != nil:
				served = os.NewSyscallError("poll", err)
				return true
			case n > 0 && fds[0].Revents&unix.POLLIN != 0:
				if served = t.one(int(fd)); served != nil {
					return true
				}
			default:
				return n > 0 // the last process under the filter has ended, or there is nothing yet
			}
		}
	})
	if errors.Is(err, fs.ErrClosed) {
		return nil
	}
	return errors.Join(err, served)
}

// one answers one call.
func (t *Tracer) one(fd int) error {
	var n notice
	switch e := control(fd, unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(&n)); e {
	case 0:
	case unix.ENOENT, unix.EINTR: // who called has been killed; or the call comes again
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

func control(fd int, request uintptr, what unsafe.Pointer) syscall.Errno {
	_, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(what))
	return e
}
