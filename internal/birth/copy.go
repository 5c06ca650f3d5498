package birth

import (
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// cloneCopy is for where there is no assembly: the child has a copy of the memory,
// and so can carry out its list in Go, as the child in Go's own forkExec does. It
// costs what a fork costs. As in clone_amd64.s all signals are blocked meanwhile.
func cloneCopy(args *cloneArgs, _ []byte, program *step, note *outcome) (uintptr, syscall.Errno) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	all, old := ^uint64(0), uint64(0)
	syscall.RawSyscall6(syscall.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&all)), uintptr(unsafe.Pointer(&old)), 8, 0, 0)
	pid, errno := fork(args, program, note)
	syscall.RawSyscall6(syscall.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&old)), 0, 8, 0, 0)
	return pid, errno
}

// fork returns in the parent alone.
//
//go:norace
//go:nocheckptr
//go:noinline
func fork(args *cloneArgs, program *step, note *outcome) (uintptr, syscall.Errno) {
	pid, _, errno := syscall.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(args)), unsafe.Sizeof(*args), 0)
	if pid != 0 || errno != 0 {
		return pid, errno
	}
	carryOut(program, note)
	return 0, 0 // not reached
}

// carryOut may neither allocate nor call into the Go runtime, whose other threads
// are not there.
//
//go:norace
//go:nocheckptr
//go:noinline
//go:nosplit
func carryOut(s *step, note *outcome) {
	for {
		r, _, e := syscall.RawSyscall6(s.nr, s.args[0], s.args[1], s.args[2], s.args[3], s.args[4], s.args[5])
		check := s.check
		s = (*step)(unsafe.Add(unsafe.Pointer(s), unsafe.Sizeof(*s)))
		if check == One && e == 0 && r != 1 {
			e = syscall.ECANCELED // the parent gave up
		}
		if check == Ignore || e == 0 {
			continue
		}
		note.errno, note.after = uintptr(e), uintptr(unsafe.Pointer(s))
		for {
			syscall.RawSyscall(syscall.SYS_EXIT_GROUP, 1, 0, 0)
		}
	}
}
