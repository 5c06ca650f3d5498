package lifecycle

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nucleus-runtime/nucleus/core/audit"
	"github.com/nucleus-runtime/nucleus/core/boundary"
	"github.com/nucleus-runtime/nucleus/core/exec"
	"github.com/nucleus-runtime/nucleus/core/initproto"
	"github.com/nucleus-runtime/nucleus/core/security"
	"github.com/nucleus-runtime/nucleus/sdk/hooks"
)

// boundaries are the calls to the hooks plugins of one sandbox. Each waits for the
// one before it: plugins hear of things in their order.
type boundaries struct {
	subs *boundary.Subscribers

	mu   sync.Mutex
	last chan struct{} // closed when the last call that was begun is over; nil for none

	// ctx ends when nobody has any more patience with what is told.
	ctx    context.Context
	giveUp context.CancelFunc
}

// pluginTime is how long the hooks plugins of a job may take to be there.
const pluginTime = 30 * time.Second

// openPlugins starts the hooks plugins, notes who is to hear of the clean-up
// before anything has been done, and calls at the first boundaries.
func (s *Sandbox) openPlugins(ctx context.Context) error {
	if len(s.plan.PluginHooks) == 0 {
		return nil
	}
	if s.cfg.Hooks == nil {
		return &PhaseError{Phase: "hooks", Origin: s.plan.PluginHooks[0].Origin, Err: errors.New("there is nobody to call hooks plugins")}
	}
	within, cancel := context.WithTimeout(ctx, pluginTime)
	subs, err := boundary.Open(within, s.cfg.Hooks, s.dir.ID, s.plan)
	cancel()
	if err != nil {
		return s.pluginFailed(err)
	}
	s.bounds.subs = subs
	s.bounds.ctx, s.bounds.giveUp = context.WithCancel(context.Background())
	if rs := subs.Records(); len(rs) > 0 {
		if err := s.dir.Journal.Intent(stepPlugins, rs); err != nil {
			return phase("hooks", err)
		}
	}
	if err := s.reach(ctx, hooks.PreNamespaces); err != nil {
		return err
	}
	return s.reach(ctx, hooks.PreCgroups)
}

// pluginFailed gives the failure of a hooks plugin its place in the job. What a
// plugin says drives no terminal.
func (s *Sandbox) pluginFailed(err error) error {
	e := &PhaseError{Phase: "hooks", Err: &sourceError{err}}
	var be *boundary.Error
	if errors.As(err, &be) {
		e.Origin, e.Hint = be.Origin, audit.Clean(be.Hint)
	}
	return e
}

// event is what is told of a boundary.
func (s *Sandbox) event(b hooks.Boundary) (hooks.Event, error) {
	e := hooks.Event{Boundary: b, SandboxName: s.dir.Name, Pid: s.workPid}
	if e.Pid == 0 && s.init != nil {
		e.Pid = s.init.Pid
	}
	if b < hooks.PreFS && b != hooks.PostCgroups { // which comes after that
		return e, nil
	}
	// What variables hold may be confidential: their names are told.
	p := *s.plan
	p.Process.Env = slices.Clone(p.Process.Env)
	for i, kv := range p.Process.Env {
		p.Process.Env[i], _, _ = strings.Cut(kv, "=")
	}
	p.Hooks = slices.Clone(p.Hooks)
	for i := range p.Hooks {
		p.Hooks[i].Env = nil
	}
	p.Files = slices.Clone(p.Files)
	for i := range p.Files {
		p.Files[i].Content = ""
	}
	var err error
	e.Plan, err = json.Marshal(&p)
	return e, err
}

// reach calls at the boundary before a phase, and applies what the answers change.
func (s *Sandbox) reach(ctx context.Context, b hooks.Boundary) error {
	if !s.bounds.subs.Want(b) {
		return nil
	}
	if err := s.bounds.await(ctx); err != nil {
		return phase("hooks", err)
	}
	e, err := s.event(b)
	if err != nil {
		return phase("hooks", err)
	}
	was := s.plan
	err = s.bounds.subs.Ask(ctx, e, func(m hooks.Mutation) error {
		narrower, err := boundary.Narrow(s.plan, m, security.Inherited)
		if err != nil {
			return err
		}
		s.plan = narrower
		s.log.Emit(audit.HookChanged, nil, map[string]any{
			"boundary": b.String(), "env": keys(m.AddEnv), "drop_capabilities": m.DropCapabilities, "rlimits": m.LowerRlimits, "annotations": m.Annotations,
		})
		return nil
	}, s.called)
	if err != nil {
		return s.pluginFailed(err)
	}
	if s.plan == was {
		return nil
	}
	if err := s.keepsProcess(was); err != nil {
		return err
	}
	return s.recompile()
}

// recompile takes over what a changed plan says of the process, if that was
// compiled already.
func (s *Sandbox) recompile() error {
	if s.process.Args == nil && s.process.Paths == nil || s.plan.Runtime != nil {
		return nil
	}
	p, err := security.Process(s.plan)
	if err != nil {
		return phase("security", err)
	}
	s.process.Env, s.process.Caps, s.process.Rlimits = p.Env, p.Caps, p.Rlimits
	if s.setup != nil {
		s.setup.Process, s.setup.InitCaps = s.process, security.InitCaps(s.process)
	}
	return nil
}

