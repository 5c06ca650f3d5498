// Package core is Nucleus as a library: it plans jobs for this host, and runs
// plans as sandboxes. A program that embeds it needs nothing else; the nucleus
// command uses nothing else.
//
// A sandbox dies with the process that made it: its init has the parent-death
// signal set, so an embedder that crashes leaves no workload behind, and
// Collect (or `nucleus gc`) takes the rest.
package core

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/nucleus-runtime/nucleus/core/audit"
	"github.com/nucleus-runtime/nucleus/core/boundary"
	"github.com/nucleus-runtime/nucleus/core/cgroups"
	"github.com/nucleus-runtime/nucleus/core/checkpoint"
	"github.com/nucleus-runtime/nucleus/core/exec"
	"github.com/nucleus-runtime/nucleus/core/host"
	"github.com/nucleus-runtime/nucleus/core/host/fact"
	"github.com/nucleus-runtime/nucleus/core/job"
	"github.com/nucleus-runtime/nucleus/core/lifecycle"
	"github.com/nucleus-runtime/nucleus/core/listen"
	"github.com/nucleus-runtime/nucleus/core/member"
	"github.com/nucleus-runtime/nucleus/core/network"
	"github.com/nucleus-runtime/nucleus/core/notify"
	"github.com/nucleus-runtime/nucleus/core/plan"
	"github.com/nucleus-runtime/nucleus/core/runtimes"
	"github.com/nucleus-runtime/nucleus/core/secret"
	"github.com/nucleus-runtime/nucleus/core/security/seccomp"
	"github.com/nucleus-runtime/nucleus/core/state"
	"github.com/nucleus-runtime/nucleus/core/supervisor"
	sdknet "github.com/nucleus-runtime/nucleus/sdk/network"
	wire "github.com/nucleus-runtime/nucleus/sdk/network/member"
)

// ErrNoPlugins is the reason why a clean-up is left to a program that can start
// plugins.
var ErrNoPlugins = lifecycle.ErrNoPlugins

// Options of a Runtime. The zero value is what the nucleus command uses.
type Options struct {
	// StateRoot is where sandboxes are kept track of; "" is state.DefaultRoot.
	StateRoot string
	// Libexec is the directory of nucleus-init and nucleus-seccomp; "" looks
	// beside the running program, then where `make install` puts them.
	Libexec string
	// CacheDir holds compiled seccomp filters; "" is the user's cache directory.
	CacheDir string
	// CgroupParent overrides below which control group sandboxes are made.
	CgroupParent string
	// Events receive the JSON lines of every sandbox, refused runs included.
	Events []io.Writer
	// Secrets gives the values of the jobs' secrets; without it a job that has any
	// cannot be planned.
	Secrets secret.Source
	// Hooks calls hooks plugins; without it a job that names one cannot be planned.
	Hooks boundary.Source
	// Runtimes asks runtime plugins; without it a job that names one cannot be run.
	Runtimes runtimes.Source
	// Networks reaches network plugins; without it a job that names one cannot be
	// planned.
	Networks network.Source
	// Manager is the service manager that is told of a sandbox whose job says so, nil
	// for none.
	Manager *notify.Manager
	// Refused are further paths of the host that no sandbox may have, nor what they are in:
	// where plugins have their sockets.
	Refused []string
	// Lap is called at the end of each step of a start, for tracing.
	Lap func(step string)
}

// Runtime makes sandboxes on this host. Its methods may be called from any
// number of goroutines.
type Runtime struct {
	o       Options
	host    func() (fact.Host, error) // looks once
	cgroups cgroups.Facts

	mu    sync.Mutex // of what open finds
	init  *initFile
	state *state.Root
}

// serialWriter lets sandboxes that live at the same time share a sink: each
// event is one write.
type serialWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (s *serialWriter) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.w.Write(b)
}

// What a run is given, and how it ended.
type (
	// Result is how a run ended.
	Result = exec.Result
	// Cause says why.
	Cause = exec.Cause
	// Streams are the caller's ends of the standard streams.
	Streams = exec.Streams
	// Sandbox is a sandbox that was created. It is served on its control socket from then
	// on, until it is gone.
	Sandbox = supervisor.Supervisor
	// Restarting tells of a workload that has ended and is started again.
	Restarting = supervisor.Restarting
)

