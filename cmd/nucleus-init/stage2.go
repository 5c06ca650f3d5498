package main

import (
	"fmt"
	"os"
	"slices"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/initproto"
)

// firstFD is where stage 2 has the sockets that it passes on, if it has any. After
// them comes the gate where it waits for its start byte: the only other descriptor
// beside 0, 1 and 2 that it holds, and execve closes it.
const firstFD = 3

// progress is where stage 2 notes how far it came. It lies in a page shared
// with init: once the filter is on, stage 2 could not even write to a pipe, and
// execve takes the page away from the workload. A stage 2 that dials notes the
// answer there as well, of which answered bytes have come.
type progress struct {
	step, errno, execIndex uint32
	answered               uint32
	answer                 [initproto.MaxAnswer]byte
}

// stage2 is the child that becomes the workload.
type stage2 struct {
	pid   int
	pidfd int
	note  *progress
	from  *prepared // what its first steps are in
	// remove is a file that goes with it; "" is none.
	remove string
}

// exited tells the end of stage 2 in the supervisor's terms.
func (s *stage2) exited(status uint32) initproto.Exited {
	return initproto.DecodeNote(unsafe.Slice((*byte)(unsafe.Pointer(s.note)), initproto.NoteSize), status)
}

// prepared is everything that stage 2 needs, laid out in memory before the
// fork: its child may neither allocate nor call into the Go runtime.
type prepared struct {
	paths   []*byte
	argv    []*byte
	envv    []*byte
	secrets [][]byte // variables of envv whose values are secrets
	cwd     *byte
	uid     uintptr
	gid     uintptr
	groups  []uint32
	setgrp  bool
	umask   uintptr
	bound   uint64
	ambient uint64
	first   bool // of the sandbox: nobody else is in it
	hdr     unix.CapUserHeader
	caps    [2]unix.CapUserData
	rlimits []rlimit
	files   int         // index in rlimits of that of open files, -1 for none
	room    unix.Rlimit // in its place until stage 2 has the files that it keeps
	lower   bool        // the planned one is less
	tty     uintptr     // slave descriptor, 0 for none
	stdio   [3]uintptr
	given   bool // stdio is not init's
	keyring bool
	narrow  [initproto.MaxNarrow]unix.SockFprog
	filter  unix.SockFprog
	flags   uintptr
	gate    uintptr
	gateAt  uintptr   // where stage 2 has it
	listen  []uintptr // sockets to be passed on; none is where another is to be
	pidVar  []byte    // LISTEN_PID, which stage 2 completes from pidAt on
	pidAt   int
	note    *progress
	byte1   [1]byte
	mask    uint64
	action  sigaction
	pidfd   int32
	stack   []byte   // that the child runs on, if its memory is ours
	dial    *dialing // nil for a program
}

type rlimit struct {
	resource uintptr
	lim      unix.Rlimit
}

// sigaction is the kernel's struct; only the default disposition is ever set,
// and a size of eight bytes for the mask goes with it.
type sigaction struct {
	handler, flags, restorer uintptr
	mask                     uint64
}

