package lifecycle

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/audit"
	"github.com/nucleus-runtime/nucleus/core/exec"
	"github.com/nucleus-runtime/nucleus/core/initproto"
	"github.com/nucleus-runtime/nucleus/core/initproto/channel"
	"github.com/nucleus-runtime/nucleus/core/job"
	"github.com/nucleus-runtime/nucleus/core/plan"
	"github.com/nucleus-runtime/nucleus/core/security"
)

// Command is a further process of a sandbox that runs. What it may do is the
// workload's: there is nothing here to say otherwise.
type Command struct {
	Args []string
	// Env are variables beside the workload's own, and instead of those of that name.
	Env []string
	Cwd string // "" for the workload's
	// User and groups as the sandbox numbers them; nil for the workload's.
	User *exec.User
	// Account is a USER[:GROUP] instead, by names in the sandbox's own files.
	Account string
	TTY     bool
	// Size is what the terminal has from the beginning.
	Size exec.Size
	// Stdio is what it gets as 0, 1 and 2, unless it has a terminal: pipes, /dev/null, or
	// nil, which is /dev/null.
	Stdio [3]*os.File
	// Quiet has no events.
	Quiet bool

	program bool     // Args are a runtime plugin's program's
	pass    *os.File // is descriptor 3 of the program's call, nil for none
}

// spawnWait bounds how long init may take to make a process. It takes a
// millisecond, unless the machine stands still.
const spawnWait = 20 * time.Second

// StateError is a request that the sandbox cannot be asked in the state it is in.
type StateError struct {
	What   string // what was asked for
	Status Status
	Hint   string
}

func (e *StateError) Error() string { return fmt.Sprintf("%s: the sandbox is %s", e.What, e.Status) }

var errEnded = errors.New("the sandbox has ended")

// Process is one that Exec has made.
type Process struct {
	Pid      int      // as the host sees it
	Terminal *os.File // the master, the caller's to close; nil without one

	s       *Sandbox
	id      uint32
	command string
	cwd     string
	quiet   bool
	inside  bool          // a runtime plugin's program runs it
	pending atomic.Uint64 // signals on their way inside, a bit for each
	sent    atomic.Uint64 // signals that were asked for, in the same way
	made    chan made     // holds init's answer
	left    bool          // nobody waits for the answer any more
	ended   chan struct{}
	end     initproto.Ended
	err     error // what came instead of an end
}

type made struct {
	answer initproto.Spawned
	fds    []int
}

// spawns are the processes that init was asked for.
type spawns struct {
	mu   sync.Mutex
	last uint32
	byID map[uint32]*Process
	over error // nobody answers any more
}

func (t *spawns) add(p *Process) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.over != nil {
		return t.over
	}
	if t.byID == nil {
		t.byID = map[uint32]*Process{}
	}
	if len(t.byID) >= maxSpawns {
		return fmt.Errorf("%d commands run in the sandbox already", maxSpawns)
	}
	for {
		t.last++
		if t.last != 0 && t.byID[t.last] == nil {
			break
		}
	}
	p.id = t.last
	t.byID[p.id] = p
	return nil
}

// maxSpawns bounds what the commands of one sandbox cost its supervisor and init.
const maxSpawns = 1024

// leave says that nobody waits for the answer about p any more: its descriptors, if
// it has come or comes yet, are nobody's.
func (t *spawns) leave(p *Process) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p.left = true
	select {
	case m := <-p.made:
		channel.CloseAll(m.fds)
	default:
	}
}

// finish ends a process's record, once.
func (t *spawns) finish(e initproto.Ended, err error) {
	t.mu.Lock()
	p := t.byID[e.ID]
	delete(t.byID, e.ID)
	t.mu.Unlock()
	if p != nil {
		select {
		case m := <-p.made: // nobody has waited for it, or does so in vain
			channel.CloseAll(m.fds)
		default:
		}
		p.end, p.err = e, err
		close(p.ended)
	}
}

// close ends what init can tell no more of.
func (t *spawns) close(err error) {
	t.mu.Lock()
	t.over = err
	ids := make([]uint32, 0, len(t.byID))
	for id := range t.byID {
		ids = append(ids, id)
	}
	t.mu.Unlock()
	for _, id := range ids {
		t.finish(initproto.Ended{ID: id}, err)
	}
}

