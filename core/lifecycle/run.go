package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/audit"
	"github.com/nucleus-runtime/nucleus/core/exec"
	"github.com/nucleus-runtime/nucleus/core/initproto"
	"github.com/nucleus-runtime/nucleus/core/initproto/channel"
	"github.com/nucleus-runtime/nucleus/core/plan"
	"github.com/nucleus-runtime/nucleus/core/security/seccomp"
	"github.com/nucleus-runtime/nucleus/internal/failpoint"
	"github.com/nucleus-runtime/nucleus/internal/stack"
	"github.com/nucleus-runtime/nucleus/sdk/hooks"
)

// filters gets the workload's compiled seccomp filter, and init's own, which
// must not take from a later child of init what the workload's grants.
func (s *Sandbox) filters(ctx context.Context) (work, init seccomp.Filter, err error) {
	if s.plan.Runtime != nil {
		return seccomp.RuntimeFilter(), seccomp.RuntimeFilter(), nil
	}
	sp := s.plan.Seccomp
	req := seccomp.Request{Allow: sp.Allow, Caps: sp.Caps}
	if sp.Profile == "" && len(sp.Allow) == 0 && len(sp.Caps) == 0 && sp.Mode != "trace" {
		return seccomp.Default(), seccomp.InitFilter(), nil
	}
	if sp.Profile != "" {
		b, err := readPolicy(sp.Profile, sp.SHA256)
		if err == nil {
			req.Profile, err = seccomp.ParseProfile(sp.Profile, b)
		}
		if err != nil {
			e := &PhaseError{Phase: "security", Origin: "security.seccomp.profile", Err: err}
			if errors.Is(err, os.ErrNotExist) {
				e.Hint = "name a profile in the form of OCI (docs/seccomp.md); a relative path starts at the job file"
			}
			return work, init, e
		}
	}
	if sp.Mode == "trace" {
		work, init, err = s.beginTrace(ctx, req)
	} else if work, err = s.cfg.Seccomp.Compile(ctx, req); err == nil {
		init, err = s.cfg.Seccomp.CompileInit(ctx, req)
	}
	var known *PhaseError
	if errors.As(err, &known) {
		return work, init, err
	}
	if err != nil {
		e := &PhaseError{Phase: "security", Origin: "security.seccomp", Err: err}
		if sp.Profile != "" {
			e.Origin += ".profile"
		}
		var he *seccomp.HelperError
		var ce *seccomp.CacheError
		switch {
		case errors.As(err, &he):
			e.Hint = he.Remedy
		case errors.As(err, &ce):
			e.Hint = ce.Remedy
		}
		return work, init, e
	}
	return work, init, nil
}

// request is what a caller wants of a running sandbox.
type request struct {
	signal unix.Signal
	what   requestKind
	err    error
}

type requestKind int

const (
	reqSignal requestKind = iota // pass a signal to the workload
	reqStop                      // stop signal, grace, then kill
	reqKill                      // at once
	reqFail                      // as reqStop, for a probe's sake
	reqSaved                     // at once, for there is an image of it
)

// Signal passes a signal on to the workload.
func (s *Sandbox) Signal(n unix.Signal) { s.ask(request{what: reqSignal, signal: n}) }

// Stop asks the workload to end, as its job says, and kills it after the grace.
func (s *Sandbox) Stop() { s.ask(request{what: reqStop}) }

// Fail does the same for a workload that a probe says does not work: err is why.
func (s *Sandbox) Fail(err error) {
	select {
	case s.requests <- request{what: reqFail, err: err}:
	case <-s.ending:
	}
}

// Kill ends the sandbox at once.
func (s *Sandbox) Kill() { s.ask(request{what: reqKill}) }

func (s *Sandbox) ask(r request) {
	select {
	case s.requests <- r:
	case <-s.release: // one that was created and destroyed has no other end
	}
}

// Start opens the start gate and runs the sandbox to its end in the background.
func (s *Sandbox) Start(ctx context.Context) error {
	err := s.holdState()
	if err == nil {
		err = s.beforeWorkload(ctx)
	}
	if err != nil {
		s.log.Emit(audit.Failed, err, nil)
		return errors.Join(err, s.Destroy(ctx))
	}
	s.started = time.Now()
	if _, err := s.gate.Write([]byte{1}); err != nil {
		return errors.Join(phase("exec", fmt.Errorf("opening the start gate: %w", err)), s.Destroy(ctx))
	}
	failpoint.Hit("gate opened")
	if s.plan.Runtime != nil {
		s.foreign.signals = make(chan unix.Signal, 64)
		go s.foreignSignals()
	}
	go func() {
		stack.Middling()
		s.supervise(ctx)
	}()
	return nil
}