// New looks at the host's control groups, and the first that needs more at the rest. It
// changes nothing.
func New(o Options) (*Runtime, error) {
	r := &Runtime{o: o}
	r.host = sync.OnceValues(r.look)
	r.o.Events = nil
	for _, w := range o.Events {
		r.o.Events = append(r.o.Events, &serialWriter{w: w})
	}
	if r.o.Lap == nil {
		r.o.Lap = func(string) {}
	}
	var err error
	if r.cgroups, err = cgroups.Detect(o.CgroupParent); err != nil {
		return nil, fmt.Errorf("looking at the host's cgroups: %w", err)
	}
	r.o.Lap("cgroups looked at")
	return r, nil
}

func (r *Runtime) look() (fact.Host, error) {
	h, err := host.Quick(host.Options{})
	if err != nil {
		return fact.Host{}, fmt.Errorf("looking at the host: %w", err)
	}
	h.Cgroup = cgroupFacts(r.cgroups)
	r.o.Lap("host looked at")
	return h, nil
}

// Host gives the facts that plans are made from, but for the toolchain.
func (r *Runtime) Host() (fact.Host, error) { return r.host() }

func cgroupFacts(f cgroups.Facts) fact.Cgroup {
	c := fact.Cgroup{Layout: string(f.Layout), SwapAbsent: f.SwapAbsent, Why: f.Why, Remedy: f.Remedy, Controllers: map[string]fact.Feature{}}
	for name, x := range f.Controllers {
		s := fact.Unknown
		switch x.State {
		case cgroups.Available:
			s = fact.Available
		case cgroups.Unavailable:
			s = fact.Unavailable
		}
		if !f.Usable() {
			s = fact.Unavailable
		}
		c.Controllers[name] = fact.Feature{Name: "cgroup." + name, State: s, Why: x.Why, Remedy: x.Remedy}
	}
	return c
}

// Plan resolves a job against this host. The error is plan.Errors if the job
// cannot be run here.
func (r *Runtime) Plan(j *job.Job) (*plan.Plan, error) {
	h, err := r.host()
	if err != nil {
		r.refused(j.Name, err)
		return nil, err
	}
	if j.Rootfs == nil {
		h.Toolchain = host.Toolchain(host.Options{})
	}
	in := plan.Inputs{Host: h, Term: os.Getenv("TERM"), CgroupParent: r.o.CgroupParent, Devices: blockDevices(j), Missing: missingMountPoints(j, h), OwnFile: ownFile(j), Secrets: r.o.Secrets != nil, HooksPlugins: r.o.Hooks != nil, Networks: r.o.Networks != nil, Runtimes: r.o.Runtimes != nil}
	if r.o.Manager != nil {
		in.Watchdog = r.o.Manager.Watchdog
	}
	in.Accounts = accounts(j)
	if j.Network.Backend == "host" {
		in.HostResolv = readSmall("/etc/resolv.conf")
	}
	p, err := plan.Make(j, in)
	if errs := check(j); len(errs) > 0 {
		var more plan.Errors
		if errors.As(err, &more) {
			errs = append(errs, more...)
		}
		err = errs
	}
	if err != nil {
		r.refused(j.Name, err)
		return nil, err
	}
	r.o.Lap("planned")
	return p, nil
}

// AskRuntime has the plugin that would run a plan's sandbox say how, and gives why it
// cannot, at its line. Nothing is made of it.
func (r *Runtime) AskRuntime(ctx context.Context, p *plan.Plan) error {
	if p.Runtime == nil {
		return nil
	}
	h, err := r.host()
	if err != nil {
		return err
	}
	a, err := lifecycle.AskRuntime(ctx, r.o.Runtimes, strings.Repeat("0", 32), p, h.Privileged)
	if err != nil {
		return locate(err, p)
	}
	return a.File.Close()
}

// Refused tells the event sinks of a run that ended before there was a plan,
// because its job is not valid.
func (r *Runtime) Refused(name string, err error) { r.refused(name, err) }

func (r *Runtime) refused(name string, err error) {
	if len(r.o.Events) > 0 {
		audit.NewLog("", name, r.o.Events...).Emit(audit.Refused, err, nil)
	}
}