// hear takes what init says of these processes. Descriptors are its own from here.
func (t *spawns) hear(k initproto.Kind, msg []byte, fds []int) error {
	if k == initproto.KindEnded {
		channel.CloseAll(fds)
		var e initproto.Ended
		if err := initproto.Decode(msg, &e); err != nil {
			return err
		}
		t.finish(e, nil)
		return nil
	}
	var a initproto.Spawned
	if err := initproto.Decode(msg, &a); err != nil {
		channel.CloseAll(fds)
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.byID[a.ID]
	if p == nil || p.left { // ended before it was told of, or its client has gone
		channel.CloseAll(fds)
		return nil
	}
	select {
	case p.made <- made{a, fds}:
		return nil
	default:
		channel.CloseAll(fds)
		return fmt.Errorf("%w: process %d twice", initproto.ErrMessage, a.ID)
	}
}

// Exec makes a further process of a running sandbox: init forks it, it puts on what
// the workload has, and that is read back from the kernel before it becomes its
// program.
func (s *Sandbox) Exec(ctx context.Context, c Command) (*Process, error) {
	if err := s.mayExec(); err != nil {
		return nil, err
	}
	sp, err := s.spawnFor(c)
	if err != nil {
		return nil, err
	}
	return s.further(ctx, sp, c)
}

// further makes what init is asked for, which is a command's process or one that dials.
func (s *Sandbox) further(ctx context.Context, sp *initproto.Spawn, c Command) (_ *Process, err error) {
	p := &Process{s: s, quiet: c.Quiet, made: make(chan made, 1), ended: make(chan struct{})}
	if len(c.Args) > 0 {
		p.command = c.Args[0]
	}
	if err := s.spawned.add(p); err != nil {
		return nil, err
	}
	sp.ID, p.cwd = p.id, sp.Cwd
	var further []*os.File
	if c.pass != nil {
		sp.Pass = true
		further = append(further, c.pass)
	}
	if !c.program && len(sp.Dial.Addrs) == 0 && s.foreign.answer != nil {
		v, err := s.furtherProgram(sp)
		if err != nil {
			s.spawned.finish(initproto.Ended{ID: p.id}, err)
			return nil, err
		}
		defer v.Close()
		p.inside = true
		further = append(further, v.File())
	}
	gate, err := s.sendSpawn(sp, c, further...)
	if err != nil {
		s.spawned.finish(initproto.Ended{ID: p.id}, err)
		return nil, err
	}
	defer gate.Close()
	defer func() {
		if err != nil {
			p.Kill()
		}
	}()
	pidfd, err := p.await(ctx, c.TTY)
	if err != nil {
		return nil, err
	}
	defer unix.Close(pidfd)
	if p.Terminal != nil {
		exec.SetSize(p.Terminal, c.Size)
	}
	if p.Pid, err = pidOf(pidfd); err == nil {
		err = s.verifySpawned(p.Pid, sp)
	}
	if err == nil {
		err = s.follow(pidfd, passed(sp))
	}
	if err != nil {
		p.closeTerminal()
		return nil, p.whyNot(err)
	}
	if _, err := gate.Write([]byte{1}); err != nil {
		p.closeTerminal()
		return nil, p.whyNot(err)
	}
	if !c.Quiet {
		s.log.Emit(audit.ExecStarted, nil, map[string]any{"pid": p.Pid, "process": p.id})
	}
	return p, nil
}

// mayExec tells whether the sandbox can be asked for a process.
func (s *Sandbox) mayExec() error {
	if !s.plan.Init {
		return &PhaseError{Phase: "exec", Err: errors.New("the sandbox has no init that could make a process"), Hint: "write init = true in the job"}
	}
	switch st := s.Status(); st {
	case StatusRunning:
		return nil
	case StatusPaused:
		return &StateError{What: "exec", Status: st, Hint: "nucleus resume " + s.dir.Name}
	case StatusCreated:
		return &StateError{What: "exec", Status: st, Hint: "nucleus start " + s.dir.Name}
	case StatusCheckpointing:
		return &StateError{What: "exec", Status: st, Hint: "try again when nucleus checkpoint is done"}
	default:
		return &StateError{What: "exec", Status: st}
	}
}

func (s *Sandbox) spawnFor(c Command) (*initproto.Spawn, error) {
	if len(c.Args) == 0 || c.Args[0] == "" {
		return nil, errors.New("exec: no command")
	}
	for _, kv := range c.Env {
		name, _, _ := strings.Cut(kv, "=")
		if summary, detail := job.EnvProblem(name); summary != "" {
			return nil, &PhaseError{Phase: "exec", Err: fmt.Errorf("variable %q: %s", name, strings.ToLower(summary)), Hint: detail}
		}
	}
	w := s.workload()
	sp := &initproto.Spawn{Args: c.Args, Env: exec.MergeEnv(w.Env, c.Env), Cwd: w.Cwd, UID: w.UID, GID: w.GID, Groups: w.Groups, TTY: c.TTY}
	if c.Cwd != "" {
		sp.Cwd = c.Cwd
	}
	u := c.User
	if c.Account != "" {
		var err error
		if u, err = s.account(c.Account); err != nil {
			return nil, err
		}
	}
	if u != nil {
		ids := s.plan.IDs
		for _, x := range []struct {
			what string
			id   uint32
			in   bool
		}{{"user", u.UID, mapped(ids, ids.UIDs, u.UID, w.UID)}, {"group", u.GID, mapped(ids, ids.GIDs, u.GID, w.GID)}} {
			if !x.in {
				e := &PhaseError{Phase: "exec", Err: fmt.Errorf("%s %d is not mapped in this sandbox", x.what, x.id)}
				if ids.Kind == "single" {
					e.Hint = "this sandbox has the workload's id alone: a job that names another in user or groups gets a range of them (nucleus doctor tells what that takes)"
				}
				return nil, e
			}
		}
		sp.UID, sp.GID, sp.Groups = u.UID, u.GID, nil
	}
	sp.Paths = plan.ExecPaths(c.Args[0], exec.Getenv(sp.Env, "PATH"), sp.Cwd)
	return sp, nil
}

// mapped tells whether a process of the sandbox may have an id. Without a user
// namespace ids are the host's: then there is the workload's and no other.
func mapped(ids plan.IDs, maps []specs.LinuxIDMapping, id, workload uint32) bool {
	if ids.Kind == "none" {
		return id == workload
	}
	_, ok := plan.HostID(maps, id)
	return ok
}

// sendSpawn asks init, and gives the end of the gate that opens it.
func (s *Sandbox) sendSpawn(sp *initproto.Spawn, c Command, further ...*os.File) (*os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, os.NewSyscallError("pipe2", err)
	}
	defer r.Close()
	fds := []int{int(r.Fd())}
	if !c.TTY && len(sp.Dial.Addrs) == 0 {
		if slices.Contains(c.Stdio[:], nil) {
			null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
			if err != nil {
				_ = w.Close()
				return nil, err
			}
			defer null.Close()
			for i, f := range c.Stdio {
				c.Stdio[i] = cmp.Or(f, null)
			}
		}
		for i, f := range c.Stdio {
			if err := exec.Passed(f); err != nil {
				_ = w.Close()
				return nil, fmt.Errorf("exec: standard stream %d: %w", i, err)
			}
			fds = append(fds, int(f.Fd()))
		}
		if err := exec.Own(c.Stdio, s.hostUID(sp.UID)); err != nil {
			_ = w.Close()
			return nil, err
		}
	}
	for _, f := range further {
		fds = append(fds, int(f.Fd()))
	}
	if err := s.conn.Send(initproto.Encode(initproto.KindSpawn, sp), fds...); err != nil {
		_ = w.Close()
		if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EBADF) {
			err = errEnded
		}
		return nil, err
	}
	return w, nil
}

