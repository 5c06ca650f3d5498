package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/cmd/nucleus/internal/signals"
	"github.com/nucleus-runtime/nucleus/core"
	"github.com/nucleus-runtime/nucleus/core/exec"
	"github.com/nucleus-runtime/nucleus/core/job"
	"github.com/nucleus-runtime/nucleus/core/stack"
	"github.com/nucleus-runtime/nucleus/core/state"
	"github.com/nucleus-runtime/nucleus/core/supervisor"
)

// A stack is the jobs of one file that live on this host at the same time. There is no
// process that holds it: each of its sandboxes has a supervisor, and a file that says
// which stack it is of.

const (
	inStackFlag = "in-stack"
	// stackLockFlag names the descriptor of the stack's lock. A supervisor holds it too,
	// until its sandbox is ready: after the death of the nucleus up that has started it,
	// what it does about that is not over before it has let go.
	stackLockFlag = "stack-lock-fd"
)

type stackFlags struct {
	jobFlags
	name          string
	removeOrphans bool
	rerun         bool
}

func (f *stackFlags) add(c *cobra.Command) {
	f.jobFlags.add(c)
	f.addName(c)
}

func (f *stackFlags) addName(c *cobra.Command) {
	c.Flags().StringVar(&f.name, "stack", "", "name of the stack (default: that of the file, without its extension)")
}

// members are what there is of a stack, by job.
type members struct {
	*app
	name string
	file string // absolute, "" if none is named
	root *state.Root
	of   map[string]member
	held *state.StackLock // nil for who only looks

	speaking sync.Mutex
}

type member struct {
	ref    state.Ref
	record supervisor.Record
	stack  supervisor.Stack
	alive  bool
}

// stack finds out which stack is meant.
func (a *app) stack(f *stackFlags) (*members, error) {
	m := &members{app: a, name: f.name}
	switch {
	case f.config == "" && f.name == "":
		return nil, &usageError{err: errors.New("no stack: name a file with -config"), hint: "nucleus " + f.verb + " -config stack.hcl"}
	case f.config == "-" && f.name == "":
		return nil, &usageError{err: errors.New("a file on standard input has no name for its stack"), hint: "nucleus " + f.verb + " -config - -stack NAME"}
	case f.name == "":
		m.name = job.NameOfFile(f.config)
	}
	if problem := job.NameProblem(m.name); problem != "" {
		return nil, &usageError{err: fmt.Errorf("-stack %s", problem), hint: "nucleus " + f.verb + " -stack NAME"}
	}
	var err error
	if f.config != "" && f.config != "-" {
		if m.file, err = filepath.Abs(f.config); err != nil {
			return nil, err
		}
	}
	m.root, err = a.sandboxes()
	return m, err
}

// sandbox is the name of a job's sandbox.
func (m *members) sandbox(job string) string { return stack.Sandbox(m.name, job) }

// lock keeps others from starting and stopping what is of the stack.
func (m *members) lock(ctx context.Context) (*state.StackLock, error) {
	return m.root.LockStack(ctx, m.name, func() {
		m.problem("warning", fmt.Sprintf("another process is starting or stopping stack %q: waiting for it", m.name), "")
	})
}

// hold takes the lock, for as long as no signal wants an end.
func (m *members) hold(ctx context.Context) (context.Context, func(), error) {
	ctx, release, err := interruptible(ctx)
	if err != nil {
		return nil, nil, err
	}
	if m.held, err = m.lock(ctx); err != nil {
		release()
		return nil, nil, m.gaveUp(err)
	}
	return ctx, func() { m.held.Release(); release() }, nil
}

// look finds what there is of the stack. A stack of another file is an error.
func (m *members) look(ctx context.Context) error {
	refs, err := m.root.Refs()
	if err != nil {
		return err
	}
	held, unknown, err := m.root.Held(refs)
	if err != nil {
		return err
	}
	m.of = map[string]member{}
	for _, x := range refs {
		var k member
		if err := x.ReadJSON(supervisor.StackName, &k.stack); err != nil || k.stack.Name != m.name {
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				m.problem("warning", fmt.Sprintf("sandbox %s: %v", x.ID[:12], err), "")
			}
			continue
		}
		if unknown[x.ID] != nil {
			return unknown[x.ID]
		}
		var gone *state.NotFoundError
		if k.record, err = onRecord(ctx, x, held[x.ID]); errors.As(err, &gone) {
			continue
		} else if err != nil {
			return fmt.Errorf("sandbox %s: %w", x.ID[:12], err)
		}
		k.ref, k.alive = x, held[x.ID]
		if m.file != "" && k.stack.File != "" && k.stack.File != m.file {
			return &hintedError{
				err:  fmt.Errorf("stack %q is made from another file, %s", m.name, k.stack.File),
				hint: "name this one with -stack, or end the other: nucleus down -stack " + m.name,
			}
		}
		m.of[strings.TrimPrefix(x.Name, m.sandbox(""))] = k // its record may have no job yet
	}
	return nil
}

// collected has what killed supervisors left removed, as a run does.
func (m *members) collected(ctx context.Context, cgroupParent string) (*core.Runtime, error) {
	rt, err := m.runtime(core.Options{CgroupParent: cgroupParent})
	if err == nil {
		err = rt.Open(ctx)
	}
	if err == nil {
		err = m.look(ctx)
	}
	if err != nil {
		return nil, err
	}
	for name, k := range m.of {
		if k.record.Status == statusDead {
			return nil, &hintedError{err: fmt.Errorf("job %q: the supervisor of its sandbox was killed, and what it left has to be removed first", name), hint: "nucleus gc"}
		}
	}
	return rt, nil
}

