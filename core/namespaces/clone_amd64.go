package namespaces

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/internal/failpoint"
)

// Why not syscall.ForkExec: with a new user namespace it forks for real, since
// its child must wait for the id maps and so cannot borrow the parent's memory
// as vfork(2) does. That copies page tables, and every page that this process
// writes to until the exec, while its other threads are at work: a millisecond
// or more of a start. Here the child shares the memory (CLONE_VM) and runs, on
// a stack of its own, nothing but a list of system calls that was laid out
// before, so it can wait as long as it likes. docs/adr/0004 has the figures.

// cloneArgs is struct clone_args of the kernel (clone(2), Linux 5.7).
type cloneArgs struct {
	flags      uint64
	pidFD      uint64
	_, _       uint64 // child_tid, parent_tid
	exitSignal uint64
	stack      uint64
	stackSize  uint64
	_, _, _    uint64 // tls, set_tid, set_tid_size
	cgroup     uint64
}

// step is one system call of the child.
type step struct {
	nr, a1, a2, a3, a4, a5, a6 uintptr
	check                      uintptr
}

// What a step's result must be.
const (
	ignore = iota // anything
	must          // no error
	one           // 1: a byte was read
)

// outcome is where the child notes what failed.
type outcome struct {
	errno uintptr
	after uintptr // address past the failed step
}

const childStack = 16 << 10

func cloneRun(args *cloneArgs, size uintptr, program *step, outcome *outcome) (pid, errno uintptr)

// child collects what its steps point to, so that it stays where it is until
// the exec.
type child struct {
	steps  []step
	keep   []any
	caps   [2]unix.CapUserData
	header unix.CapUserHeader
	action [4]uint64 // struct sigaction with SIG_DFL
	mask   uint64
	byte1  [8]byte
	pidfd  int32
}

// newChild allocates on the heap, which does not move: the steps hold plain
// numbers for addresses, which would not follow a stack.
func newChild() *child {
	c := &child{pidfd: -1}
	c.keep = append(c.keep, c)
	return c
}

func (c *child) call(check int, nr uintptr, a ...uintptr) {
	s := step{nr: nr, check: uintptr(check)}
	for i, p := range []*uintptr{&s.a1, &s.a2, &s.a3, &s.a4, &s.a5, &s.a6} {
		if i < len(a) {
			*p = a[i]
		}
	}
	c.steps = append(c.steps, s)
}

func (c *child) cString(s string) (uintptr, error) {
	b, err := unix.BytePtrFromString(s)
	if err != nil {
		return 0, err
	}
	c.keep = append(c.keep, b)
	return uintptr(unsafe.Pointer(b)), nil
}

// strings gives a NULL-terminated array of C strings.
func (c *child) strings(ss ...string) (uintptr, error) {
	list := make([]uintptr, len(ss)+1)
	for i, s := range ss {
		var err error
		if list[i], err = c.cString(s); err != nil {
			return 0, err
		}
	}
	c.keep = append(c.keep, list)
	return uintptr(unsafe.Pointer(&list[0])), nil
}

// program lays out the child's steps. from holds its descriptors-to-be, all of
// them above those that they become.
func (c *child) program(b birth, maps [2]int, from [4]int) error {
	if b.waitForMaps {
		// Its own copy of the writing end would keep it waiting, and with it the
		// sandbox's lock held, if its maker died now.
		c.call(must, unix.SYS_CLOSE, uintptr(maps[1]))
		c.call(one, unix.SYS_READ, uintptr(maps[0]), uintptr(unsafe.Pointer(&c.byte1)), 1)
	}
	for n := uintptr(1); n <= 64; n++ {
		c.call(ignore, unix.SYS_RT_SIGACTION, n, uintptr(unsafe.Pointer(&c.action)), 0, 8)
	}
	c.call(must, unix.SYS_SETSID)
	if b.root {
		if b.setGroups {
			c.call(must, unix.SYS_SETGROUPS, 0, 0)
		}
		c.call(must, unix.SYS_SETRESGID, 0, 0, 0)
		c.call(must, unix.SYS_SETRESUID, 0, 0, 0)
	}
	if len(b.ambient) > 0 {
		for _, n := range b.ambient {
			for i := range c.caps {
				if n/32 == uintptr(i) {
					bit := uint32(1) << (n % 32)
					c.caps[i].Effective |= bit
					c.caps[i].Permitted |= bit
					c.caps[i].Inheritable |= bit
				}
			}
		}
		c.header.Version = unix.LINUX_CAPABILITY_VERSION_3
		c.call(must, unix.SYS_CAPSET, uintptr(unsafe.Pointer(&c.header)), uintptr(unsafe.Pointer(&c.caps)))
		for _, n := range b.ambient {
			c.call(must, unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, n, 0, 0)
		}
	}
	// After the change of ids, which clears it.
	c.call(must, unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL))
	for to, fd := range from {
		c.call(must, unix.SYS_DUP3, uintptr(fd), uintptr(to), 0)
	}
	path, err := c.cString(b.path)
	if err != nil {
		return err
	}
	argv, err := c.strings(b.argv...)
	if err != nil {
		return err
	}
	envv, err := c.strings(b.env...)
	if err != nil {
		return err
	}
	c.call(ignore, unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&c.mask)), 0, 8)
	if b.program >= 0 {
		c.call(must, unix.SYS_EXECVEAT, uintptr(b.program), path, argv, envv, unix.AT_EMPTY_PATH)
	} else {
		c.call(must, unix.SYS_EXECVE, path, argv, envv)
	}
	return nil
}

var cloning sync.Mutex

