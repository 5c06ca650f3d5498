// Package supervisor owns one sandbox from its directory to its last undo: it makes it,
// makes it anew as its job says, keeps its record, hands its output on, and serves its
// control socket. Whoever wants something of a sandbox asks the process that owns it.
package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nucleus-runtime/nucleus/core/audit"
	"github.com/nucleus-runtime/nucleus/core/cgroups"
	"github.com/nucleus-runtime/nucleus/core/control"
	"github.com/nucleus-runtime/nucleus/core/exec"
	"github.com/nucleus-runtime/nucleus/core/lifecycle"
	"github.com/nucleus-runtime/nucleus/core/notify"
	"github.com/nucleus-runtime/nucleus/core/plan"
	"github.com/nucleus-runtime/nucleus/core/state"
)

// Config is what a supervisor is told.
type Config struct {
	Dir  *state.Dir // its own from here
	Plan *plan.Plan
	Log  *audit.Log
	// Make takes the plan up to the start gate. It calls settled with what holds for the run,
	// while init is at work.
	Make func(ctx context.Context, s exec.Streams, settled func(*plan.Plan)) (Run, error)
	// Streams are those of a sandbox in the foreground.
	Streams  exec.Streams
	Detached bool
	// Cgroups tells where this process is, and could be.
	Cgroups cgroups.Facts
	// Journal is the socket of a journal that gets the output, too; "" for none.
	Journal string
	// Held: it is started when somebody asks for that.
	Held bool
	// Keep leaves the record and the log of a sandbox that has run.
	Keep bool
	// Stack is kept beside the record, nil for a sandbox of none.
	Stack *Stack
	// Manager has a watchdog to be told, if the plan says so, that a sandbox lives whose
	// workload cannot say so itself: between two runs. nil for none.
	Manager *notify.Manager
	// Locate adds the line of the job to an error.
	Locate func(error) error
	// Pid is called with each workload's pid while it waits at the start gate, and with 0
	// when it is gone, before anybody is told.
	Pid func(pid int) error
	// Again is called when a workload has ended that is going to be started again.
	Again func(Restarting)
}

// Restarting tells of a workload that has ended, and when it is started again.
type Restarting struct {
	Result exec.Result
	Err    error
	Wait   time.Duration
	Count  int // restarts so far, this one included
}

// Supervisor serves one sandbox.
type Supervisor struct {
	cfg     Config
	events  *audit.File
	output  *output // nil for a sandbox in the foreground
	server  *control.Server
	created time.Time
	served  chan struct{}
	execs   atomic.Uint64

	deciding sync.Mutex    // whether a held sandbox is started or abandoned
	start    chan struct{} // closed by the first that asks for the start
	decided  bool

	mu       sync.Mutex
	run      Run // the present one, or the last
	runs     int // so far
	restarts int
	between  bool               // it has ended, and another one follows
	turn     chan struct{}      // closed when that changes
	last     bool               // no other run follows
	asked    bool               // another one follows at once
	ran      bool               // a workload has
	fault    error              // why the last restart did not come about
	hurry    chan struct{}      // says so to who waits; holds one
	giveUp   context.CancelFunc // ends the making of the next run, nil if none is made
	started  chan struct{}      // closed once a workload has run
	ready    chan struct{}      // closed once a workload was ready

	writing sync.Mutex    // of the record
	sealed  bool          // it is not written as the sandbox changes any more
	noted   noted         // what is written of it
	done    chan struct{} // closed when it has ended
	over    chan struct{} // closed when everybody who waits for that was told
	result  exec.Result   // once done is closed
	err     error
}

// noted is what of a record changes while its sandbox lives.
type noted struct {
	status   lifecycle.Status
	ready    bool
	health   string
	pid      int
	restarts int
}

