// Package supervisor serves the control socket of one sandbox: whoever asks, asks the
// process that owns it. It keeps the sandbox's record, and hands its output on.
package supervisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/cgroups"
	"github.com/nucleus-runtime/nucleus/core/control"
	"github.com/nucleus-runtime/nucleus/core/exec"
	"github.com/nucleus-runtime/nucleus/core/lifecycle"
)

// Config is what a supervisor is told beside its sandbox.
type Config struct {
	Detached bool
	Output   *Output // nil for a sandbox in the foreground
	// Held: it is started when somebody asks for that.
	Held bool
	// Stack is kept beside the record, nil for a sandbox of none.
	Stack *Stack
	// Locate adds the line of the job to an error.
	Locate func(error) error
}

// Supervisor serves one sandbox.
type Supervisor struct {
	cfg     Config
	sandbox *lifecycle.Sandbox
	server  *control.Server
	created time.Time
	served  chan struct{}
	execs   atomic.Uint64

	deciding sync.Mutex    // whether a held sandbox is started or abandoned
	start    chan struct{} // closed by the first that asks for the start
	decided  bool

	writing sync.Mutex // of the record
	done    chan struct{}
	ended   Ended // once done is closed
}

// New begins to serve a sandbox that was created.
func New(s *lifecycle.Sandbox, cfg Config) (*Supervisor, error) {
	server, err := control.Listen(s.Dir().Path)
	if err != nil {
		return nil, err
	}
	v := &Supervisor{cfg: cfg, sandbox: s, server: server, created: time.Now(), served: make(chan struct{}), start: make(chan struct{}), done: make(chan struct{})}
	if cfg.Stack != nil {
		err = s.Dir().WriteJSON(StackName, cfg.Stack)
	}
	if err == nil {
		err = v.write()
	}
	if err != nil {
		_ = server.Close()
		return nil, err
	}
	s.OnChange(func() { _ = v.write() }) // it cannot be written: who asks is told all the same
	go func() {
		defer close(v.served)
		_ = server.Serve(context.Background(), v.handle) // ends with Close
	}()
	return v, nil
}

// StartAsked is closed when somebody has asked for the start.
func (v *Supervisor) StartAsked() <-chan struct{} { return v.start }

// End tells everybody who waits how the sandbox ended, and serves no more.
func (v *Supervisor) End(r exec.Result, err error) {
	v.ended.Result = r
	if err != nil {
		v.ended.Error = err.Error()
	}
	close(v.done)
	_ = v.server.Close()
	<-v.served
}

// Keep writes the record of a sandbox that has ended and is kept.
func (v *Supervisor) Keep(r exec.Result, err error) error {
	rec := v.record()
	rec.Status, rec.Pid, rec.InitPid, rec.Supervisor, rec.Cgroup, rec.Result = lifecycle.StatusStopped, 0, 0, 0, nil, &r
	if err != nil {
		rec.Error = err.Error()
	}
	return v.store(rec)
}

// store leaves out what may hold a secret: who has the supervisor's ear is told.
func (v *Supervisor) store(r Record) error {
	r.Command = nil
	return v.sandbox.Dir().WriteJSON(RecordName, r)
}

func (v *Supervisor) record() Record {
	s := v.sandbox
	p := s.Plan()
	ready := false
	select {
	case <-s.Ready():
		ready = s.Status() != lifecycle.StatusStopped
	default:
	}
	stack := ""
	if v.cfg.Stack != nil {
		stack = v.cfg.Stack.Name
	}
	return Record{
		Ready: ready, Health: string(s.Health()),
		Version: RecordVersion, ID: s.ID(), Name: s.Name(), Status: s.Status(), Pid: s.Pid(), InitPid: s.InitPid(), Supervisor: os.Getpid(),
		Detached: v.cfg.Detached, Job: p.Name, File: p.File, Mode: string(p.Mode), Command: p.Process.Args, Terminal: p.Process.Terminal,
		Root: p.Root.Kind, Rootfs: p.Root.Path, Network: p.Network.Backend, Cgroup: s.Cgroup(), Created: v.created, Started: s.Started(), Execs: v.execs.Load(),
		Stack: stack,
	}
}

