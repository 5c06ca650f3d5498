package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/audit"
	"github.com/nucleus-runtime/nucleus/core/exec"
	"github.com/nucleus-runtime/nucleus/core/plan"
	"github.com/nucleus-runtime/nucleus/core/security"
	"github.com/nucleus-runtime/nucleus/core/security/seccomp"
	"github.com/nucleus-runtime/nucleus/core/security/tracer"
)

// trace is what a sandbox in seccomp's trace mode has; its zero value is for all others.
type trace struct {
	calls  *seccomp.Trace
	tracer *tracer.Tracer
	// hooks is what startContainer hooks run under, which init starts by itself: the job's filter.
	hooks seccomp.Filter
	// dir is the directory of the profile that is written at the end: by then the workload may have put another in its
	// place. nil for none.
	dir *os.File
}

// beginTrace gives the filters under which whatever the policy of a request says is asked of us.
func (s *Sandbox) beginTrace(ctx context.Context, req seccomp.Request) (work, init seccomp.Filter, err error) {
	policy, err := s.cfg.Seccomp.Policy(req)
	if err != nil {
		return work, init, err
	}
	if file := s.plan.Seccomp.Record; file != "" {
		if s.trace.dir, err = recordable(file); err != nil {
			return work, init, recordError(err)
		}
	}
	if len(s.plan.HooksOf(plan.HookStartContainer)) > 0 {
		if s.trace.hooks, err = s.cfg.Seccomp.Compile(ctx, req); err != nil {
			return work, init, err
		}
	}
	s.trace.calls = seccomp.NewTrace(policy)
	s.trace.tracer = tracer.New(s.trace.calls.Decide, func(error) { go s.Kill() }) // endTrace has the reason
	work = seccomp.TraceFilter()
	work.Flags = tracer.Flags()
	return work, seccomp.TraceInitFilter(), nil
}

// follow answers the calls of a process at its gate, which has this many passed sockets.
func (s *Sandbox) follow(pidfd, sockets int) error {
	if s.trace.tracer == nil {
		return nil
	}
	err := s.trace.tracer.Follow(pidfd, security.Listener(sockets))
	if err == nil || errors.Is(err, unix.ESRCH) {
		return err
	}
	e := &PhaseError{Phase: "security", Origin: "security.seccomp.mode", Err: fmt.Errorf("taking the listener of the filter: %w", err)}
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSYS) {
		e.Hint = "pidfd_getfd(2) needs Linux 5.6, kernel.yama.ptrace_scope at most 2, and an outer container that admits it; or write mode = \"enforce\""
	}
	return e
}

// endTrace tells what the processes of the sandbox called. They are gone.
func (s *Sandbox) endTrace() error {
	if s.trace.dir != nil {
		defer s.trace.dir.Close()
	}
	if s.trace.tracer == nil {
		return nil
	}
	err := s.trace.tracer.Close()
	if err == nil && s.result.Started.IsZero() {
		return nil // the command has not been executed
	}
	if err != nil {
		err = &PhaseError{Phase: "security", Origin: "security.seccomp.mode", Err: fmt.Errorf("the trace of the system calls ended early: %w", err)}
	}
	calls := map[string]uint64{}
	var refused []exec.TracedCall
	for _, c := range s.trace.calls.Calls() {
		calls[c.Name] = c.Count
		traced := exec.TracedCall{Name: c.Name, Count: c.Count, Refused: c.Refused, Answer: c.Answer, Args: c.Args, Closed: c.Closed}
		s.result.Syscalls = append(s.result.Syscalls, traced)
		if c.Refused > 0 {
			refused = append(refused, traced)
		}
	}
	s.log.Emit(audit.Traced, err, map[string]any{"calls": calls, "refused": refused})
	if file := s.plan.Seccomp.Record; file != "" && err == nil {
		if rerr := s.record(file); rerr != nil {
			err = recordError(rerr)
		}
	}
	return err
}

func recordError(err error) error {
	return &PhaseError{
		Phase: "security", Origin: "security.seccomp.record", Err: fmt.Errorf("the profile of the trace: %w", err),
		Hint: "name a file in a directory that exists and that you may write",
	}
}

// recordable tells before the start what would keep the profile from being written after the end, and holds its
// directory.
func recordable(file string) (*os.File, error) {
	dir, err := os.OpenFile(filepath.Dir(file), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Faccessat(int(dir.Fd()), ".", unix.W_OK|unix.X_OK, unix.AT_EACCESS); err != nil {
		return nil, errors.Join(&os.PathError{Op: "write to", Path: filepath.Dir(file), Err: err}, dir.Close())
	}
	var st unix.Stat_t
	err = unix.Fstatat(int(dir.Fd()), filepath.Base(file), &st, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case errors.Is(err, unix.ENOENT):
		return dir, nil
	case err != nil:
		err = &os.PathError{Op: "stat", Path: file, Err: err}
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		err = fmt.Errorf("%q is no regular file", file)
	default:
		return dir, nil
	}
	return nil, errors.Join(err, dir.Close())
}

// record writes the profile, whole or not at all.
func (s *Sandbox) record(file string) (err error) {
	profile, err := s.trace.calls.Profile()
	if err != nil {
		return err
	}
	dir, temp := int(s.trace.dir.Fd()), ".nucleus-"+s.dir.ID
	fd, err := unix.Openat(dir, temp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return &os.PathError{Op: "create", Path: file, Err: err}
	}
	f := os.NewFile(uintptr(fd), file)
	_, err = f.Write(profile)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.NewSyscallError("renameat", unix.Renameat(dir, temp, dir, filepath.Base(file)))
	}
	if err != nil {
		err = errors.Join(err, unix.Unlinkat(dir, temp, 0))
	}
	return err
}
