package main

import (
	"fmt"
	"os"
	"runtime"

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
	if !setup.Process.TTY {
		return terminal{master: -1}, nil
	}
	t, err := newTerminal()
	if err != nil {
		return t, err
	}
	if err := unix.Fchown(t.slave, int(setup.Process.UID), int(setup.Process.GID)); err != nil {
		t.close()
		return terminal{master: -1}, os.NewSyscallError("fchown", err)
	}
	return t, nil
}

// terminalFor allocates one for a process that comes later, when init has neither
// the capability to give a file away nor, perhaps, a Landlock rule for devpts. It
// is made by a thread that has no Landlock domain, for only the first one has, and
// in the name of its owner: whose name a thread opens the multiplexer in has the
// slave. The thread ends with it.
func terminalFor(uid, gid uint32) (terminal, error) {
	type outcome struct {
		t   terminal
		err error
	}
	made := make(chan outcome)
	go func() {
		runtime.LockOSThread() // for good: its ids are not to be anybody else's
		t, err := func() (terminal, error) {
			if err := unix.Setfsgid(int(gid)); err != nil {
				return terminal{master: -1}, os.NewSyscallError("setfsgid", err)
			}
			if err := unix.Setfsuid(int(uid)); err != nil {
				return terminal{master: -1}, os.NewSyscallError("setfsuid", err)
			}
			return newTerminal()
		}()
		made <- outcome{t, err}
	}()
	o := <-made
	// A change of the ids for files makes all our memory what fs.suid_dumpable says, too.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil && o.err == nil {
		o.t.close()
		return terminal{master: -1}, os.NewSyscallError("prctl PR_SET_DUMPABLE", err)
	}
	return o.t, o.err
}

func newTerminal() (terminal, error) {
	none := terminal{master: -1}
	master, err := unix.Open("/dev/pts/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return none, fmt.Errorf("allocating a terminal: %w", os.NewSyscallError("open", err))
	}
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		_ = unix.Close(master)
		return none, os.NewSyscallError("ioctl TIOCSPTLCK", err)
	}
	// TIOCGPTPEER opens the slave of exactly this master, whatever path
	// /dev/pts/N leads to (Linux 4.13).
	r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		_ = unix.Close(master)
		return none, os.NewSyscallError("ioctl TIOCGPTPEER", errno)
	}
	return terminal{master, int(r)}, nil
}