// await waits for init's answer.
func (p *Process) await(ctx context.Context, tty bool) (pidfd int, err error) {
	timer := time.NewTimer(spawnWait)
	defer timer.Stop()
	defer p.s.spawned.leave(p)
	var m made
	select {
	case m = <-p.made:
	case <-p.ended:
		return -1, p.reason()
	case <-ctx.Done():
		return -1, context.Cause(ctx)
	case <-timer.C:
		return -1, fmt.Errorf("exec: init has not answered within %s: the sandbox may be out of memory, or its processor time used up", spawnWait)
	}
	if m.answer.What != "" {
		channel.CloseAll(m.fds)
		p.s.spawned.finish(initproto.Ended{ID: p.id}, errEnded)
		return -1, p.s.spawnFailed(m.answer)
	}
	want := 1
	if tty {
		want = 2
	}
	if len(m.fds) != want {
		channel.CloseAll(m.fds)
		return -1, fmt.Errorf("%w: %d descriptors", initproto.ErrMessage, len(m.fds))
	}
	if tty {
		p.Terminal = os.NewFile(uintptr(m.fds[1]), "terminal")
	}
	return m.fds[0], nil
}

func (s *Sandbox) spawnFailed(a initproto.Spawned) error {
	e := &PhaseError{Phase: "exec", Err: &initError{a.What, syscall.Errno(a.Errno)}}
	switch syscall.Errno(a.Errno) {
	case unix.EAGAIN:
		e.Origin, e.Hint = "resources.pids", "raise resources { pids = … }: the sandbox has as many processes as it may"
	case unix.ENOMEM:
		e.Origin, e.Hint = "resources.memory", "raise resources { memory = … }: the sandbox is out of memory"
	}
	return e
}