func prepare(p *initproto.Process, d initproto.Dial, fds []int, tty int, note *progress) (*prepared, error) {
	if int(p.Gate) >= len(fds) || p.Gate < 0 {
		return nil, fmt.Errorf("%w: gate %d", initproto.ErrMessage, p.Gate)
	}
	pr := &prepared{
		uid: uintptr(p.UID), gid: uintptr(p.GID), groups: p.Groups, setgrp: p.SetGroups, umask: uintptr(p.Umask),
		bound: p.Caps.Bounding, ambient: p.Caps.Ambient, tty: uintptr(tty), keyring: p.NewKeyring,
		gate: uintptr(fds[p.Gate]), gateAt: firstFD, note: note, flags: uintptr(p.FilterFlags),
	}
	if tty != 0 {
		pr.stdio, pr.given = [3]uintptr{pr.tty, pr.tty, pr.tty}, true
	}
	var err error
	if pr.paths, err = cStrings(p.Paths); err != nil {
		return nil, err
	}
	if pr.argv, err = cStrings(p.Args); err != nil {
		return nil, err
	}
	if pr.envv, err = cStrings(p.Env); err != nil {
		return nil, err
	}
	pr.envv = pr.envv[:len(p.Env)]
	if pr.secrets, err = secretEnv(p.SecretEnv, fds); err != nil {
		return nil, err
	}
	for _, kv := range pr.secrets {
		pr.envv = append(pr.envv, &kv[0])
	}
	if err := pr.passSockets(p, fds); err != nil {
		return nil, err
	}
	pr.envv = append(pr.envv, nil)
	if len(d.Addrs) > 0 {
		pr.dial, err = dialOf(d)
	} else if len(p.Paths) == 0 || len(p.Args) == 0 {
		err = fmt.Errorf("%w: no command", initproto.ErrMessage)
	}
	if err != nil {
		return nil, err
	}
	cwd, err := cStrings([]string{p.Cwd})
	if err != nil {
		return nil, err
	}
	pr.cwd = cwd[0]
	pr.hdr.Version = unix.LINUX_CAPABILITY_VERSION_3
	for i := range pr.caps {
		shift := 32 * i
		pr.caps[i] = unix.CapUserData{
			Effective: uint32(p.Caps.Effective >> shift), Permitted: uint32(p.Caps.Permitted >> shift), Inheritable: uint32(p.Caps.Inheritable >> shift),
		}
	}
	for _, r := range p.Rlimits {
		pr.rlimits = append(pr.rlimits, rlimit{uintptr(r.Resource), unix.Rlimit{Cur: r.Soft, Max: r.Hard}})
	}
	pr.roomForFiles()
	if len(p.Narrow) > len(pr.narrow) {
		return nil, fmt.Errorf("%w: %d filters", initproto.ErrMessage, len(p.Narrow))
	}
	for i, f := range p.Narrow {
		if pr.narrow[i], err = program(f); err != nil {
			return nil, err
		}
	}
	if pr.filter, err = program(p.Filter); err != nil {
		return nil, err
	}
	return pr, nil
}

// roomForFiles finds what limit of open files stage 2 has itself: room for the gate.
func (p *prepared) roomForFiles() {
	p.files = slices.IndexFunc(p.rlimits, func(r rlimit) bool { return r.resource == unix.RLIMIT_NOFILE })
	if p.files < 0 {
		return
	}
	least := uint64(p.gateAt) + 1
	lim := p.rlimits[p.files].lim
	p.room = unix.Rlimit{Cur: max(lim.Cur, least), Max: max(lim.Max, least)}
	p.lower = p.room != lim
}

// program gives a filter as seccomp(2) takes it.
func program(filter []byte) (unix.SockFprog, error) {
	n := len(filter)
	if n == 0 {
		return unix.SockFprog{}, nil
	}
	if n%8 != 0 || n/8 > 4096 { // BPF_MAXINSNS
		return unix.SockFprog{}, fmt.Errorf("%w: filter of %d bytes", initproto.ErrMessage, n)
	}
	return unix.SockFprog{Len: uint16(n / 8), Filter: (*unix.SockFilter)(unsafe.Pointer(&filter[0]))}, nil
}

// cStrings gives a NULL-terminated array of C strings.
func cStrings(ss []string) ([]*byte, error) {
	out := make([]*byte, 0, len(ss)+1)
	for _, s := range ss {
		b, err := unix.BytePtrFromString(s)
		if err != nil {
			return nil, fmt.Errorf("%w: NUL in a string", initproto.ErrMessage)
		}
		out = append(out, b)
	}
	return append(out, nil), nil
}

// sharedNote maps the page that stage 2 reports through. It is shared with a child that
// has a copy of the rest of our memory, too.
func sharedNote() (*progress, error) { return mapNote(-1, unix.MAP_ANONYMOUS) }

// fileNote is the same in a file, which the supervisor reads: where init itself becomes
// the workload, nobody else could.
func fileNote() (note *progress, fd int, err error) {
	fd, err = unix.MemfdCreate("nucleus-note", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, -1, os.NewSyscallError("memfd_create", err)
	}
	if err = unix.Ftruncate(fd, int64(os.Getpagesize())); err != nil {
		err = os.NewSyscallError("ftruncate", err)
	} else {
		note, err = mapNote(fd, 0)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, -1, err
	}
	return note, fd, nil
}

// noteFor gives the page of the workload's stage 2, and the file that it is in, or -1.
func noteFor(setup *initproto.Setup) (*progress, int, error) {
	if setup.Direct {
		return fileNote()
	}
	note, err := sharedNote()
	return note, -1, err
}