// New makes a sandbox up to its start gate and begins to serve it. On an error nothing
// is left of it.
func New(ctx context.Context, cfg Config) (*Supervisor, error) {
	v := unmade(cfg)
	var err error
	if v.events, err = audit.OpenFile(filepath.Join(cfg.Dir.Path, audit.FileName)); err != nil {
		return nil, errors.Join(lifecycle.StatePhase(err), cfg.Dir.Remove())
	}
	cfg.Log.Begin(cfg.Dir.ID, cfg.Dir.Name, v.events)
	if err = v.open(ctx); err != nil {
		return nil, cfg.Locate(errors.Join(err, v.dispose(false)))
	}
	go func() {
		defer close(v.served)
		_ = v.server.Serve(context.Background(), v.handle) // ends with Close
	}()
	return v, nil
}

// unmade is a supervisor without a run.
func unmade(cfg Config) *Supervisor {
	return &Supervisor{
		cfg: cfg, created: time.Now().UTC(), served: make(chan struct{}), start: make(chan struct{}), done: make(chan struct{}), over: make(chan struct{}),
		turn: make(chan struct{}), hurry: make(chan struct{}, 1), started: make(chan struct{}), ready: make(chan struct{}),
	}
}

// open is what of New is undone by dispose.
func (v *Supervisor) open(ctx context.Context) (err error) {
	failed := func(err error) error {
		v.cfg.Log.Emit(audit.Failed, err, nil)
		return &lifecycle.StartError{ID: v.ID(), Name: v.Name(), Err: err}
	}
	if v.cfg.Stack != nil { // first, for hooks may take long, and we may be killed at that
		if err := v.cfg.Dir.WriteJSON(StackName, v.cfg.Stack); err != nil {
			return failed(lifecycle.StatePhase(err))
		}
	}
	if v.cfg.Detached && v.cfg.Streams.Console == "" {
		if v.output, err = openOutput(v.cfg.Dir, v.cfg.Plan.Process.Terminal, v.cfg.Journal); err != nil {
			return failed(err)
		}
	}
	run, err := v.make(ctx)
	if err == nil {
		v.run, v.runs = run, 1
		if err = v.serve(); err == nil {
			return nil
		}
		err = failed(lifecycle.StatePhase(errors.Join(err, run.Destroy(ctx))))
	}
	if v.server != nil {
		_ = v.server.Close()
	}
	v.noPid()
	if v.output != nil {
		_ = v.output.finish() // nothing was written
	}
	return err
}

// settled writes down what holds for a run, and makes room for clients, who find nobody yet.
func (v *Supervisor) settled(p *plan.Plan) {
	v.writePlan(p)
	_ = v.bind() // serve does it again
}

func (v *Supervisor) bind() (err error) {
	if v.server == nil {
		v.server, err = control.Bind(v.cfg.Dir.Path)
	}
	return err
}

// serve is ready for clients.
func (v *Supervisor) serve() error {
	if err := v.bind(); err != nil {
		return err
	}
	if err := v.server.Listen(); err != nil {
		return err
	}
	if !v.cfg.Held {
		return nil // its start comes next, and writes one: until then, who wants to know asks us
	}
	return v.write()
}

// ID is the sandbox's: 32 hexadecimal digits.
func (v *Supervisor) ID() string { return v.cfg.Dir.ID }

// Name is what users call it.
func (v *Supervisor) Name() string { return v.cfg.Dir.Name }

// StartAsked is closed when somebody has asked for the start.
func (v *Supervisor) StartAsked() <-chan struct{} { return v.start }

// keep writes the record of a sandbox that has ended and is kept.
func (v *Supervisor) keep(r exec.Result, err error) error { return v.store(v.record().ended(r, err)) }

// known is what is known of the sandbox. Who has heard of its end hears how it was, too.
func (v *Supervisor) known() Record {
	r := v.record()
	if isClosed(v.done) {
		r = r.ended(v.result, v.err)
	}
	return r
}

// store leaves out what may hold a secret: who has the supervisor's ear is told.
func (v *Supervisor) store(r Record) error {
	r.Command, r.StatusText = nil, ""
	return v.cfg.Dir.WriteJSON(RecordName, r)
}

