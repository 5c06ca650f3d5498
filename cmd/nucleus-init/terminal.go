package main

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/initproto"
)

// terminal is a pair of descriptors; a workload without one has slave 0.
type terminal struct{ master, slave int }

func (t terminal) close() {
	if t.slave > 0 {
		_ = unix.Close(t.master) // the supervisor has its own
		_ = unix.Close(t.slave)  // and stage 2 too
	}
}

// openTerminal allocates a terminal from the sandbox's own devpts, so that its
// slave has a name inside (ttyname(3) works) and none of the host's terminals
// is ever opened inside.
func openTerminal(setup *initproto.Setup) (terminal, error) {
	none := terminal{master: -1}
	if !setup.Process.TTY {
		return none, nil
	}
	master, err := unix.Open("/dev/pts/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return none, fmt.Errorf("allocating a terminal: %w", os.NewSyscallError("open", err))
	}
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		return none, os.NewSyscallError("ioctl TIOCSPTLCK", err)
	}
	// TIOCGPTPEER opens the slave of exactly this master, whatever path
	// /dev/pts/N leads to (Linux 4.13).
	r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return none, os.NewSyscallError("ioctl TIOCGPTPEER", errno)
	}
	t := terminal{master, int(r)}
	if err := unix.Fchown(t.slave, int(setup.Process.UID), int(setup.Process.GID)); err != nil {
		return none, os.NewSyscallError("fchown", err)
	}
	return t, nil
}