func mapNote(fd, flags int) (*progress, error) {
	b, err := unix.Mmap(fd, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|flags)
	if err != nil {
		return nil, os.NewSyscallError("mmap", err)
	}
	return (*progress)(unsafe.Pointer(&b[0])), nil
}

func unmapNote(note *progress) {
	_ = unix.Munmap(unsafe.Slice((*byte)(unsafe.Pointer(note)), os.Getpagesize()))
}

// fork makes stage 2 and gives its pid and pidfd. The child runs prepared raw system
// calls only, as the child in Go's own forkExec does: the Go runtime is not usable in
// it, for it knows nothing of it. p must be kept until the child has ended.
func fork(p *prepared) (pid int, pidfd int, errno syscall.Errno) {
	all, old := ^uint64(0), uint64(0)
	// Signals stay blocked in the child until their handlers, which belong to
	// the Go runtime, are gone.
	syscall.RawSyscall6(syscall.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&all)), uintptr(unsafe.Pointer(&old)), 8, 0, 0)
	if p.first && len(p.secrets) == 0 {
		pid, pidfd, errno = forkShared(p)
	} else {
		// Secrets are overwritten here while the child still needs them. And where a
		// workload runs it could stop the child just when its change of ids has made its
		// memory dumpable (fs.suid_dumpable, proc(5)), and read and write it by ptrace.
		pid, pidfd, errno = forkCopy(p)
	}
	syscall.RawSyscall6(syscall.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&old)), 0, 8, 0, 0)
	return pid, pidfd, errno
}

// forkCopy makes a child that has a copy of this process's memory.
//
//go:norace
//go:noinline
func forkCopy(p *prepared) (pid int, pidfd int, errno syscall.Errno) {
	r, _, e := syscall.RawSyscall6(syscall.SYS_CLONE, uintptr(syscall.SIGCHLD)|unix.CLONE_PIDFD, 0, uintptr(unsafe.Pointer(&p.pidfd)), 0, 0, 0)
	if r != 0 || e != 0 {
		return int(r), int(p.pidfd), e
	}
	child(p)
	return 0, 0, 0 // not reached
}

