package core

import (
	"context"
	"errors"

	"github.com/nucleus-runtime/nucleus/core/lifecycle"
	"github.com/nucleus-runtime/nucleus/core/plan"
	"github.com/nucleus-runtime/nucleus/core/supervisor"
)

// Sandbox is a sandbox that was created. It is served on its control socket from then
// on, until it is gone.
type Sandbox struct {
	*lifecycle.Sandbox
	plan *plan.Plan
	sup  *supervisor.Supervisor
	out  *supervisor.Output // nil unless it is detached
	keep bool

	over chan struct{}
	res  Result
	err  error
}

// supervise begins to serve a sandbox.
func supervise(ctx context.Context, ls *lifecycle.Sandbox, p *plan.Plan, o RunOptions, out *supervisor.Output) (*Sandbox, error) {
	s := &Sandbox{Sandbox: ls, plan: p, out: out, keep: o.Keep, over: make(chan struct{})}
	var err error
	if out != nil {
		err = out.Begin(ls.Dir().Path)
	}
	if err == nil {
		s.sup, err = supervisor.New(ls, supervisor.Config{Detached: o.Detached, Held: o.Held, Stack: o.Stack, Output: out, Locate: func(err error) error { return locate(err, p) }})
	}
	if err != nil {
		err = errors.Join(err, s.Destroy(ctx))
		return nil, &lifecycle.StartError{ID: ls.ID(), Name: ls.Name(), Err: lifecycle.StatePhase(err)}
	}
	return s, nil
}

// Failed is the result of a sandbox that was created and whose start ended with err.
func (s *Sandbox) Failed(err error) Result {
	res := Failed(err)
	res.ID, res.Name = s.ID(), s.Name()
	return res
}

// Start opens the start gate and runs the sandbox to its end in the background.
func (s *Sandbox) Start(ctx context.Context) error {
	if err := s.Sandbox.Start(ctx); err != nil {
		err = locate(err, s.plan)
		s.end(s.Failed(err), err)
		return err
	}
	go func() {
		res, err := s.Sandbox.Wait()
		s.end(res, locate(err, s.plan))
	}()
	return nil
}

// Destroy ends a sandbox that was created and not started.
func (s *Sandbox) Destroy(ctx context.Context) error {
	err := s.Sandbox.Destroy(ctx)
	gone := errors.New("the sandbox was removed before it was started")
	s.end(s.Failed(gone), errors.Join(gone, err))
	return err
}

// end is what comes after the last undo.
func (s *Sandbox) end(res Result, err error) {
	if s.out != nil {
		if lerr := s.out.Finish(); lerr != nil && res.OutputError == "" {
			res.OutputError = lerr.Error()
		}
	}
	if s.keep && !res.Started.IsZero() && s.sup != nil {
		err = errors.Join(err, s.sup.Keep(res, err), s.Dir().Keep())
	}
	s.res, s.err = res, err
	if s.sup != nil {
		s.sup.End(res, err)
	}
	close(s.over)
}

// Wait gives the end of a started sandbox, after its teardown. The error tells what
// Nucleus itself could not do.
func (s *Sandbox) Wait() (Result, error) {
	<-s.over
	return s.res, s.err
}

// StartAsked is closed when somebody has asked for the start on the control socket.
func (s *Sandbox) StartAsked() <-chan struct{} { return s.sup.StartAsked() }
