// Package monitor owns how often Go's runtime looks at its own threads. Its monitor
// (sysmon in runtime/proc.go) does so all 20 microseconds while there is much to do, which
// takes 65 to 90 wake-ups and more than a millisecond of processor time of a start, an
// eighth of it. All that it finds meanwhile may wait for a millisecond.
package monitor

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// signal is the last of the real-time signals, which nobody sends.
const signal = 64

const (
	saRestorer = 0x04000000
	saOnStack  = 0x08000000
	saRestart  = 0x10000000
)

// sigaction is the kernel's struct, not the C library's.
type sigaction struct {
	handler  uintptr
	flags    uint64
	restorer uintptr
	mask     uint64
}

// entries gives the addresses of the handler and of what returns from it.
func entries() (handler, restorer uintptr)

// nearby is how far behind the process's own number that of its first further thread is
// looked for: the kernel counts up, and gives some to others meanwhile.
const nearby = 16

// Slow lets the monitor's timers be late (prctl(2), PR_SET_TIMERSLACK). Only a thread
// itself can do that without CAP_SYS_NICE, so this one is made to, by a signal. It is the
// first that Go's runtime makes. Where it is not found, nothing happens. It must be called
// before much else is done.
func Slow() {
	handler, restorer := entries()
	act := &sigaction{handler: handler, flags: saRestorer | saOnStack | saRestart, restorer: restorer, mask: ^uint64(0)}
	if _, _, errno := syscall.RawSyscall6(unix.SYS_RT_SIGACTION, signal, uintptr(unsafe.Pointer(act)), 0, unsafe.Sizeof(act.mask), 0, 0); errno != 0 {
		return
	}
	pid, _, _ := syscall.RawSyscall(unix.SYS_GETPID, 0, 0, 0)
	for tid := pid + 1; tid < pid+nearby; tid++ {
		// ESRCH: there is none, or it is another process's.
		if _, _, errno := syscall.RawSyscall(unix.SYS_TGKILL, pid, tid, signal); errno == 0 {
			return
		}
	}
}
