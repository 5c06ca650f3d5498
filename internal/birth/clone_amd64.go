package birth

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/internal/processors"
)

// Shared tells whether a child has its maker's memory until its exec, and so sees steps that
// are added to its program meanwhile.
const Shared = true

func cloneRun(args *cloneArgs, size uintptr, program *step, outcome *outcome, all, old *uint64, slack uintptr) (pid, errno uintptr)

func clone(args *cloneArgs, stack []byte, program *step, note *outcome) (uintptr, syscall.Errno) {
	args.flags |= unix.CLONE_VM
	args.stack, args.stackSize = uint64(uintptr(unsafe.Pointer(&stack[0]))), uint64(len(stack))
	all, old := ^uint64(0), uint64(0)
	pid, errno := cloneRun(args, unsafe.Sizeof(*args), program, note, &all, &old, uintptr(processors.Slack()))
	return pid, syscall.Errno(errno)
}