// RunOptions are for one sandbox.
type RunOptions struct {
	// Name is the sandbox's name; it is an error if another has it. "" takes the
	// job's, with a suffix if that is taken.
	Name    string
	Streams Streams
	// ThreadsStay: no thread of this process ends before the sandbox does, for no
	// goroutine ends while it is locked to one (runtime.LockOSThread), which is all
	// that makes Go end a thread. Init, which dies with the thread that made it,
	// then needs none of its own, and the start is a little faster. Only a program
	// that knows all of its packages can say so.
	ThreadsStay bool
	// Begun is what Begin has made of the plan's job, nil for nothing; Create takes it over.
	// It takes ThreadsStay: otherwise init is made on a thread of its own.
	Begun *Begun
	// Detached: what the workload writes goes into a log in the sandbox's directory,
	// and to whoever attaches, instead of to Streams, of which only Console is used.
	Detached bool
	// Journal is the socket of systemd's journal (journald.Socket) that gets what a
	// detached workload writes beside the log; "" for none.
	Journal string
	// Held: whoever asks on the control socket has the sandbox started, or removed
	// (Sandbox.StartAsked, Sandbox.Abandoned).
	Held bool
	// Sockets are what a job with socket_activation hands to its workload, and stay the
	// caller's. A job without takes none.
	Sockets []listen.Socket
	// Stack is kept beside the sandbox's record, for who starts and stops several. Others of
	// it find the sandbox if its Name is as stack.Sandbox says.
	Stack *supervisor.Stack
	// Keep leaves the record and the log of a sandbox that has run, and its name, until
	// it is removed.
	Keep bool
	// Restore is the directory of an image that the first run goes on from, "" to begin.
	// One that follows it begins, as its job says.
	Restore string
	// Pid is called with the pid of each workload while it waits at the start gate: of
	// the first, and if the job says so of those that follow it; and with 0 when one is
	// gone.
	Pid func(pid int) error
	// Again is called when a workload has ended and is going to be started again.
	Again func(Restarting)
}

// onThread makes a run on a thread of its own, which ends with it.
func onThread(create func() (*lifecycle.Sandbox, error)) (*lifecycle.Sandbox, error) {
	type outcome struct {
		s   *lifecycle.Sandbox
		err error
	}
	made := make(chan outcome)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
		s, err := create()
		made <- outcome{s, err}
		if err == nil {
			<-s.Gone()
		}
	}()
	m := <-made
	return m.s, m.err
}

// Create takes a plan through its phases up to the start gate. Sandboxes whose
// supervisor died earlier are cleaned up first.
func (r *Runtime) Create(ctx context.Context, p *plan.Plan, o RunOptions) (*Sandbox, error) {
	defer o.Begun.Dismiss()
	if o.Begun != nil && !o.ThreadsStay {
		return nil, errors.New("core: RunOptions.Begun without ThreadsStay")
	}
	if err := r.Open(ctx); err != nil {
		return nil, err
	}
	h, err := r.host()
	if err != nil {
		return nil, err
	}
	path, program, err := r.init.programFor(p)
	if err != nil {
		return nil, err
	}
	var image *checkpoint.Image
	if o.Restore != "" {
		if image, err = checkpoint.Open(o.Restore); err != nil {
			return nil, lifecycle.ImagePhase(err)
		}
		defer image.Close()
	}
	d, err := r.state.Create(state.NewID(), cmp.Or(o.Name, p.Name), o.Name != "")
	if err != nil {
		return nil, lifecycle.StatePhase(err)
	}
	log := audit.NewLog("", p.Name, r.o.Events...)
	var place *sdknet.Member
	var dial member.Dial
	if o.Stack != nil {
		place = &sdknet.Member{Stack: o.Stack.Name, Job: p.Name}
		dial = func(ctx context.Context, q wire.Request) (wire.Families, *os.File, error) {
			return supervisor.Connect(ctx, r.state, o.Stack.Name, q)
		}
	}
	run := func(ctx context.Context, streams exec.Streams, settled func(*plan.Plan)) (*lifecycle.Sandbox, error) {
		from := image
		image = nil // those that follow begin
		return lifecycle.Create(ctx, lifecycle.Config{
			Dir: d, InitPath: path, Init: program, Refused: append([]string{r.state.Path()}, r.o.Refused...), Programs: r.init.dir,
			Seccomp: seccomp.Compiler{Helper: filepath.Join(r.init.dir, "nucleus-seccomp"), CacheDir: r.cacheDir()},
			Cgroups: r.cgroups, Privileged: h.Privileged, Streams: streams, Log: log, Lap: r.o.Lap, Manager: r.o.Manager, Listen: o.Sockets,
			Member: place, Dial: dial, Image: from, Settled: settled, Begun: o.Begun,
			Sources: lifecycle.Sources{Secrets: r.o.Secrets, Hooks: r.o.Hooks, Networks: r.o.Networks, Runtimes: r.o.Runtimes},
		}, p)
	}
	return supervisor.New(ctx, supervisor.Config{
		Dir: d, Plan: p, Log: log, Streams: o.Streams, Detached: o.Detached, Cgroups: r.cgroups, Journal: o.Journal, Held: o.Held, Keep: o.Keep, Stack: o.Stack, Pid: o.Pid, Again: o.Again, Manager: r.o.Manager,
		Locate: func(err error) error { return locate(err, p) },
		Make: func(ctx context.Context, streams exec.Streams, settled func(*plan.Plan)) (supervisor.Run, error) {
			if o.ThreadsStay {
				return run(ctx, streams, settled)
			}
			return onThread(func() (*lifecycle.Sandbox, error) { return run(ctx, streams, settled) })
		},
	})
}

