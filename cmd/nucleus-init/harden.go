package main

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"unsafe"

	llsys "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/initproto"
)

// Rights that make sense for a directory only; the kernel refuses a rule that
// grants them on a file (landlock_add_rule(2), EINVAL).
const dirOnly = llsys.AccessFSReadDir | llsys.AccessFSRemoveDir | llsys.AccessFSRemoveFile | llsys.AccessFSMakeChar | llsys.AccessFSMakeDir |
	llsys.AccessFSMakeReg | llsys.AccessFSMakeSock | llsys.AccessFSMakeFifo | llsys.AccessFSMakeBlock | llsys.AccessFSMakeSym | llsys.AccessFSRefer

// restrictLandlock puts the ruleset on this thread. Stage 2 inherits it, and so
// will every further process that this thread forks: all processes of a sandbox
// share one domain and may signal each other, but nothing outside.
func restrictLandlock(l initproto.Landlock) error {
	if l.ABI == 0 {
		return nil
	}
	attr := llsys.RulesetAttr{HandledAccessFS: l.HandledFS, HandledAccessNet: l.HandledNet, Scoped: l.Scoped}
	rs, err := llsys.LandlockCreateRuleset(&attr, 0)
	if err != nil {
		return fmt.Errorf("landlock: %w", os.NewSyscallError("landlock_create_ruleset", err))
	}
	defer unix.Close(rs)
	for i, r := range l.Rules {
		if err := addRule(rs, r); err != nil {
			return &ruleError{i, err}
		}
	}
	for _, r := range l.Ports {
		rule := llsys.NetPortAttr{Port: r.Port, AllowedAccess: r.Access}
		if err := llsys.LandlockAddNetPortRule(rs, &rule, 0); err != nil {
			return fmt.Errorf("landlock rule for TCP port %d: %w", r.Port, os.NewSyscallError("landlock_add_rule", err))
		}
	}
	if err := llsys.LandlockRestrictSelf(rs, 0); err != nil {
		return fmt.Errorf("landlock: %w", os.NewSyscallError("landlock_restrict_self", err))
	}
	return nil
}

// ruleError says which path rule failed, as opError does of operations.
type ruleError struct {
	index int
	err   error
}

func (e *ruleError) Error() string { return e.err.Error() }
func (e *ruleError) Unwrap() error { return e.err }

func addRule(rs int, r initproto.PathRule) error {
	fd, err := unix.Open(r.Path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		if r.Optional && (errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EACCES)) {
			return nil
		}
		return fmt.Errorf("landlock rule for %q: %w", r.Path, os.NewSyscallError("open", err))
	}
	defer unix.Close(fd)
	if err = grant(rs, fd, r.Access); errors.Is(err, unix.EINVAL) && r.Access&dirOnly != 0 {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return os.NewSyscallError("fstat", err)
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			err = grant(rs, fd, r.Access&^dirOnly)
		}
	}
	if err != nil {
		return fmt.Errorf("landlock rule for %q: %w", r.Path, os.NewSyscallError("landlock_add_rule", err))
	}
	return nil
}

func grant(rs, fd int, access uint64) error {
	if access == 0 {
		return nil
	}
	return llsys.LandlockAddPathBeneathRule(rs, &llsys.PathBeneathAttr{ParentFd: fd, AllowedAccess: access}, 0)
}

// caps is a set of capabilities in the form of capset(2).
type caps struct {
	header unix.CapUserHeader
	data   [2]unix.CapUserData
}

// capsOf is the set that init keeps, for spawning.
func capsOf(keep uint64) *caps {
	c := &caps{header: unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}}
	for i := range c.data {
		v := uint32(keep >> (32 * i))
		c.data[i] = unix.CapUserData{Effective: v, Permitted: v}
	}
	return c
}

// dropOwnCaps leaves this thread, and stage 2 that it forks, with the set that init keeps.
func dropOwnCaps(keep uint64) error {
	c := capsOf(keep)
	if err := unix.Capset(&c.header, &c.data[0]); err != nil {
		return fmt.Errorf("dropping capabilities: %w", os.NewSyscallError("capset", err))
	}
	return nil
}

// dropCaps leaves init with that set on all its threads. To reach them takes longer than
// stage 2 does to get ready, so where that is possible it comes after the fork, beside it.
func dropCaps(keep uint64) error {
	c := capsOf(keep)
	_, _, e := syscall.AllThreadsSyscall(syscall.SYS_CAPSET, uintptr(unsafe.Pointer(&c.header)), uintptr(unsafe.Pointer(&c.data)), 0)
	if e != 0 {
		return fmt.Errorf("dropping capabilities: %w", os.NewSyscallError("capset", e))
	}
	return nil
}

// signalsSiblings tells whether this thread, once it is in its Landlock domain, can still
// signal the others, which is how the Go runtime reaches them. Not so on kernels before 6.15
// (ABI 7) where signals are scoped; fixed by 18eb75f3af40 of the kernel.
func signalsSiblings(l initproto.Landlock) bool {
	return l.ABI == 0 || l.ABI >= 7 || l.Scoped&llsys.ScopeSignal == 0
}

// ignoreSignals keeps the workload from ending its own init, or making it dump
// a trace: the kernel shields PID 1 from signals of its namespace only where
// there is no handler, and the Go runtime has one for nearly all. Set through
// the kernel, for the runtime would not let go of its own.
func ignoreSignals() error {
	var (
		ign = sigaction{handler: 1} // SIG_IGN
		def sigaction
	)
	for n := uintptr(1); n <= 64; n++ {
		action := &ign
		switch syscall.Signal(n) {
		case unix.SIGKILL, unix.SIGSTOP:
			continue // cannot be changed
		case unix.SIGCHLD:
			// Ignored, children would vanish before they are waited for. By default
			// nothing is sent: who waits hears of an end without it.
			action = &def
		}
		if _, _, e := syscall.RawSyscall6(syscall.SYS_RT_SIGACTION, n, uintptr(unsafe.Pointer(action)), 0, 8, 0, 0); e != 0 {
			return fmt.Errorf("ignoring signal %d: %w", n, os.NewSyscallError("rt_sigaction", e))
		}
	}
	return nil
}

// harden is what init does to itself once stage 2 is on its way: no descriptor
// of the host's is left in it, and its own filter is on.
func harden(setup *initproto.Setup, null int) error {
	defer unix.Close(null)
	for fd := range 3 {
		if err := unix.Dup3(null, fd, 0); err != nil {
			return os.NewSyscallError("dup3", err)
		}
	}
	if signalsSiblings(setup.Landlock) { // else it was done before
		if err := dropCaps(setup.InitCaps); err != nil {
			return err
		}
	}
	if err := ignoreSignals(); err != nil { // those too by which threads are reached
		return err
	}
	fprog, err := program(setup.InitFilter)
	if err != nil {
		return err
	}
	if fprog.Len == 0 {
		return nil
	}
	// TSYNC: on every thread, or not at all (seccomp(2)).
	r, _, e := syscall.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&fprog)))
	if e != 0 {
		return fmt.Errorf("init's own filter: %w", os.NewSyscallError("seccomp", e))
	}
	if r != 0 {
		return fmt.Errorf("init's own filter: thread %d cannot have it", r)
	}
	return nil
}