func (p *Process) closeTerminal() {
	if p.Terminal != nil {
		_ = p.Terminal.Close()
		p.Terminal = nil
	}
}

// whyNot tells why a process could not be looked at, or let go: it may have ended at
// one of its steps, which init is about to tell. What is read of one that is ending,
// such as its descriptors, is not what was planned, either.
func (p *Process) whyNot(err error) error {
	patience := lastWords
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EPIPE) {
		patience = lastWordsGone
	}
	select {
	case <-p.ended:
		return p.reason()
	case <-time.After(patience):
	}
	if errors.Is(err, security.ErrStopped) {
		return &PhaseError{Phase: "exec", Err: err, Hint: "try again, or end the sandbox: nucleus kill " + p.s.dir.Name}
	}
	var pe *security.PostureError
	if errors.As(err, &pe) {
		p.s.log.Emit(audit.PostureFailed, err, map[string]any{"process": p.id})
	}
	return phase("security", err)
}

// reason tells why a process ended that had not been let go.
func (p *Process) reason() error {
	if p.err != nil {
		return p.err
	}
	if err := p.failure(); err != nil {
		return err
	}
	return errors.New("exec: the process was killed before it became its program")
}

// failure tells why a process that has ended never became its program, nil if it did.
func (p *Process) failure() error {
	err := p.s.stage2Failure(p.end.Exited, p.command)
	var se *exec.StageError
	if errors.As(err, &se) && se.Errno != 0 && se.Step == initproto.StepCwd {
		return &PhaseError{
			Phase: "exec", Err: fmt.Errorf("working directory %q in the sandbox: %w", p.cwd, se.Errno),
			Hint: "name a directory of the sandbox that the command's user may enter, as -workdir /tmp",
		}
	}
	return err
}

// verifySpawned reads back what holds for the process, as for the workload.
func (s *Sandbox) verifySpawned(pid int, sp *initproto.Spawn) error {
	w := s.process
	w.UID, w.GID, w.Groups, w.TTY, w.Cwd = sp.UID, sp.GID, sp.Groups, sp.TTY, sp.Cwd
	w.Listen = make([]int32, passed(sp))
	return security.ReadPosture(pid, security.Expected{Own: s.own, Plan: s.plan, Process: w, InitPid: s.init.Pid, Cgroup: s.Cgroup(), InitFilter: s.initFilter})
}

// passed is how many sockets the process gets.
func passed(sp *initproto.Spawn) int {
	if sp.Pass {
		return 1
	}
	return 0
}

// Signal sends a signal to the process; SIGKILL to the group that it leads as well.
func (p *Process) Signal(n unix.Signal) {
	p.sent.Or(uint64(1) << (uint(n) - 1))
	if p.inside && p.s.foreign.delivers() {
		if bit := uint64(1) << (uint(n) - 1); p.pending.Or(bit)&bit == 0 {
			go p.signalInside(n)
		}
		return
	}
	p.signalProgram(n)
}

func (p *Process) signalProgram(n unix.Signal) {
	m := initproto.Encode(initproto.KindSignal, &initproto.Signal{Number: uint32(n), Spawned: p.id})
	_ = p.s.conn.Send(m) // init is gone: so is the process
}

// Kill ends the process at once.
func (p *Process) Kill() { p.Signal(unix.SIGKILL) }

// Ended is closed when the process has ended.
func (p *Process) Ended() <-chan struct{} { return p.ended }

// Wait gives how the process ended: its exit code, and the signal that ended it. The
// error is exec.CommandError if its program could not be executed.
func (p *Process) Wait() (code, signal int, err error) {
	<-p.ended
	if p.err != nil {
		return exec.CodeRuntime, 0, p.err
	}
	code, signal = p.s.exitCode(p.end.Exited)
	var se *exec.StageError
	if err = p.failure(); errors.As(err, &se) && se.Errno == 0 && signal > 0 && p.sent.Load()>>(signal-1)&1 == 1 {
		err = nil // it was let go, and then ended as was asked for
	}
	if err != nil {
		code, signal = exec.CodeRuntime, 0
	}
	if !p.quiet {
		p.s.log.Emit(audit.ExecEnded, err, map[string]any{"process": p.id, "exit_code": code, "signal": signal})
	}
	return code, signal, err
}