// collectBudget bounds how long a run spends on cleaning up after others.
const collectBudget = 2 * time.Second

// Run runs a plan to its end. A cancelled context stops the workload as its job
// says. The error tells what Nucleus itself could not do; the workload's own
// failure is in the Result.
func (r *Runtime) Run(ctx context.Context, p *plan.Plan, o RunOptions) (Result, error) {
	s, err := r.Create(ctx, p, o)
	if err != nil {
		return Failed(err), err
	}
	if err := s.Start(ctx); err != nil {
		return s.Failed(), err
	}
	return s.Wait()
}

// Failed is the result of a start that ended with err.
func Failed(err error) Result {
	res := Result{Cause: exec.CauseRuntime, ExitCode: exec.CodeRuntime}
	var se *lifecycle.StartError
	if errors.As(err, &se) {
		res.ID, res.Name = se.ID, se.Name
	}
	return res
}

// Collected is what Collect has removed.
type Collected = lifecycle.Collected

// Collect removes what sandboxes left whose supervisor was killed, and tells
// what that was. It is safe beside live sandboxes. Without Options.Hooks, Secrets and Networks it leaves what
// a plugin has to be called for, with an error that is ErrNoPlugins. Compiled filters that were not
// used for seccomp.Unused go from Options.CacheDir.
func (r *Runtime) Collect(ctx context.Context) (Collected, error) {
	if _, err := r.open(); err != nil {
		return Collected{}, err
	}
	done, err := lifecycle.Collect(ctx, r.state, lifecycle.Sources{Secrets: r.o.Secrets, Hooks: r.o.Hooks, Networks: r.o.Networks, Groups: supervisor.Groups}, r.o.Events...)
	err = errors.Join(err, supervisor.RemoveGroups(r.state))
	if dir := r.cacheDir(); dir != "" {
		err = errors.Join(err, seccomp.Prune(dir, time.Now()))
	}
	return done, err
}

// Open finds what sandboxes need on disk, makes the state root if it is
// missing, and removes what sandboxes left whose supervisor died earlier.
// Create does it by itself; a program that is in a hurry does it meanwhile.
func (r *Runtime) Open(ctx context.Context) error {
	first, err := r.open()
	if err != nil {
		r.refused("", err)
		return err
	}
	if !first {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, collectBudget)
	defer cancel()
	_, _ = lifecycle.Collect(ctx, r.state, lifecycle.Sources{Groups: supervisor.Groups, Passing: true}, r.o.Events...) // what fails here stays for `nucleus gc`, and hinders nobody
	r.o.Lap("state root")
	return nil
}

// open finds what a sandbox needs on disk, once, and says whether it was now.
func (r *Runtime) open() (first bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.state != nil {
		return false, nil
	}
	if r.init, err = findInit(r.o.Libexec); err != nil {
		return false, err
	}
	root := r.o.StateRoot
	if root == "" {
		root = state.DefaultRoot()
	}
	if r.state, err = state.Open(root); err != nil {
		return false, err
	}
	return true, nil
}

func (r *Runtime) cacheDir() string {
	if r.o.CacheDir != "" {
		return r.o.CacheDir
	}
	if os.Geteuid() == 0 {
		return "/var/cache/nucleus/seccomp"
	}
	d, err := os.UserCacheDir()
	if err != nil {
		return "" // no cache: custom filters are compiled each time
	}
	return filepath.Join(d, "nucleus", "seccomp")
}

// locate adds the job's line to an error whose part of the plan is known.
func locate(err error, p *plan.Plan) error {
	var pe *lifecycle.PhaseError
	if err == nil || !errors.As(err, &pe) || pe.Origin == "" {
		return err
	}
	if where := p.Where(pe.Origin); where != "" {
		return &LocatedError{Where: where, Err: err}
	}
	return err
}

// LocatedError is an error of a run with the line of the job that it came from.
type LocatedError struct {
	Where string // "file:line"
	Err   error
}

func (e *LocatedError) Error() string { return e.Where + ": " + e.Err.Error() }
func (e *LocatedError) Unwrap() error { return e.Err }