func (v *Supervisor) record() Record {
	v.mu.Lock()
	s, between, restarts := v.run, v.between, v.restarts
	v.mu.Unlock()
	p := v.cfg.Plan
	r := Record{
		Version: RecordVersion, ID: v.ID(), Name: v.Name(), Status: s.Status(), Pid: s.Pid(), InitPid: s.InitPid(), Supervisor: os.Getpid(),
		Detached: v.cfg.Detached, Job: p.Name, File: p.File, Mode: string(p.Mode), Command: p.Process.Args, Terminal: p.Process.Terminal,
		Root: p.Root.Kind, Rootfs: p.Root.Path, Network: p.Network.Backend, Cgroup: s.Cgroup(), Created: v.created, Started: s.Started(), Execs: v.execs.Load(),
		Health: string(s.Health()), StatusText: s.StatusText(), Restarts: restarts,
	}
	if v.cfg.Detached {
		r.SupervisorCgroup, r.SupervisorShares = whereabouts(v.cfg.Cgroups)
	}
	if v.cfg.Stack != nil {
		r.Stack = v.cfg.Stack.Name
	}
	r.Ready = r.Status != lifecycle.StatusStopped && isClosed(s.Ready())
	if between {
		r.Status, r.Pid, r.InitPid, r.Cgroup, r.Ready, r.Health, r.StatusText = StatusRestarting, 0, 0, nil, false, "", ""
	}
	return r
}

// writePlan writes down what holds for a run. Nothing depends on it: on a full disk there is
// none, not that of another run.
func (v *Supervisor) writePlan(p *plan.Plan) {
	if v.cfg.Dir.WriteJSON(PlanName, p.Bare()) != nil {
		_ = v.cfg.Dir.RemoveJSON(PlanName)
	}
}

// write keeps the record up to date.
func (v *Supervisor) write() error {
	v.writing.Lock()
	defer v.writing.Unlock()
	r := v.record()
	if v.sealed || r.Status == lifecycle.StatusStopped {
		return nil // its directory goes, or keep says more, or another run follows
	}
	now := noted{r.Status, r.Ready, r.Health, r.Pid, r.Restarts}
	if now == v.noted {
		return nil
	}
	v.noted = now
	if v.store(r) == nil {
		return nil
	}
	// On a full disk the old record would be taken for the truth: without one, who
	// wants to know asks us. And now there may be room for the new one.
	return errors.Join(v.cfg.Dir.RemoveJSON(RecordName), v.store(r))
}

// seal ends the writing of the record: whoever has been late with it would write into a
// directory that is being removed, or over how the sandbox has ended.
func (v *Supervisor) seal() {
	v.writing.Lock()
	defer v.writing.Unlock()
	v.sealed = true
}

// fail answers with an error.
func (v *Supervisor) fail(c *control.Conn, err error) {
	err = v.cfg.Locate(err)
	e := &control.Error{Code: control.CodeFailed, Text: err.Error(), Hint: remedy(err)}
	var se *lifecycle.StateError
	if errors.As(err, &se) {
		e.Code = control.CodeState
	}
	var ce *control.Error
	if errors.As(err, &ce) {
		e.Code = ce.Code
	}
	_ = c.Fail(e) // the client is gone: nobody is to be told
}

// remedy is what can be done about an error, if that is known.
func remedy(err error) string {
	var pe *lifecycle.PhaseError
	if errors.As(err, &pe) {
		return pe.Hint
	}
	var se *lifecycle.StateError
	if errors.As(err, &se) {
		return se.Hint
	}
	return ""
}

func (v *Supervisor) answer(c *control.Conn, body any, err error) {
	if err != nil {
		v.fail(c, err)
		return
	}
	_ = c.Send(control.KindOK, body) // as in fail
}

