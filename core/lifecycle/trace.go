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
}

// beginTrace gives the filters under which whatever the policy of a request says is asked of us.
func (s *Sandbox) beginTrace(ctx context.Context, req seccomp.Request) (work, init seccomp.Filter, err error) {
	policy, err := s.cfg.Seccomp.Policy(req)
	if err != nil {
		return work, init, err
	}
	if file := s.plan.Seccomp.Record; file != "" {
		if err := recordable(file); err != nil {
			return work, init, recordError(err)
		}
	}
	if len(s.plan.HooksOf(plan.HookStartContainer)) > 0 {
		if s.trace.hooks, err = s.cfg.Seccomp.Compile(ctx, req); err != nil {
			return work, init, err
		}
	}
	s.trace.calls = seccomp.NewTrace(policy)
	s.trace.tracer = tracer.New(s.trace.calls.Decide)
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
	if err == nil {
		return nil
	}
	e := &PhaseError{Phase: "security", Origin: "security.seccomp.mode", Err: fmt.Errorf("taking the listener of the filter: %w", err)}
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSYS) {
		e.Hint = "pidfd_getfd(2) needs Linux 5.6, kernel.yama.ptrace_scope at most 2, and an outer container that admits it; or write mode = \"enforce\""
	}
	return e
}

// endTrace tells what the processes of the sandbox called. They are gone.
func (s *Sandbox) endTrace() error {
	if s.trace.tracer == nil {
		return nil
	}
	err := s.trace.tracer.Close()
	if s.started.IsZero() {
		return nil // no workload has called anything
	}
	if err != nil {
		err = &PhaseError{Phase: "security", Origin: "security.seccomp.mode", Err: fmt.Errorf("the trace of the system calls ended early: %w", err)}
	}
	calls := map[string]uint64{}
	var refused []exec.TracedCall
	for _, c := range s.trace.calls.Calls() {
		calls[c.Name] = c.Count
		traced := exec.TracedCall{Name: c.Name, Count: c.Count, Refused: c.Refused, Answer: c.Answer, Closed: c.Closed}
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

// recordable tells before the start what would keep the profile from being written after the end.
func recordable(file string) error {
	if err := unix.Faccessat(unix.AT_FDCWD, filepath.Dir(file), unix.W_OK|unix.X_OK, unix.AT_EACCESS); err != nil {
		return &os.PathError{Op: "writing to", Path: filepath.Dir(file), Err: err}
	}
	st, err := os.Lstat(file)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err == nil && !st.Mode().IsRegular():
		return fmt.Errorf("%q is no regular file", file)
	}
	return err
}

// record writes the profile, whole or not at all.
func (s *Sandbox) record(file string) (err error) {
	profile, err := s.trace.calls.Profile()
	if err != nil {
		return err
	}
	temp := filepath.Join(filepath.Dir(file), "."+filepath.Base(file)+"."+s.dir.ID)
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(profile)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(temp, file)
	}
	if err != nil {
		err = errors.Join(err, os.Remove(temp))
	}
	return err
}