// child is stage 2 (DESIGN: steps 11 to 14): every restriction is put on in an
// order in which none takes away what a later one needs; seccomp is last (W28).
//
//go:norace
//go:noinline
//go:nosplit
func child(p *prepared) {
	var (
		e syscall.Errno
		i int
		c uintptr

		lim *unix.Rlimit
	)
	for c = 1; c <= 64; c++ {
		syscall.RawSyscall6(syscall.SYS_RT_SIGACTION, c, uintptr(unsafe.Pointer(&p.action)), 0, 8, 0, 0)
	}
	if p.dial != nil { // a peer that is gone is an error of write(2), not the end
		syscall.RawSyscall6(syscall.SYS_RT_SIGACTION, uintptr(syscall.SIGPIPE), uintptr(unsafe.Pointer(&p.dial.ignore)), 0, 8, 0, 0)
	}
	syscall.RawSyscall6(syscall.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&p.mask)), 0, 8, 0, 0)

	p.note.step = uint32(initproto.StepSession)
	// EPERM: this is init itself, which leads a session already.
	if _, _, e = syscall.RawSyscall(syscall.SYS_SETSID, 0, 0, 0); e != 0 && e != syscall.EPERM {
		goto fail
	}
	p.note.step = uint32(initproto.StepTerminal)
	if p.tty != 0 {
		if _, _, e = syscall.RawSyscall(syscall.SYS_IOCTL, p.tty, unix.TIOCSCTTY, 0); e != 0 {
			goto fail
		}
	}
	if p.given {
		for c = 0; c < 3; c++ {
			if _, _, e = syscall.RawSyscall(syscall.SYS_DUP3, p.stdio[c], c, 0); e != 0 {
				goto fail
			}
		}
	}
	syscall.RawSyscall(syscall.SYS_UMASK, p.umask, 0, 0)

	// All limits now, as to raise a hard one takes a right that is about to be dropped. Of
	// open files there is room for what stage 2 needs; to lower that later takes no right.
	p.note.step = uint32(initproto.StepRlimit)
	for i = 0; i < len(p.rlimits); i++ {
		lim = &p.rlimits[i].lim
		if i == p.files {
			lim = &p.room
		}
		if _, _, e = syscall.RawSyscall6(syscall.SYS_PRLIMIT64, 0, p.rlimits[i].resource, uintptr(unsafe.Pointer(lim)), 0, 0, 0); e != 0 {
			p.note.execIndex = uint32(i)
			goto fail
		}
	}
	p.note.step = uint32(initproto.StepKeyring)
	if p.keyring {
		// An anonymous session keyring of its own: the one that was inherited may
		// hold the keys of whoever started the supervisor.
		if _, _, e = syscall.RawSyscall(syscall.SYS_KEYCTL, unix.KEYCTL_JOIN_SESSION_KEYRING, 0, 0); e != 0 && e != syscall.ENOSYS {
			goto fail
		}
	}
	p.note.step = uint32(initproto.StepBounding)
	for c = 0; c < 64; c++ {
		if p.bound&(1<<c) != 0 {
			continue
		}
		if _, _, e = syscall.RawSyscall6(syscall.SYS_PRCTL, unix.PR_CAPBSET_DROP, c, 0, 0, 0, 0); e != 0 {
			if e == syscall.EINVAL { // past the kernel's last capability
				break
			}
			goto fail
		}
	}
	p.note.step = uint32(initproto.StepGroups)
	if p.setgrp {
		c = 0
		if len(p.groups) > 0 {
			c = uintptr(unsafe.Pointer(&p.groups[0]))
		}
		if _, _, e = syscall.RawSyscall(syscall.SYS_SETGROUPS, uintptr(len(p.groups)), c, 0); e != 0 {
			goto fail
		}
	}
	p.note.step = uint32(initproto.StepKeepCaps)
	// Without it a change from uid 0 empties the permitted set (W10). A workload that is
	// to have none may not trace this process either, as long as it has more.
	if _, _, e = syscall.RawSyscall6(syscall.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 1, 0, 0, 0, 0); e != 0 {
		goto fail
	}
	p.note.step = uint32(initproto.StepGID)
	if _, _, e = syscall.RawSyscall(syscall.SYS_SETRESGID, p.gid, p.gid, p.gid); e != 0 {
		goto fail
	}
	p.note.step = uint32(initproto.StepUID)
	if _, _, e = syscall.RawSyscall(syscall.SYS_SETRESUID, p.uid, p.uid, p.uid); e != 0 {
		goto fail
	}
	// The change of ids has made the memory, which may still be init's, what
	// fs.suid_dumpable says (proc(5)).
	if _, _, e = syscall.RawSyscall6(syscall.SYS_PRCTL, unix.PR_SET_DUMPABLE, 0, 0, 0, 0, 0); e != 0 {
		goto fail
	}
	p.note.step = uint32(initproto.StepCaps)
	if _, _, e = syscall.RawSyscall(syscall.SYS_CAPSET, uintptr(unsafe.Pointer(&p.hdr)), uintptr(unsafe.Pointer(&p.caps)), 0); e != 0 {
		goto fail
	}
	p.note.step = uint32(initproto.StepAmbient)
	for c = 0; c < 64; c++ {
		if p.ambient&(1<<c) == 0 {
			continue
		}
		if _, _, e = syscall.RawSyscall6(syscall.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, c, 0, 0, 0); e != 0 {
			goto fail
		}
	}
	p.note.step = uint32(initproto.StepClose)
	for i = 0; i < len(p.listen); i++ {
		if _, _, e = syscall.RawSyscall(syscall.SYS_DUP3, p.listen[i], firstFD+uintptr(i), 0); e != 0 {
			goto fail
		}
	}
	if _, _, e = syscall.RawSyscall(syscall.SYS_DUP3, p.gate, p.gateAt, syscall.O_CLOEXEC); e != 0 {
		goto fail
	}
	if _, _, e = syscall.RawSyscall(unix.SYS_CLOSE_RANGE, p.gateAt+1, uintptr(^uint32(0)), 0); e != 0 {
		goto fail
	}
	if p.lower {
		p.note.step = uint32(initproto.StepRlimit)
		if _, _, e = syscall.RawSyscall6(syscall.SYS_PRLIMIT64, 0, unix.RLIMIT_NOFILE, uintptr(unsafe.Pointer(&p.rlimits[p.files].lim)), 0, 0, 0); e != 0 {
			p.note.execIndex = uint32(p.files)
			goto fail
		}
	}
	if len(p.pidVar) > 0 {
		c, _, _ = syscall.RawSyscall(syscall.SYS_GETPID, 0, 0, 0)
		writePid(p, c)
	}
	// After the identity switch, so that the workload's own rights decide, and
	// after the descriptors are gone, so that none can be its way out.
	p.note.step = uint32(initproto.StepCwd)
	if _, _, e = syscall.RawSyscall(syscall.SYS_CHDIR, uintptr(unsafe.Pointer(p.cwd)), 0, 0); e != 0 {
		goto fail
	}
	p.note.step = uint32(initproto.StepSeccomp)
	for i = 0; i < len(p.narrow) && p.narrow[i].Len > 0; i++ {
		if _, _, e = syscall.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&p.narrow[i]))); e != 0 {
			goto fail
		}
	}
	if p.filter.Len > 0 {
		if _, _, e = syscall.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, p.flags, uintptr(unsafe.Pointer(&p.filter))); e != 0 {
			goto fail
		}
	}
	// From here on only read, execve and exit_group, which every compiled filter
	// admits; what a probe needs beyond them is the workload's to have or not.
	p.note.step = uint32(initproto.StepGate)
	for {
		c, _, e = syscall.RawSyscall(syscall.SYS_READ, p.gateAt, uintptr(unsafe.Pointer(&p.byte1)), 1)
		if e == syscall.EINTR {
			continue
		}
		if e == 0 && c == 0 {
			e = syscall.ECANCELED // the supervisor closed the gate without opening it
		}
		if e != 0 {
			goto fail
		}
		break
	}
	if p.dial != nil {
		dial(p)
		goto out
	}
	p.note.step = uint32(initproto.StepExec)
	for i = 0; p.paths[i] != nil; i++ {
		_, _, e = syscall.RawSyscall(syscall.SYS_EXECVE, uintptr(unsafe.Pointer(p.paths[i])), uintptr(unsafe.Pointer(&p.argv[0])), uintptr(unsafe.Pointer(&p.envv[0])))
		// As execvp(3): a candidate that exists but may not be executed is
		// remembered, and the search goes on.
		if e != syscall.ENOENT && e != syscall.ENOTDIR {
			p.note.errno, p.note.execIndex = uint32(e), uint32(i)
			if e != syscall.EACCES {
				break
			}
		}
	}
	if p.note.errno == 0 {
		p.note.errno = uint32(e)
	}
	goto out
