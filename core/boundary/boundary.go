// Package boundary owns the calls that a sandbox makes to hooks plugins at the
// boundaries of its phases: who is asked, in which order, and what an answer may
// change. It starts no plugin, and knows none: a Source does.
package boundary

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/hcl/v2"

	"github.com/nucleus-runtime/nucleus/core/plan"
	"github.com/nucleus-runtime/nucleus/sdk/hooks"
)

// Want is one hooks plugin that a job names.
type Want struct {
	Plugin string
	// Config is the block for the plugin, nil for none, and Eval what it may refer to.
	Config hcl.Body
	Eval   *hcl.EvalContext
}

// Caller is a plugin that is ready to be called for one sandbox.
type Caller interface {
	Subscription() hooks.Subscription
	Call(ctx context.Context, e hooks.Event) (hooks.Answer, error)
	// Record is for a call that somebody else may have to make.
	Record() Record
	// Close ends the plugin.
	Close()
}

// Source starts hooks plugins. It may be asked by several sandboxes at once.
type Source interface {
	Open(ctx context.Context, sandbox string, w Want) (Caller, error)
	// Reopen is for the sandbox of a supervisor that is gone.
	Reopen(ctx context.Context, sandbox string, r Record) (Caller, error)
}

// Record is what another process needs to make a sandbox's last call to a plugin.
type Record struct {
	Plugin string `json:"plugin"`
	// Config is what the plugin was configured with, as it travels, without what must
	// not be shown.
	Config []byte `json:"config,omitempty"`
	// Pinned: only a plugin whose digest the operator names may be called.
	Pinned  bool          `json:"pinned,omitempty"`
	Timeout time.Duration `json:"timeout"`
}

// Error is a hooks plugin that could not be called, or that refuses the start.
type Error struct {
	Plugin string
	Origin string // the job's path of its block
	Hint   string
	Err    error
}

func (e *Error) Error() string { return fmt.Sprintf("hooks plugin %q: %v", e.Plugin, e.Err) }
func (e *Error) Unwrap() error { return e.Err }

// Hinted is implemented by errors of a Source that know a remedy.
type Hinted interface{ Remedy() string }

func failed(h plan.PluginHook, err error) *Error {
	e := &Error{Plugin: h.Plugin, Origin: h.Origin, Err: err}
	var hinted Hinted
	if errors.As(err, &hinted) {
		e.Hint = hinted.Remedy()
	}
	return e
}

// Subscribers are the plugins of one sandbox in the order in which they are
// called. The nil value has none.
type Subscribers struct {
	all []subscriber
	// wrote tells which plugin set a variable ("env X") or an annotation.
	wrote map[string]string
}

type subscriber struct {
	plan.PluginHook
	caller Caller
	sub    hooks.Subscription
}

// Open starts all plugins of a plan beside each other.
func Open(ctx context.Context, src Source, sandbox string, p *plan.Plan) (*Subscribers, error) {
	s := &Subscribers{all: make([]subscriber, len(p.PluginHooks)), wrote: map[string]string{}}
	failures := make([]error, len(p.PluginHooks))
	var wg sync.WaitGroup
	for i, h := range p.PluginHooks {
		wg.Go(func() {
			c, err := src.Open(ctx, sandbox, Want{Plugin: h.Plugin, Config: h.Config, Eval: h.Eval})
			if err != nil {
				failures[i] = failed(h, err)
				return
			}
			s.all[i] = subscriber{h, c, c.Subscription()}
		})
	}
	wg.Wait()
	if err := errors.Join(failures...); err != nil {
		s.Close()
		return nil, err
	}
	slices.SortStableFunc(s.all, func(a, b subscriber) int { return cmp.Compare(a.sub.Order, b.sub.Order) })
	return s, nil
}

// Want tells whether anybody is called at a boundary.
func (s *Subscribers) Want(b hooks.Boundary) bool {
	return s != nil && slices.ContainsFunc(s.all, func(x subscriber) bool { return x.sub.At.Has(b) })
}

// Close ends all plugins.
func (s *Subscribers) Close() {
	if s == nil {
		return
	}
	var wg sync.WaitGroup
	for _, x := range s.all {
		if x.caller != nil {
			wg.Go(x.caller.Close)
		}
	}
	wg.Wait()
}

