package namespaces

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/internal/birth"
)

// apart keeps init off the processor on which its maker is at work, until it makes the first
// process of its own. The scheduler wakes who is told something where the teller runs, the more
// so with a socket between them, and there the two would take turns beside an idle processor.
type apart struct {
	ours    unix.CPUSet // where this process may run, empty if init is not kept apart
	allowed unix.CPUSet // where init could, were it to say so: what its cpuset has
	others  unix.CPUSet
	kept    unix.CPUSet // where it is then: a filter of system calls may forbid all this
}

// keepApart adds to a program that it keeps its process apart. None of the steps must
// succeed: what they gain is time.
func keepApart(p *birth.Program) *apart {
	a := &apart{}
	if !birth.Shared { // nor could be read what the child has found
		return a
	}
	var cpu uint32
	_, _, errno := unix.RawSyscall(unix.SYS_GETCPU, uintptr(unsafe.Pointer(&cpu)), 0, 0)
	if errno != 0 || unix.SchedGetaffinity(0, &a.ours) != nil || a.ours.Count() < 2 {
		a.ours.Zero()
		return a
	}
	a.others = a.ours
	a.others.Clear(int(cpu))
	p.Keep(a)
	every := everyCPU()
	p.Keep(every)
	const size = unsafe.Sizeof(a.ours)
	p.Call(birth.Ignore, "sched_setaffinity", unix.SYS_SCHED_SETAFFINITY, 0, size, uintptr(unsafe.Pointer(every)))
	p.Call(birth.Ignore, "sched_getaffinity", unix.SYS_SCHED_GETAFFINITY, 0, size, uintptr(unsafe.Pointer(&a.allowed)))
	p.Call(birth.Ignore, "sched_setaffinity", unix.SYS_SCHED_SETAFFINITY, 0, size, uintptr(unsafe.Pointer(&a.others)))
	p.Call(birth.Ignore, "sched_getaffinity", unix.SYS_SCHED_GETAFFINITY, 0, size, uintptr(unsafe.Pointer(&a.kept)))
	return a
}

// restored is where init is to run once it makes others, as sched_setaffinity(2) takes it, nil
// if it runs there already. Who was not told where to run gets every processor of its cpuset,
// as that is and will be, and not those of the moment (Linux 6.2 keeps what a process has asked for).
func (a *apart) restored() []byte {
	set := &a.ours
	switch {
	case a.ours.Count() == 0 || a.kept == a.ours:
		return nil
	case a.ours == a.allowed:
		set = everyCPU()
	}
	return unsafe.Slice((*byte)(unsafe.Pointer(set)), unsafe.Sizeof(*set))
}

func everyCPU() *unix.CPUSet {
	set := &unix.CPUSet{}
	for i := range set {
		set[i] = ^set[i]
	}
	return set
}