// handle serves one request.
func (v *Supervisor) handle(ctx context.Context, c *control.Conn, m control.Message, fds []*os.File) {
	switch m.Kind {
	case VerbState:
		v.answer(c, v.known(), nil)
	case VerbStart:
		v.answer(c, nil, v.askStart(ctx))
	case VerbRestart:
		v.answer(c, nil, v.Restart(ctx))
	case VerbSignal:
		v.answer(c, nil, v.askSignal(m))
	case VerbStop, VerbKill:
		ask := v.Stop
		if m.Kind == VerbKill {
			ask = v.Kill
		}
		if !v.decide(func() { v.present().Abandon() }) {
			ask()
		}
		v.answer(c, nil, nil)
	case VerbPause:
		v.answer(c, nil, v.Pause(ctx))
	case VerbResume:
		v.answer(c, nil, v.Resume(ctx))
	case VerbCheckpoint:
		v.answer(c, nil, v.askCheckpoint(ctx, m))
	case VerbStats:
		st, err := v.Stats(ctx)
		v.answer(c, st, err)
	case VerbDiff:
		v.answer(c, nil, v.askChanges(ctx, m, fds))
	case VerbWait:
		v.await(ctx, c, control.KindOK)
	case VerbExec:
		v.exec(ctx, c, m, fds)
	case VerbConnect:
		v.connect(ctx, c, m)
	case VerbAttach:
		v.attach(ctx, c)
	default:
		_ = c.Fail(&control.Error{Code: control.CodeUnknownVerb, Text: fmt.Sprintf("unknown verb %q", m.Kind)})
	}
}

// decide does something for a held sandbox whose start was not decided on, once, and
// says whether it did.
func (v *Supervisor) decide(do func()) bool {
	v.deciding.Lock()
	defer v.deciding.Unlock()
	if !v.cfg.Held || v.decided {
		return false
	}
	v.decided = true
	do()
	return true
}

