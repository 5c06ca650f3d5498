package main

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// openTerminal allocates a terminal from the sandbox's own devpts, so that its
// slave has a name inside (ttyname(3) works) and none of the host's terminals
// is ever opened inside.
func openTerminal(uid, gid uint32) (master, slave int, err error) {
	master, err = unix.Open("/dev/pts/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return -1, -1, fmt.Errorf("allocating a terminal: %w", os.NewSyscallError("open", err))
	}
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		_ = unix.Close(master)
		return -1, -1, os.NewSyscallError("ioctl TIOCSPTLCK", err)
	}
	// TIOCGPTPEER opens the slave of exactly this master, whatever path
	// /dev/pts/N leads to (Linux 4.13).
	r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		_ = unix.Close(master)
		return -1, -1, os.NewSyscallError("ioctl TIOCGPTPEER", errno)
	}
	slave = int(r)
	if err := unix.Fchown(slave, int(uid), int(gid)); err != nil {
		_ = unix.Close(slave)
		_ = unix.Close(master)
		return -1, -1, os.NewSyscallError("fchown", err)
	}
	return master, slave, nil
}
