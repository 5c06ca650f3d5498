// Package sigaction sets signal handlers that are written in assembly, past os/signal and Go's
// runtime, which knows nothing of them. They run on the alternate stack of whatever thread
// the kernel chooses, and are called as C calls.
package sigaction

import (
	"syscall"
	"unsafe"
)

// Action is the kernel's struct sigaction, not the C library's.
type Action struct {
	Handler  uintptr
	flags    uint64
	restorer uintptr
	mask     uint64
}

// Ignore is the handler of a signal that is ignored (SIG_IGN).
const Ignore = 1

const (
	saRestorer = 0x04000000
	saOnStack  = 0x08000000
	saRestart  = 0x10000000
)

// returns gives the address of what returns from a handler.
func returns() uintptr

// To is an action that calls a handler, with all signals blocked.
func To(handler uintptr) *Action {
	return &Action{Handler: handler, flags: saRestorer | saOnStack | saRestart, restorer: returns(), mask: ^uint64(0)}
}

// Set sets the action of a signal, and gives what it was. Either may be nil. An error is that
// of rt_sigaction(2).
func Set(n syscall.Signal, act, old *Action) error {
	_, _, errno := syscall.RawSyscall6(syscall.SYS_RT_SIGACTION, uintptr(n), uintptr(unsafe.Pointer(act)), uintptr(unsafe.Pointer(old)), unsafe.Sizeof(Action{}.mask), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