// say tells of one job. Several are at work at the same time.
func (m *members) say(job, what string) error {
	m.speaking.Lock()
	defer m.speaking.Unlock()
	_, err := fmt.Fprintf(m.out, "%s: %s\n", job, what)
	return err
}

// order is that of the jobs that there are sandboxes of.
func (m *members) order(only func(name string) bool) *stack.Order {
	var jobs []stack.Job
	for name, k := range m.of {
		if !only(name) {
			continue
		}
		j := stack.Job{Name: name}
		for _, n := range k.stack.Needs {
			j.Needs = append(j.Needs, job.Dependency{Job: n, Condition: job.ConditionStarted})
		}
		jobs = append(jobs, j)
	}
	slices.SortFunc(jobs, func(a, b stack.Job) int { return strings.Compare(a.Name, b.Name) })
	return stack.New(jobs)
}

// stop ends sandboxes in reverse order, and removes what is kept of them.
func (m *members) stop(ctx context.Context, only func(name string) bool) map[string]error {
	return m.order(only).Stop(ctx, func(ctx context.Context, name string) error {
		k := m.of[name]
		what := "removed"
		if k.alive {
			what = "stopped"
			over := make(chan error, 1)
			go func() { over <- m.end(ctx, k.ref.ID, supervisor.VerbStop) }()
			select {
			case err := <-over:
				// It may have ended by itself meanwhile.
				var gone *state.NotFoundError
				if err != nil && !k.ref.Kept() && !errors.As(err, &gone) {
					return err
				}
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		if k.ref.Kept() {
			d, err := m.root.Take(k.ref)
			if err == nil {
				err = d.Remove()
			}
			if err != nil {
				return err
			}
		}
		return m.say(name, what)
	})
}

// interruptedError is a signal that this process got.
type interruptedError struct{ signal unix.Signal }

func (e *interruptedError) Error() string { return "received " + unix.SignalName(e.signal) }

// interruptible gives a context that a signal ends.
func interruptible(ctx context.Context) (context.Context, func(), error) {
	caught, release, err := signals.Catch(unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	if err != nil {
		return nil, nil, fmt.Errorf("catching signals: %w", err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		select {
		case n := <-caught:
			cancel(&interruptedError{n})
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(nil); release() }, nil
}

// failed prints what went wrong with each job, names being the order to tell it in.
func (m *members) failed(errs map[string]error, names []string) error {
	var interrupted *interruptedError
	for _, name := range names {
		if err := errs[name]; err != nil && !errors.As(err, &interrupted) {
			m.problem("error", fmt.Sprintf("job %q: %v", name, err), hintOf(err))
		}
	}
	switch {
	case interrupted != nil:
		return m.interrupted(interrupted)
	case len(errs) > 0:
		return exitError(exec.CodeRuntime)
	}
	return nil
}

// gaveUp is for what ended before there was anything to do for a job.
func (m *members) gaveUp(err error) error {
	var interrupted *interruptedError
	if errors.As(err, &interrupted) {
		return m.interrupted(interrupted)
	}
	return err
}

// interrupted tells what lives.
func (m *members) interrupted(e *interruptedError) error {
	what := "nothing of the stack runs"
	if err := m.look(context.Background()); err != nil {
		what = err.Error()
	} else {
		var alive []string
		for name, k := range m.of {
			if k.alive {
				alive = append(alive, name)
			}
		}
		if slices.Sort(alive); len(alive) > 0 {
			what = "these jobs run: " + strings.Join(alive, ", ")
		}
	}
	m.problem("error", e.Error()+": "+what, "nucleus down -stack "+m.name)
	return exitError(128 + int(e.signal))
}

func (a *app) downCommand() *cobra.Command {
	var f stackFlags
	c := &cobra.Command{
		Use:   "down [-config FILE] [-stack NAME]",
		Short: "Stop the jobs that nucleus up has started, in reverse order",
		Long: `Stop the sandboxes of a stack and remove what is kept of them: each after those that
depend on it, independent ones at the same time, as their jobs' stop blocks say. What
is not there is no error. The file is not read: only its name matters, and -var and
-var-file are taken so that the arguments of nucleus up fit.`,
		Example: "  nucleus down -config stack.hcl\n  nucleus down -stack stack", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return a.down(c.Context(), &f) },
	}
	f.add(c)
	return c
}

func (a *app) down(ctx context.Context, f *stackFlags) error {
	m, err := a.stack(f)
	if err != nil {
		return err
	}
	ctx, letGo, err := m.hold(ctx)
	if err != nil {
		return err
	}
	defer letGo()
	if _, err := m.collected(ctx, ""); err != nil {
		return err
	}
	var names []string
	for name := range m.of {
		names = append(names, name)
	}
	slices.Sort(names)
	if len(names) == 0 { // a name that was mistyped looks like this
		_, err := fmt.Fprintf(a.out, "nothing of stack %q is there\n", m.name)
		return err
	}
	return m.failed(m.stop(ctx, func(string) bool { return true }), names)
}

// stackRecord is what a sandbox of a stack remembers of it.
func stackRecord(f *jobFlags, j *job.Job) (*supervisor.Stack, error) {
	s := &supervisor.Stack{Name: f.inStack, Key: make([]byte, 32)}
	_, _ = rand.Read(s.Key) // never fails (crypto/rand)
	var err error
	if f.config != "-" {
		if s.File, err = filepath.Abs(f.config); err != nil {
			return nil, err
		}
	}
	for _, d := range j.DependsOn {
		s.Needs = append(s.Needs, d.Job)
	}
	s.Digest, err = j.Digest(s.Key)
	return s, err
}

// memfdFile is an anonymous file.
func memfdFile(name string) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}
