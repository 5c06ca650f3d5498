package main

import (
	"os"
	"syscall"
	"unsafe"
)

// spread lets init, and so all that it makes, run wherever its maker's other children may: it was
// kept off its maker's processor (namespaces.Init). It comes before init makes its first
// process, so its threads have the first numbers of the namespace, one after the other.
func (in *initProcess) spread() error {
	cpus := in.setup.CPUs
	if len(cpus) == 0 {
		return nil
	}
	for tid := uintptr(1); ; tid++ {
		_, _, e := syscall.RawSyscall(syscall.SYS_SCHED_SETAFFINITY, tid, uintptr(len(cpus)), uintptr(unsafe.Pointer(&cpus[0])))
		switch {
		case e == 0:
		case e == syscall.ESRCH && tid > 1:
			in.setup.CPUs = nil
			return nil
		default:
			return os.NewSyscallError("sched_setaffinity", e)
		}
	}
}