// askStart asks whoever created the sandbox to start it, and waits until it is ready.
func (v *Supervisor) askStart(ctx context.Context) error {
	if st := v.present().Status(); st != lifecycle.StatusCreated {
		return &lifecycle.StateError{What: "start", Status: st}
	}
	if !v.decide(func() { close(v.start) }) {
		return &lifecycle.StateError{What: "start", Status: "being started, or removed"}
	}
	select {
	case <-v.ready:
		return nil
	case <-v.done:
		if v.err == nil && v.cfg.Plan.Readiness != nil && !isClosed(v.ready) {
			return fmt.Errorf("start: the workload has ended with exit code %d before it was ready", v.result.ExitCode)
		}
		return v.err // nil: it ran, and has ended since
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (v *Supervisor) askSignal(m control.Message) error {
	n, err := signalOf(m)
	if err != nil {
		return err
	}
	s, err := v.living("signal")
	if err != nil {
		return err
	}
	if st := s.Status(); st == lifecycle.StatusCreated {
		return &lifecycle.StateError{What: "signal", Status: st}
	}
	s.Signal(n)
	return nil
}

// await tells the end once it is there.
func (v *Supervisor) await(ctx context.Context, c *control.Conn, kind string) {
	select {
	case <-v.done:
	case <-ctx.Done():
		select {
		case <-v.done: // the end of the server is the end of its contexts
		default:
			return
		}
	}
	e := Ended{Result: v.result}
	if v.err != nil {
		e.Error = v.err.Error()
	}
	_ = c.Send(kind, e) // as in fail
}

func (v *Supervisor) attach(ctx context.Context, c *control.Conn) {
	o := v.output
	if o == nil {
		who := "the sandbox runs in the foreground of another process, which has its output"
		if v.cfg.Streams.Console != "" {
			who = "the sandbox's terminal was handed over by -console-socket"
		}
		_ = c.Fail(&control.Error{Code: control.CodeState, Text: "attach: " + who})
		return
	}
	files, detach, err := o.attach()
	if err != nil {
		v.fail(c, err)
		return
	}
	defer detach()
	a := Attached{Terminal: o.tty}
	var turn <-chan struct{}
	if o.tty {
		turn = v.turning()
		s, err := v.living("attach")
		var master *os.File
		if err == nil {
			master, err = s.Master()
		}
		if err != nil || master == nil {
			control.CloseAll(files)
			v.fail(c, errors.Join(err, errors.New("attach: the terminal is gone")))
			return
		}
		files = append(files, master)
		a.Input = true
	}
	err = c.Send(KindAttached, a, files...)
	control.CloseAll(files)
	if err != nil {
		return
	}
	select {
	case <-turn:
		_ = c.Fail(&control.Error{Code: control.CodeState, Text: "attach: the workload has ended, and its terminal with it; it is started again", Hint: "nucleus attach " + v.Name()})
	case <-v.done:
		v.await(ctx, c, KindExited)
	case <-ctx.Done():
		v.await(ctx, c, KindExited)
	}
}

func (v *Supervisor) exec(ctx context.Context, c *control.Conn, m control.Message, fds []*os.File) {
	var r ExecRequest
	if err := m.Decode(&r); err != nil {
		v.fail(c, err)
		return
	}
	cmd := lifecycle.Command{Args: r.Args, Env: r.Env, Cwd: r.Cwd, User: r.User, Account: r.Account, TTY: r.TTY, Size: r.Size}
	want := 3
	if r.TTY {
		want = 0
	}
	if len(fds) != want {
		v.fail(c, &control.Error{Code: control.CodeBadRequest, Text: fmt.Sprintf("exec: %d descriptors, want %d", len(fds), want)})
		return
	}
	copy(cmd.Stdio[:], fds)
	p, err := v.Exec(ctx, cmd)
	control.CloseAll(fds) // init has its own: the client must see the end of a pipe
	if err != nil {
		var ce *exec.CommandError
		if errors.As(err, &ce) {
			_ = c.Send(KindExited, Exited{ExitCode: ce.Code, Error: err.Error()})
			return
		}
		v.fail(c, err)
		return
	}
	v.execs.Add(1)
	var pass []*os.File
	if p.Terminal != nil {
		pass = append(pass, p.Terminal)
	}
	err = c.Send(KindStarted, Started{Pid: p.Pid}, pass...)
	if err != nil && !r.Detach {
		p.Kill()
	}
	if r.Detach {
		go leave(p)
		return
	}
	detached := make(chan struct{})
	go obey(c, p, detached)
	select {
	case <-p.Ended():
	case <-detached:
		_ = c.Send(KindDetached, nil) // as in fail
		go leave(p)
		return
	case <-ctx.Done():
		select {
		case <-v.done:
		default:
			p.Kill() // the client is gone, and takes its command with it
		}
		<-p.Ended()
	}
	control.CloseAll(pass)
	x := Exited{}
	x.ExitCode, x.Signal, err = p.Wait()
	if err != nil {
		x.Error = err.Error()
		var ce *exec.CommandError
		if errors.As(err, &ce) {
			x.ExitCode = ce.Code
		}
	}
	_ = c.Send(KindExited, x) // as in fail
}

// leave sees to a command whose client has left it. A terminal that nobody reads would
// hold it up, one that is closed would end it.
func leave(p *lifecycle.Process) {
	if p.Terminal != nil {
		go func() {
			_, _ = io.Copy(io.Discard, p.Terminal) // ends with EIO, which is how a terminal ends
			_ = p.Terminal.Close()
		}()
	}
	_, _, _ = p.Wait() // its event is all that anybody hears of it; it ends with the sandbox at the latest
}

// obey does what the client of a command asks for, until the connection ends.
func obey(c *control.Conn, p *lifecycle.Process, detached chan<- struct{}) {
	for {
		m, fds, err := c.Recv()
		control.CloseAll(fds)
		if err != nil {
			return
		}
		if m.Kind == VerbDetach {
			close(detached)
			return
		}
		if m.Kind != VerbSignal {
			continue
		}
		if n, err := signalOf(m); err == nil {
			p.Signal(n)
		}
	}
}
