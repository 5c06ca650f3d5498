package processors

import (
	"syscall"

	"github.com/nucleus-runtime/nucleus/internal/sigaction"
)

// Go's runtime has a thread that looks at the others (sysmon), and as long as the process
// is young and busy it does so all twenty microseconds, late by the fifty that a thread's
// timers may be late. It preempts whoever is at work on its processor, and that is a
// twentieth of a short start. With timers that may be later it comes together with others.
//
// A thread can set that for itself alone (PR_SET_TIMERSLACK), or by CAP_SYS_NICE, so it is
// told by a signal whose handler does it.

const (
	lateBy = 300_000 // nanoseconds
	// monitorSignal is one that nobody sends, and that Go leaves alone.
	monitorSignal = 64
	// candidates is how many numbers after its own a process looks at for its second thread:
	// between the two others of the host may have been made.
	candidates = 32
)

var (
	monitor uint32 // the thread that the handler is for
	isLate  uint32 // set by the handler
	slack   uint64 // of the timers of this process's own threads, 0 while there is no other
)

// handler gives the address of the handler.
func handler() uintptr

// LateMonitor has Go's monitor look at the other threads less often. A thread that the
// monitor makes is late as well: what is to live longer than this process is begun with
// timers as punctual as this process was begun with (Slack).
func LateMonitor() {
	now, _, errno := syscall.RawSyscall(syscall.SYS_PRCTL, syscall.PR_GET_TIMERSLACK, 0, 0)
	if errno != 0 || now == 0 || now >= lateBy {
		return
	}
	if sigaction.Set(monitorSignal, sigaction.To(handler()), nil) != nil {
		return
	}
	slack = uint64(now)
	pid := syscall.Getpid()
	// It is the first that the runtime makes, before it initialises any package.
	for tid := pid + 1; tid <= pid+candidates; tid++ {
		monitor = uint32(tid)
		if _, _, errno := syscall.RawSyscall(syscall.SYS_TGKILL, uintptr(pid), uintptr(tid), monitorSignal); errno == 0 {
			return
		}
	}
}

// Slack is how late timers of a child may be, in nanoseconds, if it has to be said: this
// thread may be one that the monitor has made.
func Slack() uint64 { return slack }

// Punctual makes this thread's timers as punctual as they were when the process began. A
// goroutine that is locked to it can then begin others with os/exec.
func Punctual() {
	if slack > 0 {
		_, _, _ = syscall.RawSyscall(syscall.SYS_PRCTL, syscall.PR_SET_TIMERSLACK, uintptr(slack), 0) // it was read before
	}
}
