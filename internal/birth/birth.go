// Package birth owns the making of processes whose first steps are a list of
// system calls: what they take from themselves, and the exec. Nothing of a new
// process's program runs before the list is through.
//
// Why not syscall.ForkExec: it has no step for a seccomp filter, a Landlock domain,
// a umask or a limit; a filter that its caller puts on beforehand refuses the clone3
// that a control group takes; and with a new user namespace it forks for real, which
// costs a millisecond or more of a start. Here the child shares its maker's memory
// (CLONE_VM) where it can, and runs on a stack of its own, so it can wait as long as
// it likes. docs/adr/0004 has the figures.
package birth

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Check is what a step's result must be.
type Check uintptr

// The checks.
const (
	Ignore Check = iota // anything
	Must                // no error
	One                 // 1: a byte was read
)

// step is one system call of the child. clone_amd64.s knows its layout.
type step struct {
	nr    uintptr
	args  [6]uintptr
	check Check
}

// outcome is where the child notes what failed.
type outcome struct {
	errno uintptr
	after uintptr // address past the failed step
}

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

// Program is the list of a process's first steps, of which the last is an exec. All
// that the steps point to lives as long as it, on the heap, which does not move:
// they hold plain numbers for addresses, which would not follow a stack.
type Program struct {
	steps  []step
	names  []string
	keep   []any
	action [4]uint64 // struct sigaction with SIG_DFL
	mask   uint64
	await  int  // the step that HoldExec has added, -1 for none
	begun  bool // a process carries it out: its steps must stay where they are
	full   bool // there was no room for a step
}

// New gives a program without steps.
func New() *Program {
	p := &Program{await: -1}
	p.keep = append(p.keep, p)
	return p
}

// Call adds a step. name is for the error.
func (p *Program) Call(check Check, name string, nr uintptr, args ...uintptr) {
	if p.begun && len(p.steps) == cap(p.steps) {
		p.full = true // Proceed says so
		return
	}
	s := step{nr: nr, check: check}
	copy(s.args[:], args)
	p.steps, p.names = append(p.steps, s), append(p.names, name)
}

// HoldExec adds a step that gives the descriptor by which the exec is noticed a number, so
// that a later step can close all others.
func (p *Program) HoldExec(fd int) {
	p.await = len(p.steps)
	p.Call(Must, "dup3", unix.SYS_DUP3, 0, uintptr(fd), unix.O_CLOEXEC)
}

// Keep holds on to what an argument points to.
func (p *Program) Keep(x any) { p.keep = append(p.keep, x) }

// String gives the address of a C string.
func (p *Program) String(s string) (uintptr, error) {
	b, err := unix.BytePtrFromString(s)
	if err != nil {
		return 0, err
	}
	p.Keep(b)
	return uintptr(unsafe.Pointer(b)), nil
}

// Strings gives the address of a NULL-terminated array of C strings.
func (p *Program) Strings(ss ...string) (uintptr, error) {
	list := make([]uintptr, len(ss)+1)
	for i, s := range ss {
		var err error
		if list[i], err = p.String(s); err != nil {
			return 0, err
		}
	}
	p.Keep(list)
	return uintptr(unsafe.Pointer(&list[0])), nil
}

// DefaultSignals takes handlers away, or that a signal is ignored; of all signals if none
// is named. The Go runtime's handlers the child must not run: until they are gone, and
// until Unblock, it takes no signal.
func (p *Program) DefaultSignals(signals ...unix.Signal) {
	if len(signals) == 0 {
		for n := unix.Signal(1); n <= 64; n++ {
			signals = append(signals, n)
		}
	}
	for _, n := range signals {
		p.Call(Ignore, "rt_sigaction", unix.SYS_RT_SIGACTION, uintptr(n), uintptr(unsafe.Pointer(&p.action)), 0, 8)
	}
}

// Slack lets timers of the threads that Go's runtime makes before main be late (prctl(2),
// PR_SET_TIMERSLACK). One of them looks at the others all twenty microseconds, which is a
// tenth of what a short start costs. The program takes it back for its first thread, by
// setting zero: that is the value from before this step.
func (p *Program) Slack() {
	p.Call(Ignore, "prctl PR_SET_TIMERSLACK", unix.SYS_PRCTL, unix.PR_SET_TIMERSLACK, uintptr(time.Millisecond), 0, 0, 0)
}

// Unblock lets signals come.
func (p *Program) Unblock() {
	p.Call(Ignore, "rt_sigprocmask", unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&p.mask)), 0, 8)
}

// Born is a process that runs its program. It must be awaited.
type Born struct {
	Pid   int
	PidFD int

	program  *Program
	args     *cloneArgs
	note     *outcome
	stack    []byte
	execed   int // reading end of a pipe that the exec closes
	dumpable int
	unlock   func()
}

// One at a time: the child's change of ids makes the memory that it shares with us
// not dumpable, which is for the child alone. Meanwhile the files in /proc of any
// other child before its exec would not be ours to write.
var cloning sync.Mutex

// living are the programs that are carried out. A process whose maker has forgotten it
// must not go on with what the garbage collector has made of its list.
var living sync.Map

const (
	childStack = 16 << 10
	// begunSteps is the most that a program has whose process is begun: those of init with
	// as many capabilities and descriptors as there can be.
	begunSteps = 192
	// HighFD is above the numbers that descriptors are given in a child: a copy from there or
	// above lands on none that is still to be copied.
	HighFD = 16
)