// spawn makes init. The calling thread is its parent.
func spawn(b birth) (pid, pidfd int, err error) {
	var maps, execed [2]int
	if err := unix.Pipe2(maps[:], unix.O_CLOEXEC); err != nil {
		return 0, -1, os.NewSyscallError("pipe2", err)
	}
	defer unix.Close(maps[0])
	closeMaps := func() {
		if maps[1] >= 0 {
			_ = unix.Close(maps[1]) // the child sees the end and gives up
			maps[1] = -1
		}
	}
	defer closeMaps()
	if err := unix.Pipe2(execed[:], unix.O_CLOEXEC); err != nil {
		return 0, -1, os.NewSyscallError("pipe2", err)
	}
	defer unix.Close(execed[0])
	var from [4]int
	for i, fd := range b.fds {
		// High ones, so that no copy lands on one that is still to be copied.
		if from[i], err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 16); err != nil {
			_ = unix.Close(execed[1])
			return 0, -1, os.NewSyscallError("fcntl F_DUPFD_CLOEXEC", err)
		}
		defer unix.Close(from[i])
	}
	c := newChild()
	if err := c.program(b, maps, from); err != nil {
		_ = unix.Close(execed[1])
		return 0, -1, err
	}
	stack, err := unix.Mmap(-1, 0, childStack, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		_ = unix.Close(execed[1])
		return 0, -1, os.NewSyscallError("mmap", err)
	}
	defer func() { _ = unix.Munmap(stack) }()
	args := &cloneArgs{
		flags: uint64(b.flags) | unix.CLONE_VM | unix.CLONE_PIDFD, pidFD: uint64(uintptr(unsafe.Pointer(&c.pidfd))), exitSignal: uint64(syscall.SIGCHLD),
		stack: uint64(uintptr(unsafe.Pointer(&stack[0]))), stackSize: childStack,
	}
	if b.cgroup >= 0 {
		args.flags |= unix.CLONE_INTO_CGROUP
		args.cgroup = uint64(b.cgroup)
	}
	// The child's change of ids makes the memory that it shares with us not
	// dumpable, which is for the child alone. One at a time: meanwhile the files
	// in /proc of any other child before its exec would not be ours to write.
	cloning.Lock()
	defer cloning.Unlock()
	dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	if err != nil {
		_ = unix.Close(execed[1])
		return 0, -1, os.NewSyscallError("prctl PR_GET_DUMPABLE", err)
	}
	note := &outcome{}
	r, errno := cloneBlocked(args, &c.steps[0], note)
	_ = unix.Close(execed[1]) // the child has its own, until it execs
	if errno != 0 {
		return 0, -1, os.NewSyscallError("clone3", errno)
	}
	failpoint.Hit("init cloned")
	pid, pidfd = int(r), int(c.pidfd)
	if b.waitForMaps {
		if err = b.writeMaps(pid); err == nil {
			_, err = unix.Write(maps[1], []byte{1})
			b.mapped(pid)
		}
	}
	closeMaps()
	awaitEnd(execed[0])
	if derr := unix.Prctl(unix.PR_SET_DUMPABLE, uintptr(dumpable&1), 0, 0, 0); err == nil && derr != nil {
		err = os.NewSyscallError("prctl PR_SET_DUMPABLE", derr)
	}
	if err == nil && note.errno != 0 {
		err = c.failure(note)
	}
	runtime.KeepAlive(c)
	runtime.KeepAlive(args)
	if err != nil {
		_ = unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0) // it may have ended by itself
		var ws syscall.WaitStatus
		for {
			if _, werr := syscall.Wait4(pid, &ws, 0, nil); !errors.Is(werr, unix.EINTR) {
				break
			}
		}
		_ = unix.Close(pidfd)
		return 0, -1, err
	}
	return pid, pidfd, nil
}

// cloneBlocked clones with all signals blocked: until the child has put its
// handlers to their defaults, they are the Go runtime's, which it must not run.
func cloneBlocked(args *cloneArgs, program *step, note *outcome) (uintptr, syscall.Errno) {
	all, old := ^uint64(0), uint64(0)
	syscall.RawSyscall6(syscall.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&all)), uintptr(unsafe.Pointer(&old)), 8, 0, 0)
	pid, errno := cloneRun(args, unsafe.Sizeof(*args), program, note)
	syscall.RawSyscall6(syscall.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&old)), 0, 8, 0, 0)
	return pid, syscall.Errno(errno)
}

// awaitEnd waits for the end of a pipe whose other side execve closes.
func awaitEnd(fd int) {
	var b [1]byte
	for {
		if _, err := unix.Read(fd, b[:]); !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// failure names the step that failed.
func (c *child) failure(o *outcome) error {
	i := int((o.after-uintptr(unsafe.Pointer(&c.steps[0])))/unsafe.Sizeof(step{})) - 1
	errno := syscall.Errno(o.errno)
	if i < 0 || i >= len(c.steps) {
		return errno
	}
	for _, n := range []struct {
		nr   uintptr
		name string
	}{
		{unix.SYS_EXECVE, "execve"},
		{unix.SYS_EXECVEAT, "execveat"},
		{unix.SYS_SETSID, "setsid"},
		{unix.SYS_SETGROUPS, "setgroups"},
		{unix.SYS_SETRESGID, "setresgid"},
		{unix.SYS_SETRESUID, "setresuid"},
		{unix.SYS_CAPSET, "capset"},
		{unix.SYS_PRCTL, "prctl"},
		{unix.SYS_DUP3, "dup3"},
	} {
		if c.steps[i].nr == n.nr {
			return os.NewSyscallError(n.name, errno)
		}
	}
	return fmt.Errorf("step %d: %w", i, errno)
}
