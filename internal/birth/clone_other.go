//go:build !amd64

package birth

import "syscall"

// Shared tells whether a child has its maker's memory until its exec, and so sees steps that
// are added to its program meanwhile.
const Shared = false

func clone(args *cloneArgs, stack []byte, program *step, note *outcome) (uintptr, syscall.Errno) {
	return cloneCopy(args, stack, program, note)
}
