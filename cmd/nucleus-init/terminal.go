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
	slave, err = unix.IoctlRetInt(master, unix.TIOCGPTPEER)
	if err == nil {
		err = unix.Fchown(slave, int(uid), int(gid))
	}
	if err != nil {
		_ = unix.Close(master)
		return -1, -1, os.NewSyscallError("ioctl TIOCGPTPEER", err)
	}
	return master, slave, nil
}