// Clone makes the process. The calling thread is its parent. cgroup is a descriptor
// of the v2 control group to be born in, or -1.
func (p *Program) Clone(flags uintptr, cgroup int) (*Born, error) {
	return p.clone(flags, cgroup, clone)
}

// Begin is Clone for a program of which the end is not known yet. Its last step must wait
// for something that is done after Proceed, and further ones are added before that; none
// before may change ids.
func (p *Program) Begin(flags uintptr) (*Born, error) {
	p.steps = append(make([]step, 0, begunSteps), p.steps...)
	p.begun = true
	b := &Born{Pid: -1, PidFD: -1, program: p}
	if err := b.bear(flags, -1, clone); err != nil {
		return nil, err
	}
	return b, nil
}

// Proceed comes before what a begun process waits for.
func (b *Born) Proceed() (err error) {
	if b.program.full {
		return fmt.Errorf("more than %d steps of a process", begunSteps)
	}
	cloning.Lock()
	if b.dumpable, err = unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); err != nil {
		cloning.Unlock()
		return os.NewSyscallError("prctl PR_GET_DUMPABLE", err)
	}
	b.unlock = cloning.Unlock
	return nil
}

// cloner clones with all signals blocked.
type cloner func(args *cloneArgs, stack []byte, program *step, note *outcome) (uintptr, syscall.Errno)

func (p *Program) clone(flags uintptr, cgroup int, clone cloner) (*Born, error) {
	b := &Born{Pid: -1, PidFD: -1, program: p}
	if err := b.Proceed(); err != nil {
		return nil, err
	}
	if err := b.bear(flags, cgroup, clone); err != nil {
		return nil, err
	}
	return b, nil
}

func (b *Born) bear(flags uintptr, cgroup int, clone cloner) (err error) {
	p := b.program
	b.execed = -1
	defer func() {
		if err != nil {
			b.free()
		}
	}()
	var execed [2]int
	if err := unix.Pipe2(execed[:], unix.O_CLOEXEC); err != nil {
		return os.NewSyscallError("pipe2", err)
	}
	b.execed = execed[0]
	defer unix.Close(execed[1]) // the child has its own, until it execs
	if p.await >= 0 {
		held, err := unix.FcntlInt(uintptr(execed[1]), unix.F_DUPFD_CLOEXEC, HighFD)
		if err != nil {
			return os.NewSyscallError("fcntl F_DUPFD_CLOEXEC", err)
		}
		defer unix.Close(held)
		p.steps[p.await].args[0] = uintptr(held)
	}
	if b.stack, err = unix.Mmap(-1, 0, childStack, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS); err != nil {
		return os.NewSyscallError("mmap", err)
	}
	// At the end of the stack that the child reaches last: it is shared with a child
	// that has a copy of the rest of our memory, too.
	b.note = (*outcome)(unsafe.Pointer(&b.stack[0]))
	pidfd := new(int32)
	p.Keep(pidfd)
	b.args = &cloneArgs{
		flags: uint64(flags) | unix.CLONE_PIDFD, pidFD: uint64(uintptr(unsafe.Pointer(pidfd))), exitSignal: uint64(syscall.SIGCHLD),
	}
	if cgroup >= 0 {
		b.args.flags |= unix.CLONE_INTO_CGROUP
		b.args.cgroup = uint64(cgroup)
	}
	living.Store(b, nil)
	r, errno := clone(b.args, b.stack, &p.steps[0], b.note)
	if errno != 0 {
		living.Delete(b)
		return os.NewSyscallError("clone3", errno)
	}
	b.Pid, b.PidFD = int(r), int(*pidfd)
	return nil
}

// Await returns when the process has executed its program. If it could not, or
// failed is an error, it is ended and collected, its pidfd closed.
func (b *Born) Await(failed error) error {
	if failed != nil {
		_ = unix.PidfdSendSignal(b.PidFD, unix.SIGKILL, nil, 0) // it may have ended by itself
	}
	awaitEnd(b.execed)
	err := failed
	if b.unlock != nil {
		if derr := unix.Prctl(unix.PR_SET_DUMPABLE, uintptr(b.dumpable&1), 0, 0, 0); err == nil && derr != nil {
			err = os.NewSyscallError("prctl PR_SET_DUMPABLE", derr)
		}
	}
	if b.note.errno != 0 { // the first cause of what failed in telling it something
		err = b.failure()
	}
	living.Delete(b)
	b.free()
	if err == nil {
		return nil
	}
	_ = unix.PidfdSendSignal(b.PidFD, unix.SIGKILL, nil, 0)
	var ws syscall.WaitStatus
	for {
		if _, werr := syscall.Wait4(b.Pid, &ws, 0, nil); !errors.Is(werr, unix.EINTR) {
			break
		}
	}
	_ = unix.Close(b.PidFD)
	return err
}

func (b *Born) free() {
	if b.execed >= 0 {
		_ = unix.Close(b.execed)
	}
	if b.stack != nil {
		_ = unix.Munmap(b.stack)
	}
	if b.unlock != nil {
		b.unlock()
	}
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
func (b *Born) failure() error {
	errno := syscall.Errno(b.note.errno)
	i := int((b.note.after-uintptr(unsafe.Pointer(&b.program.steps[0])))/unsafe.Sizeof(step{})) - 1
	if i < 0 || i >= len(b.program.steps) {
		return fmt.Errorf("a step of a new process: %w", errno)
	}
	return os.NewSyscallError(b.program.names[i], errno)
}
