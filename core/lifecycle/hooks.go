package lifecycle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/audit"
	"github.com/nucleus-runtime/nucleus/core/exec/hook"
	"github.com/nucleus-runtime/nucleus/core/initproto"
	"github.com/nucleus-runtime/nucleus/core/initproto/channel"
	"github.com/nucleus-runtime/nucleus/core/plan"
	"github.com/nucleus-runtime/nucleus/internal/failpoint"
	"github.com/nucleus-runtime/nucleus/internal/procstatus"
	"github.com/nucleus-runtime/nucleus/internal/tail"
)

// hookPrograms are the host's programs of a plan's hooks, open, by the job's path.
type hookPrograms map[string]*os.File

func (h hookPrograms) close() {
	for _, f := range h {
		_ = f.Close()
	}
}

// openHooks opens the host's programs before anything runs, and leaves what the
// hooks expect of a bundle.
func (s *Sandbox) openHooks() error {
	if len(s.plan.Hooks) == 0 {
		return nil
	}
	s.programs = hookPrograms{}
	for _, h := range s.plan.Hooks {
		if h.Phase == plan.HookStartContainer {
			continue // the sandbox's own, which is not there yet
		}
		f, err := hook.Open(h)
		if err != nil {
			return s.hookFailed(err)
		}
		s.programs[h.Origin] = f
	}
	config, err := json.MarshalIndent(s.plan.OCI(), "", "  ")
	if err == nil {
		err = os.WriteFile(s.dir.Path+"/config.json", config, 0o600)
	}
	return phase("state", err)
}

// hookFailed gives a hook's failure its place in the job.
func (s *Sandbox) hookFailed(err error) error {
	var he *hook.Error
	if !errors.As(err, &he) {
		return phase("exec", err)
	}
	return &PhaseError{Phase: "hooks", Origin: he.Hook.Origin, Hint: he.Hint, Err: err}
}

// hooks runs the hooks of one phase on the host, and stops at the first failure.
func (s *Sandbox) hooks(ctx context.Context, of, status string, pid int) error {
	hs := s.plan.HooksOf(of)
	if len(hs) == 0 {
		return nil
	}
	st, err := hook.State(s.dir.ID, status, pid, s.dir.Path, s.dir.Name)
	if err != nil {
		return phase("hooks", err)
	}
	for _, h := range hs {
		if err := runHook(ctx, s.log, h, s.programs[h.Origin], st); err != nil {
			return s.hookFailed(err)
		}
	}
	return nil
}

func runHook(ctx context.Context, log *audit.Log, h plan.Hook, program *os.File, st []byte) error {
	began := time.Now()
	err := hook.Run(ctx, h, program, st)
	failpoint.Hit(h.Phase + " hook")
	hookEnded(log, h, began, err)
	return err
}

func hookEnded(log *audit.Log, h plan.Hook, began time.Time, err error) {
	t := audit.HookRan
	if err != nil {
		t = audit.HookFailed
	}
	log.Emit(t, err, map[string]any{"phase": h.Phase, "command": h.Command[0], "duration_ms": time.Since(began).Milliseconds()})
}

// holds tells whether init must wait for hooks before it enters the new root.
func (s *Sandbox) holds() bool {
	return len(s.plan.HooksOf(plan.HookCreateRuntime))+len(s.plan.HooksOf(plan.HookCreateContainer)) > 0
}

// createHooks waits until the new root is built, then runs the hooks of that
// moment: the host's own, and through init those of the sandbox's namespaces.
func (s *Sandbox) createHooks(ctx context.Context) error {
	if !s.holds() {
		return nil
	}
	_, fds, err := s.receive("fs", initproto.KindBuilt)
	channel.CloseAll(fds)
	if err != nil {
		return s.fsFailed(err)
	}
	if err := s.hooks(ctx, plan.HookCreateRuntime, "creating", s.init.Pid); err != nil {
		return err
	}
	hs := s.plan.HooksOf(plan.HookCreateContainer)
	programs := make([]*os.File, 0, len(hs))
	for _, h := range hs {
		programs = append(programs, s.programs[h.Origin])
	}
	if err := s.sendHooks(hs, "creating", 1, programs); err != nil {
		return err
	}
	return s.letGo()
}

// startHooks has init run the sandbox's own hooks, while the workload waits.
func (s *Sandbox) startHooks() error {
	hs := s.plan.HooksOf(plan.HookStartContainer)
	if len(hs) == 0 {
		return nil
	}
	pid, err := innerPid(s.workPid)
	if err != nil {
		return s.reason("hooks", err)
	}
	if err := s.sendHooks(hs, "created", pid, nil); err != nil {
		return err
	}
	_, fds, err := s.receive("hooks", initproto.KindHooksDone)
	channel.CloseAll(fds)
	if err == nil {
		s.hooksDone()
	}
	return err
}

