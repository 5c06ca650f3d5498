package supervisor

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/audit"
	"github.com/nucleus-runtime/nucleus/core/exec"
	"github.com/nucleus-runtime/nucleus/core/lifecycle"
	"github.com/nucleus-runtime/nucleus/core/notify"
	"github.com/nucleus-runtime/nucleus/core/probe"
	"github.com/nucleus-runtime/nucleus/internal/failpoint"
)

// Each run of a sandbox is made anew, from the same plan: nothing that a workload has
// done to its file system, its namespaces or its group can break the next one. Id, name,
// log and events are the sandbox's.

// make makes the next run.
func (v *Supervisor) make(ctx context.Context) (Run, error) {
	streams := v.cfg.Streams
	if v.output != nil {
		var err error
		if streams, err = v.output.pipes(); err != nil {
			return nil, err
		}
	}
	s, err := v.cfg.Make(ctx, streams, v.settled)
	if err != nil {
		if v.output != nil {
			v.output.drop()
		}
		return nil, err
	}
	if v.output != nil {
		v.output.begin()
	}
	if v.cfg.Pid != nil {
		if err := v.cfg.Pid(s.Pid()); err != nil {
			return nil, &lifecycle.StartError{ID: v.ID(), Name: v.Name(), Err: errors.Join(err, s.Destroy(ctx))}
		}
	}
	s.OnChange(func() { _ = v.write() }) // it cannot be written: who asks is told all the same
	return s, nil
}

// present is the run that there is, or was last.
func (v *Supervisor) present() Run {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.run
}

// living is the run that there is.
func (v *Supervisor) living(what string) (Run, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.between {
		return nil, &lifecycle.StateError{What: what, Status: StatusRestarting}
	}
	return v.run, nil
}

// Pid is the workload's, as the host sees it.
func (v *Supervisor) Pid() int { return v.present().Pid() }

// Running is closed once a workload's program has run.
func (v *Supervisor) Running() <-chan struct{} { return v.started }

// Ready is closed once a workload of the sandbox was ready.
func (v *Supervisor) Ready() <-chan struct{} { return v.ready }

// Ended is closed when Wait has an answer.
func (v *Supervisor) Ended() <-chan struct{} { return v.over }

// Abandoned is closed when nobody wants a held sandbox to be started any more.
func (v *Supervisor) Abandoned() <-chan struct{} { return v.present().Abandoned() }

// Exec makes a further process beside the workload.
func (v *Supervisor) Exec(ctx context.Context, c lifecycle.Command) (*lifecycle.Process, error) {
	s, err := v.living("exec")
	if err != nil {
		return nil, err
	}
	return s.Exec(ctx, c)
}

// Pause stops every process of the sandbox where it is.
func (v *Supervisor) Pause(ctx context.Context) error {
	s, err := v.living("pause")
	if err != nil {
		return err
	}
	return s.Pause(ctx)
}

// Resume lets a paused sandbox go on.
func (v *Supervisor) Resume(ctx context.Context) error {
	s, err := v.living("resume")
	if err != nil {
		return err
	}
	return s.Resume(ctx)
}

// Signal passes a signal on to the workload. One that means an end is one of the sandbox
// while there is no workload.
func (v *Supervisor) Signal(n unix.Signal) {
	s, err := v.living("signal")
	switch {
	case err == nil:
		s.Signal(n)
	case lifecycle.Ends(n):
		v.Last()
	}
}

// Stop asks the workload to end, as its job says. It is not started again.
func (v *Supervisor) Stop() {
	v.Last()
	v.present().Stop()
}

// Kill ends the sandbox at once.
func (v *Supervisor) Kill() {
	v.Last()
	v.present().Kill()
}

// Last says that the workload is not started again when it ends.
func (v *Supervisor) Last() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.last = true
	if v.giveUp != nil {
		v.giveUp()
	}
	v.wake()
}

// turning is closed when the present run is none any more.
func (v *Supervisor) turning() <-chan struct{} {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.turn
}

