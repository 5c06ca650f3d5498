package main

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

func cloneShared(flags, stack uintptr, pidfd *int32, p *prepared) (pid, errno uintptr)

// childStack is a size of Go's allocator, and so aligned as a stack has to be. The
// child's calls go a few hundred bytes deep, which the linker sees to (nosplit).
const childStack = 8 << 10

// forkShared makes a child that shares this process's memory until its execve, and runs
// on a stack of its own: neither are page tables copied, nor does each page that one of
// both writes to afterwards fault. Whatever p points to must live as long as the child.
func forkShared(p *prepared) (pid int, pidfd int, errno syscall.Errno) {
	p.stack = make([]byte, childStack)
	top := uintptr(unsafe.Pointer(&p.stack[0])) + childStack
	r, e := cloneShared(uintptr(syscall.SIGCHLD)|unix.CLONE_PIDFD|unix.CLONE_VM, top, &p.pidfd, p)
	return int(r), int(p.pidfd), syscall.Errno(e)
}