// sendHooks tells init which hooks to run. What they print is kept for the case
// that one fails.
func (s *Sandbox) sendHooks(hs []plan.Hook, status string, pid int, programs []*os.File) error {
	st, err := hook.State(s.dir.ID, status, pid, s.dir.Path, s.dir.Name)
	if err != nil {
		return phase("hooks", err)
	}
	msg := &initproto.Hooks{State: st, Filter: s.trace.hooks.BPF, FilterFlags: s.trace.hooks.Flags}
	for _, h := range hs {
		msg.Hooks = append(msg.Hooks, initproto.Hook{Args: h.Command, Env: hook.Env(h), Timeout: uint32(min(h.Timeout.Milliseconds(), 1<<32-1))})
	}
	s.inside = &insideHooks{hooks: hs, began: time.Now()}
	var fds []int
	if len(hs) > 0 {
		r, w, err := os.Pipe()
		if err != nil {
			return phase("hooks", err)
		}
		defer w.Close()
		s.inside.read(r)
		fds = append(fds, int(w.Fd()))
		for _, f := range programs {
			fds = append(fds, int(f.Fd()))
		}
	}
	if err := s.conn.Send(initproto.Encode(initproto.KindHooks, msg), fds...); err != nil {
		return s.broken("hooks", err)
	}
	return nil
}

// insideHooks are those that init runs at the moment.
type insideHooks struct {
	hooks  []plan.Hook
	began  time.Time
	out    *os.File
	tail   tail.Tail
	copied chan struct{}
}

func (i *insideHooks) read(r *os.File) {
	i.out, i.copied = r, make(chan struct{})
	go func() {
		defer close(i.copied)
		_, _ = r.WriteTo(&i.tail) // the end of the pipe, or of our interest
	}()
}

// printed gives the end of what the hooks printed. A process that they left
// behind may hold their output.
func (i *insideHooks) printed() string {
	if i.out == nil {
		return ""
	}
	_ = i.out.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	<-i.copied
	_ = i.out.Close()
	i.out = nil
	return audit.Clean(i.tail.String())
}

// hooksDone notes that the hooks inside have run. One event each; their times
// are known together only.
func (s *Sandbox) hooksDone() {
	if s.inside == nil {
		return
	}
	s.inside.printed()
	for _, h := range s.inside.hooks {
		hookEnded(s.log, h, s.inside.began, nil)
	}
	s.inside = nil
}

// insideFailed explains what init says of a hook that it ran.
func (s *Sandbox) insideFailed(n int32, cause error) error {
	if s.inside == nil || n < 0 || int(n) >= len(s.inside.hooks) {
		return nil
	}
	h := s.inside.hooks[n]
	e := &hook.Error{Hook: h, Err: cause, Output: s.inside.printed()}
	if h.Phase == plan.HookStartContainer && errors.Is(cause, unix.ENOENT) {
		e.Hint = "a startContainer hook is a program of the sandbox: name one of its root file system"
	}
	hookEnded(s.log, h, s.inside.began, e)
	return s.hookFailed(e)
}

// stopHooks is the record of the poststop hooks: whoever undoes the sandbox runs
// them, once nothing of it is left.
type stopHooks struct {
	Hooks []plan.Hook     `json:"hooks"`
	State json.RawMessage `json:"state"`
}

// intendStopHooks journals the poststop hooks first of all, so that they run last.
func (s *Sandbox) intendStopHooks() error {
	hs := s.plan.HooksOf(plan.HookPoststop)
	if len(hs) == 0 {
		return nil
	}
	st, err := hook.State(s.dir.ID, "stopped", 0, s.dir.Path, s.dir.Name)
	if err != nil {
		return phase("hooks", err)
	}
	return phase("hooks", s.dir.Journal.Intent(stepHooks, stopHooks{Hooks: hs, State: st}))
}

// stopHookError is what failed of the poststop hooks. It is a warning: nothing is
// owed (OCI runtime-spec, runtime.md, Lifecycle).
type stopHookError struct{ err error }

func (e *stopHookError) Error() string { return e.err.Error() }
func (e *stopHookError) Unwrap() error { return e.err }

// runStopHooks runs all of them, whatever fails. Each has its own time.
func (u *undoing) runStopHooks(ctx context.Context, data json.RawMessage) error {
	var r stopHooks
	if err := json.Unmarshal(data, &r); err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	var errs []error
	for _, h := range r.Hooks {
		f, err := hook.Open(h)
		if err == nil {
			err = runHook(ctx, u.log, h, f, r.State)
			_ = f.Close()
		}
		if err != nil {
			errs = append(errs, err)
		}
	}
	if len(errs) > 0 {
		return &stopHookError{errors.Join(errs...)}
	}
	return nil
}

// innerPid tells a process's pid in its own PID namespace, the last of NSpid.
func innerPid(pid int) (int, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	ids := strings.Fields(procstatus.Text(b).Get("NSpid"))
	if len(ids) == 0 {
		return 0, fmt.Errorf("/proc/%d/status: no NSpid", pid)
	}
	return strconv.Atoi(ids[len(ids)-1])
}

// poststart runs the hooks of that phase beside the workload, once.
type poststart struct {
	s      *Sandbox
	ctx    context.Context
	cancel context.CancelFunc
	begun  bool
	done   chan error // nil unless they run
}

func newPoststart(s *Sandbox) *poststart {
	p := &poststart{s: s}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p
}

func (p *poststart) run() {
	if p.begun || len(p.s.plan.HooksOf(plan.HookPoststart)) == 0 {
		return
	}
	p.begun = true
	done := make(chan error, 1)
	p.done = done
	go func() { done <- p.s.hooks(p.ctx, plan.HookPoststart, "running", p.s.workPid) }()
}
