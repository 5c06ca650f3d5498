package seccomp

import (
	"syscall"

	"golang.org/x/sys/unix"
)

func errnoName(n uint16) string { return unix.ErrnoName(syscall.Errno(n)) }

// errnoNumber finds the number of a name such as "EPERM". The table of x/sys maps only the other way, and profiles
// that use names are parsed far from any hot path.
func errnoNumber(name string) (uint16, bool) {
	if name == "" {
		return 0, false
	}
	for n := uint16(1); n < 256; n++ {
		if errnoName(n) == name {
			return n, true
		}
	}
	return 0, false
}