fail:
	p.note.errno = uint32(e)
out:
	for {
		syscall.RawSyscall(syscall.SYS_EXIT_GROUP, 125, 0, 0)
	}
}

// startWorkload makes stage 2 and tells the supervisor. In direct mode it does
// not return: this process is stage 2, and the supervisor, whose child it is,
// sees its end by itself.
func (in *initProcess) startWorkload(setup *initproto.Setup, fds []int, tty terminal) error {
	defer tty.close()
	note, noteFD, err := noteFor(setup)
	if err != nil {
		return err
	}
	pr, err := prepare(&setup.Process, initproto.Dial{}, fds, tty.slave, note)
	if err != nil {
		return err
	}
	defer pr.forget()
	if setup.Direct {
		return in.becomeWorkload(pr, noteFD, tty.master)
	}
	pr.first = true
	pid, pidfd, errno := fork(pr)
	pr.passed()
	if errno != 0 {
		return os.NewSyscallError("clone", errno)
	}
	in.work = &stage2{pid: pid, pidfd: pidfd, note: note, from: pr}
	return in.announce(pidfd, -1, tty.master)
}

func (in *initProcess) announce(fds ...int) error {
	pass := make([]int, 0, len(fds))
	for _, fd := range fds {
		if fd >= 0 {
			pass = append(pass, fd)
		}
	}
	return in.conn.Send(initproto.Encode(initproto.KindStage2, nil), pass...)
}

// becomeWorkload makes this process stage 2. Its other threads, which are the
// Go runtime's, end at execve.
func (in *initProcess) becomeWorkload(p *prepared, note, master int) error {
	self, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return os.NewSyscallError("pidfd_open", err)
	}
	if err := in.announce(self, note, master); err != nil {
		return err
	}
	child(p)
	return nil // not reached
}
