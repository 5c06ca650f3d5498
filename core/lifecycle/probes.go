package lifecycle

import (
	"context"
	"fmt"
	"os"

	"github.com/nucleus-runtime/nucleus/core/audit"
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
// the sandbox as Exec makes them.
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
		err := probe.AwaitReady(ctx, probe.Readiness{Interval: r.Interval, Timeout: r.Timeout}, func(ctx context.Context) error { return s.try(ctx, r.Exec) })
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			s.Fail(&PhaseError{Phase: "readiness", Origin: "readiness", Err: err})
			return
		}
		s.log.Emit(audit.Ready, nil, nil)
	}
	close(s.readied)
	h := s.plan.Health
	if h == nil {
		return
	}
	err := probe.Watch(ctx, probe.Health{Interval: h.Interval, Timeout: h.Timeout, StartPeriod: h.StartPeriod, Retries: h.Retries}, func(ctx context.Context) error {
		if s.Status() == StatusPaused {
			return nil // says nothing against it
		}
		return s.try(ctx, h.Exec)
	}, s.healthIs)
	if err != nil && ctx.Err() == nil {
		s.Fail(&PhaseError{Phase: "health", Origin: "health", Err: err})
	}
}

func (s *Sandbox) healthIs(st probe.Status) {
	s.mu.Lock()
	s.health = st.State
	s.mu.Unlock()
	s.notify()
	s.log.Emit(audit.HealthChanged, st.Last, map[string]any{"state": string(st.State), "failing": st.Failing})
}

// try runs a probe's command.
func (s *Sandbox) try(ctx context.Context, args []string) error {
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	p, err := s.Exec(ctx, Command{Args: args, Stdio: [3]*os.File{null, null, null}, Quiet: true})
	if err != nil {
		return err
	}
	select {
	case <-p.Ended():
	case <-ctx.Done():
		p.Kill()
		<-p.Ended()
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
