package attacker

import (
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// outcome is how a system call in a child of its own ended.
type outcome struct {
	errno  syscall.Errno
	signal syscall.Signal // it was killed
	hung   bool           // it did not return
}

// reached reports whether the call got past a filter. EPERM and ENOSYS are what
// filters answer; the arguments are chosen so that the kernel itself would
// answer otherwise.
func (o outcome) reached() bool {
	if o.hung {
		return true
	}
	return o.signal == 0 && o.errno != syscall.EPERM && o.errno != syscall.ENOSYS
}

func (o outcome) succeeded() bool { return !o.hung && o.signal == 0 && o.errno == 0 }

func (o outcome) String() string {
	switch {
	case o.hung:
		return "blocked"
	case o.signal != 0:
		return o.signal.String()
	case o.errno == 0:
		return "success"
	}
	return unix.ErrnoName(o.errno)
}

// call is one system call. door chooses how it is made.
type call struct {
	nr   uintptr
	args [6]uintptr
	door int
}

const (
	doorNative = iota
	doorInt80
)

// bad is an address that nothing is mapped at.
const bad = uintptr(0xdead0000)

// inChild makes the call in a forked child, whose exit status is the errno: a
// call that changes or ends the process does it to the child alone, and the
// child has one thread, which some calls insist on.
func inChild(c call) outcome {
	pid, errno := forkCall(&c)
	if errno != 0 {
		return outcome{errno: errno}
	}
	deadline := time.Now().Add(300 * time.Millisecond)
	for {
		var ws syscall.WaitStatus
		got, err := syscall.Wait4(pid, &ws, syscall.WNOHANG|syscall.WALL, nil)
		switch {
		case err == syscall.EINTR:
		case got == pid && ws.Signaled():
			return outcome{signal: ws.Signal()}
		case got == pid:
			return outcome{errno: syscall.Errno(ws.ExitStatus())}
		case time.Now().After(deadline):
			_ = syscall.Kill(pid, syscall.SIGKILL)
			_, _ = syscall.Wait4(pid, &ws, syscall.WALL, nil)
			return outcome{hung: true}
		}
		time.Sleep(200 * time.Microsecond)
	}
}

// forkCall forks; the child, in which the Go runtime is not usable, makes the
// call and ends.
//
//go:norace
//go:noinline
//go:nosplit
func forkCall(c *call) (int, syscall.Errno) {
	pid, _, e := syscall.RawSyscall6(syscall.SYS_CLONE, uintptr(syscall.SIGCHLD), 0, 0, 0, 0, 0)
	if pid != 0 || e != 0 {
		return int(pid), e
	}
	if c.door == doorInt80 {
		e = 0
		if r := int80(uint32(c.nr), uint32(c.args[0]), uint32(c.args[1]), uint32(c.args[2])); r < 0 && r > -4096 {
			e = syscall.Errno(-r)
		}
	} else {
		_, _, e = syscall.RawSyscall6(c.nr, c.args[0], c.args[1], c.args[2], c.args[3], c.args[4], c.args[5])
	}
	for {
		syscall.RawSyscall(syscall.SYS_EXIT_GROUP, uintptr(e), 0, 0)
	}
}