func keys(m map[string]string) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// called makes an event of each call.
func (s *Sandbox) called(plugin string, b hooks.Boundary, began time.Time, err error) {
	pluginCalled(s.log, plugin, b, began, err)
}

func pluginCalled(log *audit.Log, plugin string, b hooks.Boundary, began time.Time, err error) {
	t := audit.HookRan
	detail := map[string]any{"plugin": plugin, "boundary": b.String(), "duration_ms": time.Since(began).Milliseconds()}
	var veto *boundary.VetoError
	if errors.As(err, &veto) {
		detail["veto"] = true
	}
	if err != nil {
		t = audit.HookFailed
		err = &sourceError{err}
	}
	log.Emit(t, err, detail)
}

// tell calls at a boundary that was passed, beside what goes on.
func (s *Sandbox) tell(b hooks.Boundary, end *exec.Result) {
	if !s.bounds.subs.Want(b) {
		return
	}
	e, err := s.event(b)
	if err != nil {
		s.called("", b, time.Now(), err)
		return
	}
	if end != nil {
		e.Cause, e.ExitCode = string(end.Cause), end.ExitCode
	}
	s.bounds.next(func(ctx context.Context) { _ = s.bounds.subs.Tell(ctx, e, s.called) }) // each failure has its event
}

// next begins f once all before it is over.
func (b *boundaries) next(f func(context.Context)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	before, done := b.last, make(chan struct{})
	b.last = done
	ctx := b.ctx
	go func() {
		defer close(done)
		if before != nil {
			<-before
		}
		f(ctx)
	}()
}

// end waits for all that was told, for as long as a teardown may take.
func (b *boundaries) end() {
	if b.subs == nil {
		return
	}
	impatient := time.AfterFunc(undoBudget, b.hurry)
	_ = b.await(context.Background()) // that has no end
	impatient.Stop()
	b.hurry()
}

// hurry ends the calls that were begun, or wait for one: nobody waits for them any
// more.
func (b *boundaries) hurry() {
	if b.subs == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.giveUp()
	b.ctx, b.giveUp = context.WithCancel(context.Background())
}

// patience ends when somebody is in a hurry.
func (b *boundaries) patience() context.Context {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ctx
}

// await waits for all that was told, or for the end of ctx.
func (b *boundaries) await(ctx context.Context) error {
	b.mu.Lock()
	last := b.last
	b.mu.Unlock()
	if last == nil {
		return nil
	}
	select {
	case <-last:
		return nil
	case <-ctx.Done():
		b.hurry()
		return context.Cause(ctx)
	}
}

// narrows tells whether init must wait for plugins before it makes stage 2.
func (s *Sandbox) narrows() bool {
	return s.bounds.subs.Want(hooks.PostFS) || s.bounds.subs.Want(hooks.PreSecurity)
}

// beforeSecurity calls at the boundaries between the file system and the
// restrictions, and lets init go on with what came of it.
func (s *Sandbox) beforeSecurity(ctx context.Context) error {
	s.tell(hooks.PostFS, nil)
	if !s.narrows() {
		return nil
	}
	told := s.plan // what init was told is of this one
	if err := s.reach(ctx, hooks.PreSecurity); err != nil {
		return err
	}
	if s.plan != told {
		m := &initproto.Narrow{Env: s.process.Env, Caps: s.process.Caps, Rlimits: s.process.Rlimits, InitCaps: s.setup.InitCaps}
		if err := s.conn.Send(initproto.Encode(initproto.KindNarrow, m)); err != nil {
			return s.broken("security", err)
		}
	}
	if s.cfg.Settled != nil {
		s.cfg.Settled(s.plan)
	}
	return s.send(initproto.KindGo)
}

// ErrNoPlugins is the reason why a clean-up is left to a build, or a program, that
// can start plugins.
var ErrNoPlugins = errors.New("it wants a plugin, which cannot be started here")

// recall makes the last call to the plugins of a sandbox.
func (u *undoing) recall(ctx context.Context, data json.RawMessage) error {
	seen := func(plugin string, b hooks.Boundary, began time.Time, err error) {
		pluginCalled(u.log, plugin, b, began, err)
	}
	e := hooks.Event{Boundary: hooks.Cleanup, SandboxName: u.name, Cause: string(exec.CauseRuntime), ExitCode: exec.CodeRuntime}
	if u.live != nil {
		if u.end != nil {
			e.Cause, e.ExitCode = string(u.end.Cause), u.end.ExitCode
		}
		// Each has a time of its own.
		ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		defer cancel()
		defer context.AfterFunc(u.live.patience(), cancel)()
		return u.live.subs.Tell(ctx, e, seen)
	}
	var rs []boundary.Record
	if err := json.Unmarshal(data, &rs); err != nil {
		return err
	}
	if u.hooks == nil {
		return ErrNoPlugins
	}
	return boundary.Recall(context.WithoutCancel(ctx), u.hooks, u.sandbox, rs, e, seen)
}
