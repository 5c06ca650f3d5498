//go:build !amd64

package birth

import "syscall"

func clone(args *cloneArgs, stack []byte, program *step, note *outcome) (uintptr, syscall.Errno) {
	return cloneCopy(args, stack, program, note)
}
