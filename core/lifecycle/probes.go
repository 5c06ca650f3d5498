package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nucleus-runtime/nucleus/core/audit"
	"github.com/nucleus-runtime/nucleus/core/notify"
	"github.com/nucleus-runtime/nucleus/core/plan"
	"github.com/nucleus-runtime/nucleus/core/probe"
)

// Ready is closed when the workload runs and its readiness probe, if it has one, has
// passed.
func (s *Sandbox) Ready() <-chan struct{} { return s.readied }

// Running is closed when the workload's program runs.
func (s *Sandbox) Running() <-chan struct{} { return s.runs }

// Health is what the health probe says last, "" without one.
func (s *Sandbox) Health() probe.State {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.health
}

// probe watches over the workload from its start to its end. Probes are processes of
// the sandbox, made as those of Exec.
func (s *Sandbox) probe() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		select {
		case <-s.ending:
			cancel()
		case <-ctx.Done():
		}
	}()
	select {
	case <-s.runs:
	case <-ctx.Done():
		return
	}
	if r := s.plan.Readiness; r != nil {
		var err error
		if r.Notify {
			err = s.awaitNotice(ctx, r.Timeout)
		} else {
			err = s.awaitReady(ctx, probe.Readiness{Interval: r.Interval, Timeout: r.Timeout}, s.trying(r.Probe))
		}
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			s.Fail(s.probeFailed("readiness", err))
			return
		}
		s.log.Emit(audit.Ready, nil, nil)
		close(s.readied)
		s.tellManager(notify.Message{Ready: true})
	}
	h := s.plan.Health
	if h == nil {
		return
	}
	err := probe.Watch(ctx, probe.Health{Interval: h.Interval, Timeout: h.Timeout, StartPeriod: h.StartPeriod, Retries: h.Retries}, s.trying(h.Probe), s.healthIs)
	if err != nil && ctx.Err() == nil {
		s.Fail(s.probeFailed("health", err))
	}
}

// awaitReady gives a workload that was paused meanwhile its whole timeout anew.
func (s *Sandbox) awaitReady(ctx context.Context, r probe.Readiness, try probe.Try) error {
	for {
		stood := s.stoodStill()
		err := probe.AwaitReady(ctx, r, try)
		if err == nil || ctx.Err() != nil || !stood() {
			return err
		}
	}
}

// stoodStill gives what tells, from now on, whether the sandbox is paused or has been.
func (s *Sandbox) stoodStill() func() bool {
	s.freezing.Lock() // a pause on its way is over before the state is looked at
	defer s.freezing.Unlock()
	st := s.Status()
	n, paused := s.pauses.Load(), st == StatusPaused || st == StatusCheckpointing
	return func() bool { return paused || s.pauses.Load() != n }
}

// trying gives a probe as it is tried. That a process is made has the limit of its own
// which it has for commands, not the try's: given up half made, it would be there beside
// the next.
func (s *Sandbox) trying(p plan.Probe) probe.Try {
	try := s.dial
	if p.Exec != nil {
		try = s.run
	}
	return s.unlessPaused(func(ctx context.Context) error { return try(ctx, p) })
}

// unlessPaused: what fails while the sandbox stands still says nothing of it.
func (s *Sandbox) unlessPaused(try probe.Try) probe.Try {
	return func(ctx context.Context) error {
		stood := s.stoodStill()
		if stood() {
			return probe.ErrPaused
		}
		err := try(ctx)
		if err != nil && stood() {
			return probe.ErrPaused
		}
		return err
	}
}

// probeFailed is the end of a sandbox for a probe's sake, with the remedy that the last
// try knows.
func (s *Sandbox) probeFailed(block string, err error) error {
	e := &PhaseError{Phase: block, Origin: block, Err: err}
	last := err
	var never *probe.NotReadyError
	if errors.As(err, &never) {
		last = never.Last
	}
	var sick *probe.UnhealthyError
	if errors.As(err, &sick) {
		last = sick.Last
	}
	var pe *PhaseError
	if errors.As(last, &pe) {
		e.Hint = pe.Hint
	}
	var de *dialError
	if errors.As(last, &de) {
		e.Hint = dialHint(s.plan, de)
	}
	return e
}

func (s *Sandbox) healthIs(st probe.Status) {
	s.mu.Lock()
	s.health = st.State
	s.mu.Unlock()
	s.notify()
	s.log.Emit(audit.HealthChanged, st.Last, map[string]any{"state": string(st.State), "failing": st.Failing})
}

// run is a try of a probe with a command.
func (s *Sandbox) run(ctx context.Context, probe plan.Probe) error {
	p, err := s.Exec(context.WithoutCancel(ctx), Command{Args: probe.Exec, Quiet: true})
	if err != nil {
		return err
	}
	if !p.endsWithin(ctx) {
		return ctx.Err()
	}
	code, signal, err := p.Wait()
	switch {
	case err != nil:
		return err
	case signal != 0:
		return fmt.Errorf("signal %d ended it", signal)
	case code != 0:
		return fmt.Errorf("exit code %d", code)
	}
	return nil
}

// endsWithin waits for the end of a process, which is killed when ctx is over. One that
// a runtime's program does not get to its end is killed without being waited for.
func (p *Process) endsWithin(ctx context.Context) bool {
	select {
	case <-p.Ended():
		return true
	case <-ctx.Done():
		p.Kill()
		select {
		case <-p.Ended():
		case <-p.hopeless():
		}
		return false
	}
}

// hopeless is when the end of a killed process is not worth waiting for any longer: never,
// if the kernel ends it.
func (p *Process) hopeless() <-chan time.Time {
	if !p.inside {
		return nil
	}
	return time.After(signalTime)
}