// Records are those of the plugins that want to hear of the sandbox's clean-up.
func (s *Subscribers) Records() []Record {
	var out []Record
	for _, x := range s.all {
		if x.sub.At.Has(hooks.Cleanup) {
			r := x.caller.Record()
			r.Timeout = x.Timeout
			out = append(out, r)
		}
	}
	return out
}

// Observer hears of each call when it is over.
type Observer func(plugin string, b hooks.Boundary, began time.Time, err error)

// Ask calls those that want to hear of a boundary before a phase, one after the
// other. The first that fails, refuses, or changes what it must not, ends it. Narrow
// is given each answer's changes.
func (s *Subscribers) Ask(ctx context.Context, e hooks.Event, narrow func(hooks.Mutation) error, seen Observer) error {
	for _, x := range s.all {
		if !x.sub.At.Has(e.Boundary) {
			continue
		}
		began := time.Now()
		a, err := x.call(ctx, e)
		if err == nil && a.Veto != "" {
			err = &VetoError{a.Veto}
		}
		if err == nil && !empty(a.Mutation) {
			if err = s.check(x.Plugin, a.Mutation, e.Boundary); err == nil {
				err = narrow(a.Mutation)
			}
		}
		seen(x.Plugin, e.Boundary, began, err)
		if err != nil {
			return failed(x.PluginHook, err)
		}
	}
	return nil
}

// VetoError is the reason for which a plugin refuses a start.
type VetoError struct{ Reason string }

func (e *VetoError) Error() string { return "it refuses the start: " + e.Reason }

// Tell calls those that want to hear of what has happened. A failure hinders
// nobody; the last one is returned for those who want to know of one at all.
func (s *Subscribers) Tell(ctx context.Context, e hooks.Event, seen Observer) error {
	var errs []error
	for _, x := range s.all {
		if x.sub.At.Has(e.Boundary) {
			began := time.Now()
			err := x.tell(ctx, e)
			seen(x.Plugin, e.Boundary, began, err)
			if err != nil {
				errs = append(errs, failed(x.PluginHook, err))
			}
		}
	}
	return errors.Join(errs...)
}

func (x *subscriber) tell(ctx context.Context, e hooks.Event) error {
	a, err := x.call(ctx, e)
	if err == nil && (a.Veto != "" || !empty(a.Mutation)) {
		err = fmt.Errorf("it answers %s with a veto or a change: it is told of what has happened already", e.Boundary)
	}
	return err
}

func (x *subscriber) call(ctx context.Context, e hooks.Event) (hooks.Answer, error) {
	limit := x.Timeout
	if e.Boundary == hooks.Cleanup {
		// Whoever comes after it is owed a call, too.
		limit = min(limit, MaxCleanup)
	}
	within, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	a, err := x.caller.Call(within, e)
	if err != nil && within.Err() != nil && ctx.Err() == nil {
		err = fmt.Errorf("no answer at %s within its timeout of %s: %w", e.Boundary, limit, err)
	} else if err != nil {
		err = fmt.Errorf("at %s: %w", e.Boundary, err)
	}
	return a, err
}

// MaxCleanup is the longest that a plugin may take for its last call.
const MaxCleanup = 10 * time.Second

// Recall makes the last call to the plugins of a sandbox whose supervisor is gone.
func Recall(ctx context.Context, src Source, sandbox string, rs []Record, e hooks.Event, seen Observer) error {
	errs := make([]error, len(rs))
	for i, r := range rs {
		errs[i] = recall(ctx, src, sandbox, r, e, seen)
	}
	return errors.Join(errs...)
}

// startTime bounds the start of a plugin for its last call.
const startTime = 15 * time.Second

func recall(ctx context.Context, src Source, sandbox string, r Record, e hooks.Event, seen Observer) error {
	began := time.Now()
	h := plan.PluginHook{Plugin: r.Plugin, Timeout: r.Timeout}
	within, cancel := context.WithTimeout(ctx, startTime)
	c, err := src.Reopen(within, sandbox, r)
	cancel()
	if err == nil {
		x := subscriber{PluginHook: h, caller: c}
		err = x.tell(ctx, e)
		c.Close()
	}
	seen(r.Plugin, e.Boundary, began, err)
	if err != nil {
		return failed(h, err)
	}
	return nil
}