func (v *Supervisor) write() error {
	v.writing.Lock()
	defer v.writing.Unlock()
	if v.sandbox.Status() == lifecycle.StatusStopped {
		return nil // its directory goes, or Keep says more
	}
	return v.store(v.record())
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
	s := v.sandbox
	switch m.Kind {
	case VerbState:
		v.answer(c, v.record(), nil)
	case VerbStart:
		v.answer(c, nil, v.askStart(ctx))
	case VerbSignal:
		v.answer(c, nil, v.signal(m))
	case VerbStop, VerbKill:
		ask := s.Stop
		if m.Kind == VerbKill {
			ask = s.Kill
		}
		if !v.decide(s.Abandon) {
			ask()
		}
		v.answer(c, nil, nil)
	case VerbPause:
		v.answer(c, nil, s.Pause(ctx))
	case VerbResume:
		v.answer(c, nil, s.Resume(ctx))
	case VerbStats:
		st, err := v.stats()
		v.answer(c, st, err)
	case VerbWait:
		v.wait(ctx, c, control.KindOK)
	case VerbExec:
		v.exec(ctx, c, m, fds)
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
	if st := v.sandbox.Status(); st != lifecycle.StatusCreated {
		return &lifecycle.StateError{What: "start", Status: st}
	}
	if !v.decide(func() { close(v.start) }) {
		return &lifecycle.StateError{What: "start", Status: "being started, or removed"}
	}
	select {
	case <-v.sandbox.Ready():
		return nil
	case <-v.done:
		if v.ended.Error != "" {
			return errors.New(v.ended.Error)
		}
		return nil // it ran, and has ended since
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (v *Supervisor) signal(m control.Message) error {
	var r SignalRequest
	if err := m.Decode(&r); err != nil {
		return err
	}
	if r.Signal < 1 || r.Signal > 64 {
		return &control.Error{Code: control.CodeBadRequest, Text: fmt.Sprintf("signal %d: from 1 to 64", r.Signal)}
	}
	if st := v.sandbox.Status(); st == lifecycle.StatusCreated {
		return &lifecycle.StateError{What: "signal", Status: st}
	}
	v.sandbox.Signal(unix.Signal(r.Signal))
	return nil
}

// Stats are a sandbox's accounts.
type Stats struct {
	ID     string         `json:"id"`
	Name   string         `json:"name"`
	Time   time.Time      `json:"time"`
	Status string         `json:"status"`
	Cgroup *cgroups.Stats `json:"cgroup"` // null without a control group
}

func (v *Supervisor) stats() (*Stats, error) {
	cg, err := v.sandbox.Stats()
	if err != nil {
		return nil, err
	}
	return &Stats{ID: v.sandbox.ID(), Name: v.sandbox.Name(), Time: time.Now(), Status: string(v.sandbox.Status()), Cgroup: cg}, nil
}

// wait tells the end once it is there.
func (v *Supervisor) wait(ctx context.Context, c *control.Conn, kind string) {
	select {
	case <-v.done:
	case <-ctx.Done():
		select {
		case <-v.done: // the end of the server is the end of its contexts
		default:
			return
		}
	}
	_ = c.Send(kind, v.ended) // as in fail
}

func (v *Supervisor) attach(ctx context.Context, c *control.Conn) {
	o := v.cfg.Output
	if o == nil {
		_ = c.Fail(&control.Error{Code: control.CodeState, Text: "attach: the sandbox runs in the foreground of another process, which has its output"})
		return
	}
	files, detach, err := o.Attach()
	if err != nil {
		v.fail(c, err)
		return
	}
	defer detach()
	a := Attached{Terminal: o.tty}
	if o.tty {
		master, err := v.sandbox.Master()
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
	v.wait(ctx, c, KindExited)
}

func (v *Supervisor) exec(ctx context.Context, c *control.Conn, m control.Message, fds []*os.File) {
	var r ExecRequest
	if err := m.Decode(&r); err != nil {
		v.fail(c, err)
		return
	}
	cmd := lifecycle.Command{Args: r.Args, Env: r.Env, Cwd: r.Cwd, User: r.User, TTY: r.TTY}
	want := 3
	if r.TTY {
		want = 0
	}
	if len(fds) != want {
		v.fail(c, &control.Error{Code: control.CodeBadRequest, Text: fmt.Sprintf("exec: %d descriptors, want %d", len(fds), want)})
		return
	}
	copy(cmd.Stdio[:], fds)
	p, err := v.sandbox.Exec(ctx, cmd)
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
	control.CloseAll(pass)
	if err != nil && !r.Detach {
		p.Kill()
	}
	if r.Detach {
		go func() { _, _, _ = p.Wait() }() // its event is all that anybody hears of it; it ends with the sandbox at the latest
		return
	}
	go passSignals(c, p)
	select {
	case <-p.Ended():
	case <-ctx.Done():
		select {
		case <-v.done:
		default:
			p.Kill() // the client is gone, and takes its command with it
		}
		<-p.Ended()
	}
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

// passSignals ends with the connection.
func passSignals(c *control.Conn, p *lifecycle.Process) {
	for {
		m, fds, err := c.Recv()
		control.CloseAll(fds)
		if err != nil {
			return
		}
		var r SignalRequest
		if m.Kind != VerbSignal || m.Decode(&r) != nil || r.Signal < 1 || r.Signal > 64 {
			continue
		}
		p.Signal(unix.Signal(r.Signal))
	}
}