// beforeWorkload calls the hooks plugins for the last time before it, and runs the
// startContainer hooks. A stop ends them, and the start;
// a signal waits for the workload.
func (s *Sandbox) beforeWorkload(ctx context.Context) error {
	asked := s.bounds.subs.Want(hooks.PreExec)
	if len(s.plan.HooksOf(plan.HookStartContainer)) == 0 && !asked {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done, over := make(chan struct{}), make(chan bool)
	var asking atomic.Bool
	asking.Store(asked)
	go func() {
		stopped := false
		for {
			select {
			case <-done:
				over <- stopped
				return
			case r := <-s.requests:
				// Only a program of the sandbox may have a use for a signal.
				if r.what == reqSignal && !(asking.Load() && Ends(r.signal)) {
					s.early = append(s.early, r.signal)
					continue
				}
				stopped = true
				cancel()
				s.abort()
			}
		}
	}()
	err := s.reach(ctx, hooks.PreExec)
	asking.Store(false)
	if err == nil {
		err = s.startHooks()
	}
	close(done)
	if <-over {
		return phase("hooks", errors.New("stopped before the workload ran"))
	}
	return err
}

// Ends tells whether a signal is one by which somebody wants an end.
func Ends(n unix.Signal) bool {
	return n == unix.SIGINT || n == unix.SIGTERM || n == unix.SIGHUP || n == unix.SIGQUIT
}

// Destroy ends a sandbox that was created and not started.
func (s *Sandbox) Destroy(ctx context.Context) error { return s.teardown(ctx, true) }

// Wait gives the end of a started sandbox, after its teardown. The error tells
// what Nucleus itself could not do.
func (s *Sandbox) Wait() (exec.Result, error) {
	<-s.done
	return s.result, s.err
}

// message is what init sends while the workload runs.
type message struct {
	exited initproto.Exited
	err    error
}

// ending is what the supervisor knows of the reason for an end.
type ending struct {
	cause  exec.Cause // stopped or timeout, "" while nobody ended it
	killed bool
	err    error // of a poststart hook
}

// supervise owns a started sandbox from the open gate to the last undo.
func (s *Sandbox) supervise(ctx context.Context) {
	defer close(s.done)
	msgs := make(chan message, 1)
	var probes sync.WaitGroup
	if s.plan.Readiness != nil || s.plan.Health != nil {
		probes.Go(s.probe)
	}
	defer probes.Wait()
	if s.plan.Init {
		go s.listen(msgs)
	} else {
		go func() { msgs <- s.noted() }()
	}
	opened := make(chan bool, 1)
	go func() { opened <- s.awaitExec() }()
	after := newPoststart(s)
	defer after.cancel()
	var timeout, grace <-chan time.Time
	if s.plan.Timeout > 0 {
		t := time.NewTimer(s.plan.Timeout)
		defer t.Stop()
		timeout = t.C
	}
	var end ending
	// A signal that comes before the workload does would end stage 2, and so be
	// taken for a start that failed: it is held until there is a workload.
	held := s.early
	running := (<-chan bool)(opened)
	signal := func(n unix.Signal) {
		switch {
		case running == nil:
			s.signal(n)
		case len(held) < cap(s.requests):
			held = append(held, n)
		}
	}
	cancelled := ctx.Done()
	lost := s.networkLost()
	var last *message // once it is there, only poststart hooks are waited for
	stop := func(cause exec.Cause) {
		if last != nil {
			after.cancel()
			return
		}
		if end.cause != "" {
			return
		}
		end.cause = cause
		s.unfreeze(StatusStopping)
		signal(stopSignal(s.plan.Stop.Signal))
		s.tell(hooks.Stopping, &exec.Result{Cause: cause})
		s.log.Emit(audit.Stopping, nil, map[string]any{"signal": s.plan.Stop.Signal, "grace": s.plan.Stop.Grace.String(), "cause": cause})
		grace = time.After(s.plan.Stop.Grace)
	}
	kill := func() {
		after.cancel()
		if last != nil {
			return
		}
		if end.cause == "" {
			end.cause = exec.CauseStopped
		}
		end.killed = true
		s.unfreeze(StatusStopping)
		s.bounds.hurry()
		s.killAll()
	}
	for last == nil || after.done != nil {
		select {
		case m := <-msgs:
			last, msgs = &m, nil
			runs := running != nil && <-running
			running = nil
			// It may have been too quick to be seen running.
			if runs || m.err == nil && s.stageFailure(m.exited) == nil {
				after.run()
			}
		case err := <-after.done:
			after.done = nil
			if err != nil && after.ctx.Err() == nil {
				end.err = err
				kill()
			}
		case runs := <-running:
			running = nil
			if runs {
				after.run()
			}
			for _, n := range held {
				s.signal(n)
			}
		case <-timeout:
			s.log.Emit(audit.TimedOut, nil, map[string]any{"after": s.plan.Timeout.String()})
			stop(exec.CauseTimeout)
		case <-grace:
			kill()
		case <-lost:
			lost = nil
			if err := s.lostNetwork(context.WithoutCancel(ctx)); err != nil && last == nil {
				end.err = err
				kill()
			}
		case <-cancelled:
			cancelled = nil
			stop(exec.CauseStopped)
		case r := <-s.requests:
			switch r.what {
			case reqSignal:
				signal(r.signal)
				s.log.Emit(audit.Signalled, nil, map[string]any{"signal": unix.SignalName(r.signal)})
			case reqStop:
				stop(exec.CauseStopped)
			case reqFail:
				if last == nil && end.cause == "" {
					end.err = r.err
				}
				stop(exec.CauseProbe)
			case reqKill:
				kill()
			case reqSaved:
				if end.cause == "" {
					end.cause = exec.CauseCheckpointed
				}
				kill()
			}
		}
	}
	s.finish(ctx, *last, end)
}

// stopSignal gives the number of a signal name that the job decoder has checked.
func stopSignal(name string) unix.Signal {
	if n := unix.SignalNum(name); n != 0 {
		return n
	}
	return unix.SIGTERM
}

// listen receives what init tells of the processes that it was asked for, and last
// the workload's end, or its own.
func (s *Sandbox) listen(out chan<- message) {
	for {
		msg, fds, err := s.conn.Recv()
		if err != nil {
			out <- message{err: err}
			return
		}
		k, err := initproto.KindOf(msg)
		if err == nil {
			switch k {
			case initproto.KindSpawned, initproto.KindEnded:
				err, fds = s.spawned.hear(k, msg, fds), nil
			case initproto.KindSocketMade:
				err, fds = s.insides.hear(msg, fds), nil
			default:
				channel.CloseAll(fds)
				out <- s.lastWord(k, msg, nil)
				return
			}
			if err == nil {
				continue
			}
		}
		channel.CloseAll(fds)
		out <- s.lastWord(k, msg, err)
		return
	}
}

func (s *Sandbox) lastWord(k initproto.Kind, msg []byte, err error) message {
	var m message
	switch {
	case err != nil:
		m.err = err
	case k == initproto.KindExited:
		m.err = initproto.Decode(msg, &m.exited)
	case k == initproto.KindFailed:
		var f initproto.Failed
		if m.err = initproto.Decode(msg, &f); m.err == nil {
			m.err = s.initFailed("exec", f)
		}
	default:
		m.err = fmt.Errorf("%w: kind %d from init", initproto.ErrMessage, k)
	}
	return m
}

// noted waits for a workload that is PID 1 itself, and so our own child, and
// reads what it noted.
func (s *Sandbox) noted() message {
	ws, err := s.init.Wait()
	if err != nil {
		return message{err: err}
	}
	b := make([]byte, initproto.NoteSize)
	if _, err := s.note.ReadAt(b, 0); err != nil {
		return message{err: err}
	}
	return message{exited: initproto.DecodeNote(b, uint32(ws))}
}

// awaitExec waits until stage 2 has let go of the gate, which execve does to it,
// or its death, and says so if it became the workload.
func (s *Sandbox) awaitExec() bool {
	fds := []unix.PollFd{{Fd: int32(s.gate.Fd())}} // POLLERR: the last reader is gone
	for {
		if _, err := unix.Poll(fds, -1); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	var work, init unix.Stat_t
	if unix.Stat(fmt.Sprintf("/proc/%d/exe", s.workPid), &work) != nil || unix.Stat(s.cfg.InitPath, &init) != nil {
		return false // gone already: its end tells
	}
	if work.Ino == init.Ino && work.Dev == init.Dev {
		return false
	}
	if s.plan.Runtime != nil && !s.awaitMade() {
		return false
	}
	s.running()
	return true
}

// running says, once, that the workload runs.
func (s *Sandbox) running() {
	s.mu.Lock()
	first := s.result.Started.IsZero()
	if first {
		s.result.Started = s.started.UTC()
		if s.status == StatusCreated {
			s.status = StatusRunning
		}
		close(s.runs)
		if s.plan.Readiness == nil {
			close(s.readied)
		}
	}
	s.mu.Unlock()
	if first {
		s.notify()
		s.lap("workload running")
		s.log.Emit(audit.Started, nil, map[string]any{"pid": s.workPid})
		s.tell(hooks.PostExec, nil)
	}
}

func (s *Sandbox) signal(n unix.Signal) {
	if s.foreign.delivers() && n != unix.SIGKILL {
		select {
		case s.foreign.signals <- n:
		default: // as many are on their way that one more makes no difference
		}
		return
	}
	s.signalProgram(n)
}

// signalProgram signals what init has made.
func (s *Sandbox) signalProgram(n unix.Signal) {
	s.foreign.signalled.Store(true)
	if !s.plan.Init {
		_ = unix.PidfdSendSignal(s.workFD, n, nil, 0) // gone: its end is on the way
		return
	}
	m := initproto.Encode(initproto.KindSignal, &initproto.Signal{Number: uint32(n)})
	_ = s.conn.Send(m) // init is gone: its end is on the way
}

// killAll ends every process: PID 1 takes its PID namespace with it.
func (s *Sandbox) killAll() {
	s.init.Kill()
	s.log.Emit(audit.Killed, nil, nil)
}

// finish turns the end of the workload, or of init, into the result, and tears
// the sandbox down. What the cgroup knows is read before it goes.
func (s *Sandbox) finish(ctx context.Context, m message, end ending) {
	s.lap("exit known")
	s.unfreeze(StatusStopped)
	s.spawned.close(errEnded)
	s.insides.close()
	r := &s.result
	// Whatever else runs inside dies while the numbers are read.
	s.init.Kill()
	r.ID, r.Name = s.dir.ID, s.dir.Name
	r.Duration = time.Since(s.started)
	s.peaks(r)
	var err error
	switch {
	case m.err == nil:
		if err = s.stageFailure(m.exited); err != nil {
			break
		}
		s.running()
		if err = s.programFailure(m.exited); err != nil && r.Peaks.OOMKills == 0 {
			break
		}
		r.ExitCode, r.Signal = s.exitCode(m.exited)
		if err != nil { // what the kernel killed was the workload's memory
			err, r.ExitCode, r.Signal = nil, 128+int(unix.SIGKILL), int(unix.SIGKILL)
		}
		r.Cause = exec.CauseExit
		if r.Signal != 0 {
			r.Cause = exec.CauseSignal
		}
	case end.killed:
		s.running()
		r.ExitCode, r.Signal, r.Cause = 128+int(unix.SIGKILL), int(unix.SIGKILL), exec.CauseSignal
	case r.Peaks.OOMKills > 0:
		// The whole group dies together where the kernel can (memory.oom.group).
		r.ExitCode, r.Signal, r.Cause = 128+int(unix.SIGKILL), int(unix.SIGKILL), exec.CauseOOM
	default:
		r.ExitCode, r.Cause = exec.CodeRuntime, exec.CauseRuntime
		err = m.err
		if errors.Is(err, io.EOF) {
			err = errors.New("init ended while the workload ran")
		}
		err = phase("exec", err)
	}
	if r.Peaks.OOMKills > 0 {
		s.log.Emit(audit.OOM, nil, map[string]any{"kills": r.Peaks.OOMKills})
		if r.Signal == int(unix.SIGKILL) && end.cause == "" {
			r.Cause = exec.CauseOOM
		}
	}
	if end.cause == exec.CauseCheckpointed {
		r.ExitCode, r.Signal = 0, 0 // it has not ended: it goes on where it is restored
	}
	if end.err != nil {
		err = end.err
	}
	if end.cause != "" && err == nil {
		r.Cause = end.cause
	}
	if err != nil {
		var ce *exec.CommandError
		r.ExitCode, r.Cause = exec.CodeRuntime, exec.CauseRuntime
		if errors.As(err, &ce) {
			r.ExitCode = ce.Code
		}
		if end.cause == exec.CauseProbe {
			r.Cause = end.cause
		}
		s.log.Emit(audit.Failed, err, nil)
	} else {
		s.log.Emit(audit.Exited, nil, map[string]any{"cause": r.Cause, "exit_code": r.ExitCode, "signal": r.Signal, "peaks": r.Peaks, "duration_ms": r.Duration.Milliseconds()})
	}
	s.tell(hooks.Stopped, r)
	s.err = errors.Join(err, s.teardown(ctx, end.cause != ""))
	s.net.denials.record(r)
	if err := s.stdio.Lost(); err != nil {
		r.OutputError = err.Error()
	}
	if s.hookWarning != nil {
		r.HooksError = s.hookWarning.Error()
	}
	if err := s.log.Err(); err != nil {
		r.EventsError = err.Error()
	}
	s.lap("torn down")
}

// peaks reads what the cgroup counted.
func (s *Sandbox) peaks(r *exec.Result) {
	if s.group == nil {
		return
	}
	p, err := s.group.Peaks()
	if err != nil {
		return // the group is gone with its processes: nothing is known
	}
	r.Peaks = exec.Peaks{MemoryBytes: p.Memory, Pids: p.Pids, CPU: time.Duration(p.CPUUsec) * time.Microsecond, OOMKills: p.OOMKills}
}
