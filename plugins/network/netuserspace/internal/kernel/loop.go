package kernel

import (
	"container/list"
	"errors"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// loop waits for many descriptors in one thread. What is done there is done in the
// order in which it happens and needs no locks, and a byte that goes through takes one
// wake-up: goroutines would take one each, and another processor to look for them.
// Nothing in it may wait for anybody.
type loop struct {
	epoll int
	bell  int // rings for what is posted
	by    map[int32]handler
	soon  list.List // of alarm, in their order
	pages []byte    // for what is read

	mu     sync.Mutex
	posted []func()
	stop   bool // what is posted is done by giveUp
	gone   bool // nothing is any more
}

// handler is told what has happened to a descriptor of its own.
type handler interface {
	ready(fd int, events uint32)
	// drop gives up what it has. It is called at the end of the loop.
	drop()
}

// patience is how long the loop waits for what others have to do. One length for all
// keeps the alarms in order.
const patience = 10 * time.Second

type alarm struct {
	at   time.Time
	ring func()
}

// largest is what is read at once.
const largest = 64 << 10

func newLoop() (*loop, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	bell, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		_ = unix.Close(epoll)
		return nil, os.NewSyscallError("eventfd", err)
	}
	l := &loop{epoll: epoll, bell: bell, by: make(map[int32]handler), pages: make([]byte, largest)}
	if err := l.watch(bell, unix.EPOLLIN, bellHandler{l}); err != nil {
		l.giveUp()
		return nil, err
	}
	return l, nil
}

// watch has the handler told of the events, as long as they hold.
func (l *loop) watch(fd int, events uint32, h handler) error {
	if err := unix.EpollCtl(l.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events, Fd: int32(fd)}); err != nil {
		return os.NewSyscallError("epoll_ctl", err)
	}
	l.by[int32(fd)] = h
	return nil
}

// change changes what a descriptor is watched for. Errors and hang-ups it always is.
func (l *loop) change(fd int, events uint32) {
	_ = unix.EpollCtl(l.epoll, unix.EPOLL_CTL_MOD, fd, &unix.EpollEvent{Events: events, Fd: int32(fd)})
}

// forget is for a descriptor that stays open.
func (l *loop) forget(fd int) {
	_ = unix.EpollCtl(l.epoll, unix.EPOLL_CTL_DEL, fd, nil)
	delete(l.by, int32(fd))
}

// close closes a descriptor, which nobody else has.
func (l *loop) close(fd int) {
	delete(l.by, int32(fd))
	_ = unix.Close(fd)
}

// later has something done when patience is at its end, unless it is called off.
func (l *loop) later(do func()) *list.Element {
	return l.soon.PushBack(alarm{time.Now().Add(patience), do})
}

// callOff is for what later gave; nil is nothing.
func (l *loop) callOff(e *list.Element) {
	if e != nil {
		l.soon.Remove(e)
	}
}

// first is the next alarm.
func (l *loop) first() (e *list.Element, a alarm) {
	if e = l.soon.Front(); e != nil {
		a, _ = e.Value.(alarm)
	}
	return e, a
}

// post has something done in the loop, or at its end.
func (l *loop) post(do func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.gone {
		return
	}
	l.posted = append(l.posted, do)
	if len(l.posted) == 1 {
		l.ring()
	}
}

// ring is called with the lock.
func (l *loop) ring() {
	_, _ = unix.Write(l.bell, []byte{1, 0, 0, 0, 0, 0, 0, 0})
}

// end ends the loop.
func (l *loop) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stop = true
	l.ring()
}

// take gives what was posted, and whether the loop is to end.
func (l *loop) take() (posted []func(), stop bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	posted, l.posted = l.posted, nil
	return posted, l.stop
}

type bellHandler struct{ *loop }

func (b bellHandler) ready(int, uint32) {
	var count [8]byte
	_, _ = unix.Read(b.bell, count[:])
}

func (bellHandler) drop() {}

// A loop looks for this long whether more comes before it sleeps: to be woken on
// an idle processor takes about as long as all else that a byte needs from one end to the
// other. Each look in vain has twice as many turns go without one, up to the most, so that
// one whose events are far apart sleeps as any does.
const (
	eagerness = 50 * time.Microsecond
	mostTurns = 256
)

// looker says when to look.
type looker struct{ skip, vain int }

// look looks for events, and lets others have the processor meanwhile.
func (k *looker) look(epoll int, events []unix.EpollEvent) int {
	if k.skip > 0 {
		k.skip--
		return 0
	}
	for end := time.Now().Add(eagerness); time.Now().Before(end); {
		if n, _ := unix.EpollWait(epoll, events, 0); n > 0 {
			k.vain = 0
			return n
		}
		_, _, _ = unix.Syscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
	}
	k.vain = min(max(1, 2*k.vain), mostTurns)
	k.skip = k.vain
	return 0
}

// run serves until end is called.
func (l *loop) run() {
	events := make([]unix.EpollEvent, 128)
	var k looker
	for {
		n, err := k.look(l.epoll, events), error(nil)
		if n == 0 {
			n, err = unix.EpollWait(l.epoll, events, l.wait())
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			l.end() // it is a descriptor of our own
		}
		for _, e := range events[:max(n, 0)] {
			// One that was closed a moment ago is nobody's, or its successor's, who looks.
			if h := l.by[e.Fd]; h != nil {
				h.ready(int(e.Fd), e.Events)
			}
		}
		posted, stop := l.take()
		for _, do := range posted {
			do()
		}
		if stop {
			return
		}
		for e, a := l.first(); e != nil && !time.Now().Before(a.at); e, a = l.first() {
			l.soon.Remove(e)
			a.ring()
		}
	}
}

// giveUp gives up all that a loop has which does not run, any more or at all. Nobody
// else posts then but what may be lost.
func (l *loop) giveUp() {
	l.mu.Lock()
	l.gone = true
	posted := l.posted
	l.mu.Unlock()
	for _, do := range posted {
		do()
	}
	for _, h := range l.by {
		h.drop()
	}
	_ = unix.Close(l.bell)
	_ = unix.Close(l.epoll)
}

// wait is how long until the next alarm, in milliseconds.
func (l *loop) wait() int {
	e, a := l.first()
	if e == nil {
		return -1
	}
	return int(max(0, time.Until(a.at)+time.Millisecond-1) / time.Millisecond)
}
