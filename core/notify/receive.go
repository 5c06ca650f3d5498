package notify

import (
	"errors"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A sandbox may say a hundred things a second, and a hundred more at once. Whoever
// says more waits for it in its own send(2): what it writes costs this process no more.
const (
	pace  = 10 * time.Millisecond
	burst = time.Second
)

// Receiver reads a socket that a sandbox writes to.
type Receiver struct {
	reader thread
	mu     sync.Mutex
	fd     int
	over   bool // the descriptor is not ours any more
	stop   bool
}

// Receive calls take with each message that says something, from its own goroutine,
// until Close. The descriptor is the Receiver's.
func Receive(fd int, take func(Message)) *Receiver {
	r := &Receiver{fd: fd}
	go r.run(take)
	return r
}

func (r *Receiver) run(take func(Message)) {
	r.reader.begin()
	defer r.reader.end()
	defer r.end()
	buf := make([]byte, MaxSize+1)
	var due time.Time
	for !r.stopped() {
		fds := []unix.PollFd{{Fd: int32(r.fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
		// No room for descriptors, so the kernel closes those that come along. That is
		// what sd_notify_barrier(3) waits for.
		n, _, flags, _, err := unix.Recvmsg(r.fd, buf, nil, unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return
		}
		now := time.Now()
		if due.Before(now) {
			due = now
		}
		due = due.Add(pace)
		time.Sleep(due.Sub(now) - burst)
		if flags&unix.MSG_TRUNC != 0 {
			continue
		}
		if m := Parse(buf[:n]); m != (Message{}) && !r.stopped() {
			take(m)
		}
	}
}

func (r *Receiver) stopped() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stop
}

func (r *Receiver) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.over = true
	_ = unix.Close(r.fd)
}

// Close ends the receiving, and does not wait for it: whoever has taken a message may be
// busy with it. The socket is let go of at once all the same, and with it whatever is still
// in its queue; only its number stays until the reader is back.
//
// The kernel closes a descriptor that came in a message on the thread that reads it, or that
// lets go of the queue, and a sandbox can make that take as long as it likes (SO_LINGER,
// socket(7)). Both threads are interrupted until they are back.
func (r *Receiver) Close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over || r.stop {
		return
	}
	r.stop = true
	_ = unix.Shutdown(r.fd, unix.SHUT_RDWR) // wakes poll(2)
	go r.reader.interrupt()
	null, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return // the reader closes it, once it is back
	}
	var own thread
	own.begin()
	go own.interrupt()
	_ = unix.Dup3(null, r.fd, unix.O_CLOEXEC)
	own.end()
	_ = unix.Close(null)
}

// thread is one that a system call may hold up.
type thread struct {
	mu sync.Mutex
	id int // 0: it is at something else
}

// begin is for the goroutine that is going to be held up.
func (t *thread) begin() {
	runtime.LockOSThread()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.id = unix.Gettid()
}

func (t *thread) end() {
	t.mu.Lock()
	t.id = 0
	t.mu.Unlock()
	runtime.UnlockOSThread()
}

// interrupt sends signals until the thread is back: one that comes just before the wait
// interrupts nothing. Go's runtime preempts by SIGURG, has a handler for it, and does not
// mind one that it has not sent.
func (t *thread) interrupt() {
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		time.Sleep(pause)
		if !t.signal() {
			return
		}
	}
}

func (t *thread) signal() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.id != 0 && unix.Tgkill(os.Getpid(), t.id, unix.SIGURG) == nil
}