// turned tells who watches the runs. It is called with mu held.
func (v *Supervisor) turned() {
	close(v.turn)
	v.turn = make(chan struct{})
}

// wake ends a wait for the next run. It is called with mu held.
func (v *Supervisor) wake() {
	select {
	case v.hurry <- struct{}{}:
	default: // told already
	}
}

// Restart ends the workload as its job says and starts it again, whatever its policy is.
// It returns when that is ready.
func (v *Supervisor) Restart(ctx context.Context) error {
	v.mu.Lock()
	st := v.run.Status()
	if v.between {
		st = StatusRestarting
	}
	before, tried := v.runs, v.restarts
	switch {
	case v.last:
		v.mu.Unlock()
		return &lifecycle.StateError{What: "restart", Status: lifecycle.StatusStopping}
	case st == lifecycle.StatusCreated && before == 1:
		v.mu.Unlock()
		return &lifecycle.StateError{What: "restart", Status: st, Hint: "nucleus start " + v.Name()}
	}
	v.asked = true
	v.wake()
	run := v.run
	v.mu.Unlock()
	if st != StatusRestarting {
		run.Stop() // it may have ended already: what was asked for holds all the same
	}
	for {
		v.mu.Lock()
		run, runs, between, restarts, fault, turn, last := v.run, v.runs, v.between, v.restarts, v.fault, v.turn, v.last
		v.mu.Unlock()
		var ready <-chan struct{}
		switch {
		case runs > before && !between:
			ready = run.Ready()
		case runs > before:
			return readied(run) // it has ended since
		case restarts > tried && last: // somebody has stopped it, and with it the making
			return &lifecycle.StateError{What: "restart", Status: lifecycle.StatusStopping}
		case restarts > tried:
			return fmt.Errorf("restart: %w", fault)
		}
		select {
		case <-ready:
			return nil
		case <-turn:
		case <-v.done:
			return v.restarted(before)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// restarted tells, once the sandbox has ended, what became of a restart after so many runs.
func (v *Supervisor) restarted(before int) error {
	v.mu.Lock()
	run, runs := v.run, v.runs
	v.mu.Unlock()
	if runs > before && v.err == nil {
		return readied(run)
	}
	return errors.Join(errors.New("restart: the sandbox has ended"), v.err)
}

// readied tells whether a run that has ended was ready before.
func readied(run Run) error {
	if isClosed(run.Ready()) {
		return nil
	}
	return errors.New("restart: the workload has ended before it was ready")
}

// Start opens the start gate and sees to the sandbox until its end in the background.
func (v *Supervisor) Start(ctx context.Context) error {
	if err := v.begin(ctx); err != nil {
		err = v.cfg.Locate(err)
		v.end(v.Failed(), err)
		return err
	}
	go v.live(ctx)
	return nil
}

// begin starts the present run.
func (v *Supervisor) begin(ctx context.Context) error {
	s := v.present()
	if err := s.Start(ctx); err != nil {
		return err
	}
	go v.follow(s)
	return nil
}

// follow passes on what becomes of a run. Who waits for it, and looks at the record then,
// sees it there.
func (v *Supervisor) follow(s Run) {
	for _, news := range []<-chan struct{}{s.Running(), s.Ready()} {
		select {
		case <-s.Gone():
		case <-news:
			_ = v.write() // as in make
		}
		v.passOn(s)
	}
}

// passOn tells of the first run that has come so far.
func (v *Supervisor) passOn(s Run) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if isClosed(s.Running()) && !isClosed(v.started) {
		close(v.started)
	}
	if isClosed(s.Ready()) && !isClosed(v.ready) {
		close(v.ready)
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// Destroy ends a sandbox that was created and not started.
func (v *Supervisor) Destroy(ctx context.Context) error {
	err := v.present().Destroy(ctx)
	gone := errors.New("the sandbox was removed before it was started")
	v.end(v.Failed(), errors.Join(gone, err))
	return err
}

// Wait gives the end of a started sandbox, after its teardown. The error tells what
// Nucleus itself could not do.
func (v *Supervisor) Wait() (exec.Result, error) {
	<-v.over
	return v.result, v.err
}

// Failed is the result of a sandbox that was created and could not be started.
func (v *Supervisor) Failed() exec.Result {
	return exec.Result{ID: v.ID(), Name: v.Name(), Cause: exec.CauseRuntime, ExitCode: exec.CodeRuntime}
}

// live waits for the end of a run, and goes on with the next one if there is to be one.
func (v *Supervisor) live(ctx context.Context) {
	rules := probe.NewRestarts("failure", 0, 0)
	if r := v.cfg.Plan.Restart; r != nil {
		rules = probe.NewRestarts(r.On, r.Attempts, r.Backoff)
	}
	wait := func() (exec.Result, error) {
		res, err := v.present().Wait()
		v.ran = v.ran || !res.Started.IsZero()
		return res, err
	}
	res, err := wait()
	for {
		after, again := v.next(rules, res, err)
		if !again {
			break
		}
		silent := v.vouch()
		var rerr error
		if again = v.rest(ctx, Restarting{Result: res, Err: v.cfg.Locate(err), Wait: after, Count: v.restarts + 1}); again {
			rerr = v.renew(ctx)
		}
		silent()
		if !again {
			break
		}
		switch {
		case errors.Is(rerr, errLast):
		case rerr != nil:
			res, err = v.Failed(), rerr
		default:
			res, err = wait()
		}
	}
	v.end(res, v.cfg.Locate(err))
}

// next decides whether another run follows this end, and when.
func (v *Supervisor) next(rules *probe.Restarts, res exec.Result, err error) (time.Duration, bool) {
	v.mu.Lock()
	last, asked := v.last, v.asked
	v.asked = false
	v.mu.Unlock()
	if left, perr := v.cfg.Dir.Pending(); last || perr != nil || len(left) > 0 {
		return 0, false
	}
	if asked {
		return 0, true
	}
	failed, ours := v.failure(res, err)
	if !ours {
		return 0, false
	}
	return rules.Next(failed, worked(res, err))
}

// failure tells whether a run has failed, and whether the job's policy has a say in what
// follows: it has none where somebody wanted the end, nor where the next run could only
// end as this one.
func (v *Supervisor) failure(res exec.Result, err error) (failed, ours bool) {
	var cannot *exec.CommandError
	switch {
	case res.Cause == exec.CauseStopped, res.Cause == exec.CauseCheckpointed, res.Cause == exec.CauseTimeout, errors.As(err, &cannot):
		return false, false
	case res.Cause == exec.CauseProbe:
		var sick *probe.UnhealthyError
		return true, !errors.As(err, &sick) || v.cfg.Plan.Health.OnFailure == "restart"
	}
	return res.ExitCode != 0, true
}

// worked is how long a workload was of use.
func worked(res exec.Result, err error) time.Duration {
	var sick *probe.UnhealthyError
	var never *probe.NotReadyError
	switch {
	case errors.As(err, &sick):
		return sick.Well
	case errors.As(err, &never):
		return 0
	}
	return res.Duration
}

// rest waits until the next run is due, and says whether it is still wanted.
func (v *Supervisor) rest(ctx context.Context, r Restarting) bool {
	v.mu.Lock()
	v.between = true
	v.turned()
	v.mu.Unlock()
	v.noPid()
	_ = v.write() // as in make
	if v.output != nil {
		v.output.drain()
	}
	v.cfg.Log.Emit(audit.Restarting, r.Err, map[string]any{
		"cause": r.Result.Cause, "exit_code": r.Result.ExitCode, "wait_ms": r.Wait.Milliseconds(), "count": r.Count,
	})
	failpoint.Hit("restarting")
	if v.cfg.Again != nil {
		v.cfg.Again(r)
	}
	timer := time.NewTimer(r.Wait)
	defer timer.Stop()
	for {
		v.mu.Lock()
		last, asked := v.last, v.asked
		v.mu.Unlock()
		switch {
		case last || ctx.Err() != nil:
			return false
		case asked:
			return true
		}
		select {
		case <-timer.C:
			return true
		case <-v.hurry:
		case <-ctx.Done():
		}
	}
}

// vouch tells a watchdog for the workload that there is none to do it, until silent is
// called.
func (v *Supervisor) vouch() (silent func()) {
	m := v.cfg.Manager
	if n := v.cfg.Plan.Notify; m == nil || m.Watchdog <= 0 || n == nil || !n.Manager {
		return func() {}
	}
	done := make(chan struct{})
	go func() {
		t := time.NewTicker(max(m.Watchdog/2, time.Millisecond)) // as sd_watchdog_enabled(3) has it
		defer t.Stop()
		for {
			_ = m.Tell(notify.Message{Watchdog: true}) // it does not listen: nor does it watch
			select {
			case <-t.C:
			case <-done:
				return
			}
		}
	}()
	return func() { close(done) }
}

// errLast says that nobody wants the next run any more.
var errLast = errors.New("it is not to be started again")

// renew makes the next run and starts it.
func (v *Supervisor) renew(ctx context.Context) error {
	v.mu.Lock()
	if v.last {
		v.mu.Unlock()
		return errLast
	}
	making, cancel := context.WithCancel(ctx)
	defer cancel()
	v.giveUp = cancel
	v.mu.Unlock()
	if err := v.cfg.Dir.Journal.Reset(); err != nil {
		return lifecycle.StatePhase(err)
	}
	s, err := v.make(making)
	failpoint.Hit("made again")
	v.mu.Lock()
	v.giveUp = nil
	last := v.last
	v.restarts++
	v.asked = false // whoever has asked gets this one
	if v.fault = err; err != nil {
		v.turned()
	}
	if err == nil && !last {
		v.run, v.between = s, false
		v.runs++
		v.turned()
	}
	v.mu.Unlock()
	switch {
	case last:
		return v.unwanted(ctx, s, err)
	case err != nil:
		return err
	}
	_ = v.write() // as in make
	return v.begin(ctx)
}

// unwanted is the end of a run that was made, or that err kept from it, and that nobody wants
// any more: errLast, unless something could not be undone.
func (v *Supervisor) unwanted(ctx context.Context, s Run, err error) error {
	if err == nil {
		if err = s.Destroy(ctx); err == nil {
			return errLast
		}
	}
	if left, perr := v.cfg.Dir.Pending(); perr != nil || len(left) > 0 {
		return errors.Join(err, perr)
	}
	return errLast
}

// end is what comes after the last undo.
func (v *Supervisor) end(res exec.Result, err error) {
	v.passOn(v.present())
	if v.output != nil {
		if lerr := v.output.finish(); lerr != nil && res.OutputError == "" {
			res.OutputError = lerr.Error()
		}
	}
	v.noPid()
	res.Restarts = v.restarts
	v.seal()
	kept := v.cfg.Keep && v.ran
	if kept {
		err = errors.Join(err, v.keep(res, err))
	}
	v.result, v.err = res, errors.Join(err, v.dispose(kept))
	close(v.done)
	_ = v.server.Close()
	<-v.served
	close(v.over)
}

// noPid says that there is no workload.
func (v *Supervisor) noPid() {
	if v.cfg.Pid != nil {
		_ = v.cfg.Pid(0) // nothing can be done about it
	}
}

// dispose lets the sandbox's directory go: for good, or to who wants to know how it
// ended, or, if something could not be undone, to gc.
func (v *Supervisor) dispose(keep bool) error {
	v.seal() // also where no run has ended
	defer v.events.Close()
	left, err := v.cfg.Dir.Pending()
	switch {
	case err != nil || len(left) > 0:
		return errors.Join(err, v.cfg.Dir.Release())
	case keep:
		return v.cfg.Dir.Keep()
	}
	if err := v.cfg.Dir.Remove(); err != nil {
		return &lifecycle.PhaseError{Phase: "teardown", Err: fmt.Errorf("removing its directory: %w", err), Hint: "nucleus gc"}
	}
	v.cfg.Log.Emit(audit.Removed, nil, nil)
	return nil
}
