package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core"
	"github.com/nucleus-runtime/nucleus/core/exec"
	"github.com/nucleus-runtime/nucleus/core/job"
	"github.com/nucleus-runtime/nucleus/core/lifecycle"
	"github.com/nucleus-runtime/nucleus/core/plan"
	"github.com/nucleus-runtime/nucleus/core/stack"
	"github.com/nucleus-runtime/nucleus/core/supervisor"
)

func (a *app) upCommand() *cobra.Command {
	var f stackFlags
	c := &cobra.Command{
		Use:   "up -config FILE|- [-stack NAME] [flags]",
		Short: "Start the jobs of a file in the order of their depends_on blocks",
		Long: `Start the jobs of a file, each once those that its depends_on blocks name have come as
far as these say, independent ones at the same time. The sandbox of a job is called
STACK-JOB. Returns when every job is ready, and those whose end is waited for have
ended. Jobs that run and have not changed stay; changed ones are stopped and started
again; one that has ended by itself with exit code 0 is not run again. The exit code is
0 if all is as the file says, 125 if not; what was started stays. A signal ends what is
still being started and leaves the rest: 128+n.`,
		Example: `  nucleus up -config stack.hcl
  nucleus up -config stack.hcl -stack test -var port=8081
  nucleus down -config stack.hcl`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return a.up(c.Context(), &f) },
	}
	f.add(c)
	f.addParent(c)
	c.Flags().BoolVar(&f.removeOrphans, "remove-orphans", false, "stop and remove sandboxes of the stack whose jobs are not in the file any more")
	c.Flags().BoolVar(&f.rerun, "rerun", false, "run jobs again that have ended with exit code 0")
	return c
}

// upping is one nucleus up at work.
type upping struct {
	*members
	f       *stackFlags
	jobs    map[string]*job.Job
	names   []string // in file order
	order   *stack.Order
	actions map[string]stack.Action
}

func (a *app) up(ctx context.Context, f *stackFlags) error {
	m, err := a.stack(f)
	if err != nil {
		return err
	}
	jobs, err := a.loadAll(&f.jobFlags)
	if err != nil {
		return err
	}
	u := &upping{members: m, f: f, jobs: map[string]*job.Job{}}
	var ordered []stack.Job
	for _, j := range jobs {
		if problem := job.NameProblem(m.sandbox(j.Name)); problem != "" {
			return &hintedError{err: fmt.Errorf("the sandbox of job %q would be called %s", j.Name, problem), hint: "nucleus up -config " + f.config + " -stack NAME"}
		}
		u.jobs[j.Name] = j
		u.names = append(u.names, j.Name)
		ordered = append(ordered, stack.Job{Name: j.Name, Needs: j.DependsOn})
	}
	u.order = stack.New(ordered)
	ctx, letGo, err := m.hold(ctx)
	if err != nil {
		return err
	}
	defer letGo()
	rt, err := m.collected(ctx, f.parent)
	if err != nil {
		return err
	}
	if err := u.decide(rt); err != nil {
		return err
	}
	orphans := u.orphans()
	goes := func(name string) bool {
		if slices.Contains(orphans, name) {
			return f.removeOrphans
		}
		return u.actions[name] == stack.Replace
	}
	if errs := m.stop(ctx, goes); len(errs) > 0 {
		return m.failed(errs, append(u.names, orphans...))
	}
	kept := func(name string) bool {
		return u.actions[name] == stack.Keep || u.actions[name] == stack.Leave
	}
	return m.failed(u.order.Start(ctx, kept, u.start), u.names)
}

// decide finds out what is to be done, and whether it can be, before any of it is.
func (u *upping) decide(rt *core.Runtime) error {
	u.actions = map[string]stack.Action{}
	var wrong plan.Errors
	for _, name := range u.names {
		j := u.jobs[name]
		var found *stack.Found
		if k, ok := u.of[name]; ok {
			digest, err := j.Digest(k.stack.Key)
			if err != nil {
				return err
			}
			r := k.record.Result
			found = &stack.Found{
				Alive: k.alive && k.record.Status != lifecycle.StatusStopping, Same: digest == k.stack.Digest,
				Done: r != nil && r.Cause == exec.CauseExit && r.ExitCode == 0,
			}
		} else if x, err := u.root.Find(u.sandbox(name)); err == nil && x.Name == u.sandbox(name) {
			return &hintedError{
				err:  fmt.Errorf("job %q: its sandbox would be called %q, which another is that nucleus up has not made for this stack", name, x.Name),
				hint: "name the stack with -stack, or end the other: nucleus rm -force " + x.Name,
			}
		}
		u.actions[name] = stack.Decide(found, u.order.Awaited(name, job.ConditionReady), u.f.rerun)
		if u.actions[name] == stack.Keep || u.actions[name] == stack.Leave || namesPlugin(j) {
			continue // with plugins the build that starts it makes the plan
		}
		_, err := rt.Plan(j)
		var more plan.Errors
		switch {
		case errors.As(err, &more):
			wrong = append(wrong, more...)
		case err != nil:
			return err
		}
	}
	if len(wrong) > 0 {
		return wrong
	}
	return nil
}

// again is the command line that leads here, but for its variables.
func (u *upping) again() string {
	s := "nucleus up -config " + u.f.config
	if u.f.name != "" {
		s += " -stack " + u.f.name
	}
	return s
}

// orphans are jobs that were in the file once.
func (u *upping) orphans() []string {
	var names []string
	for name, k := range u.of {
		if u.jobs[name] != nil {
			continue
		}
		names = append(names, name)
		if !u.f.removeOrphans {
			u.problem("warning", fmt.Sprintf("job %q is not in the file any more; its sandbox %q stays", name, k.ref.Name), u.again()+" -remove-orphans, or nucleus rm -force "+k.ref.Name)
		}
	}
	slices.Sort(names)
	return names
}

// start brings one job as far as somebody waits for it.
func (u *upping) start(ctx context.Context, name string, reached func(job.Condition)) error {
	var err error
	switch u.actions[name] {
	case stack.Leave:
		reached(job.ConditionExited)
		return u.say(name, "has ended with exit code 0 before")
	case stack.Keep:
		reached(job.ConditionStarted)
		if err = u.awaitReady(ctx, name); err == nil {
			reached(job.ConditionReady)
			err = u.say(name, "unchanged")
		}
	default:
		if err = u.launch(ctx, name, reached); err == nil {
			reached(job.ConditionReady)
			err = u.say(name, "started")
		}
	}
	if err != nil || !u.order.Awaited(name, job.ConditionExited) {
		return err
	}
	e, err := u.await(ctx, u.sandbox(name))
	switch {
	case err != nil:
		return err
	case e.Error != "":
		return errors.New(e.Error)
	case e.Result.Cause == exec.CauseCheckpointed:
		return errors.New("was checkpointed, and has not come to its end")
	case e.Result.ExitCode != 0:
		what := "failed"
		if e.Result.Cause == exec.CauseStopped {
			what = "was stopped"
		}
		return &hintedError{err: fmt.Errorf("%s (%s)", what, ending(e.Result)), hint: "nucleus logs " + u.sandbox(name)}
	}
	reached(job.ConditionExited)
	return u.say(name, "ended with exit code 0")
}

// awaitReady waits for a sandbox that was ready once and is not now: its workload is
// being started again.
func (u *upping) awaitReady(ctx context.Context, name string) error {
	for {
		r, err := u.record(ctx, u.root, u.of[name].ref)
		switch {
		case err != nil:
			return err
		case r.Ready:
			return nil
		case r.Status != lifecycle.StatusRunning && r.Status != lifecycle.StatusPaused && r.Status != lifecycle.StatusCheckpointing && r.Status != supervisor.StatusRestarting:
			return notReady(u.sandbox(name))
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func notReady(sandbox string) error {
	return &hintedError{err: errors.New("ended before it was ready"), hint: "nucleus logs " + sandbox}
}

// launch starts the sandbox of a job as run -detach does, and returns when it is ready.
func (u *upping) launch(ctx context.Context, name string, reached func(job.Condition)) error {
	var in *os.File
	if u.f.config == "-" {
		fd, err := pipedJob(u.piped)
		if err != nil {
			return err
		}
		in = os.NewFile(uintptr(fd), "job")
		defer in.Close()
	}
	// What it says is kept together: others say something at the same time.
	said, err := memfdFile("said")
	if err != nil {
		return err
	}
	defer said.Close()
	p, r, err := u.startSupervisor(u.f.parent, u.arguments(name), in, said, nil, u.held.File())
	if err != nil {
		return err
	}
	defer r.Close()
	stop := context.AfterFunc(ctx, func() { _ = p.Signal(unix.SIGTERM) }) // it is gone: that is what is wanted
	defer stop()
	m, ran, ok := u.hear(r, reached)
	if ok && ctx.Err() == nil {
		_ = p.Release()
		u.repeat(said)
		if m.Ended {
			return notReady(u.sandbox(name))
		}
		return nil
	}
	st, err := p.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	u.repeat(said)
	if err != nil {
		return fmt.Errorf("waiting for the supervisor: %w", err)
	}
	if ran {
		return notReady(u.sandbox(name))
	}
	return fmt.Errorf("not started: its supervisor has ended with %s", st)
}

// hear reads what a supervisor tells until it has said that its sandbox is ready, and
// tells whether the workload ran.
func (u *upping) hear(r io.Reader, reached func(job.Condition)) (m readyMessage, ran, ok bool) {
	lines := bufio.NewReader(io.LimitReader(r, 4096))
	for {
		line, err := lines.ReadBytes('\n')
		m = readyMessage{}
		if err != nil || json.Unmarshal(line, &m) != nil || m.ID == "" {
			return m, ran, false // it has failed, and said why
		}
		if !m.Started {
			return m, true, true
		}
		ran = true
		reached(job.ConditionStarted)
	}
}

// arguments are those of the supervisor's process.
func (u *upping) arguments(name string) []string {
	args := []string{"nucleus"}
	add := func(flag, value string) {
		if value != "" {
			args = append(args, "--"+flag+"="+value)
		}
	}
	add("state-root", u.stateRoot)
	add("host-config", u.hostConfigPath)
	args = append(args, "run", "--detach", "--keep")
	add(inStackFlag, u.name)
	add("config", u.f.config)
	add("job", name)
	add("name", u.sandbox(name))
	add("cgroup-parent", u.f.parent)
	for _, kv := range u.f.vars {
		add("var", kv)
	}
	for _, path := range u.f.varFiles {
		add("var-file", path)
	}
	if u.f.hostFuncs {
		args = append(args, "--allow-host-functions")
	}
	return args
}

// repeat prints what a supervisor has said, its errors and warnings.
func (u *upping) repeat(said *os.File) {
	const most = 64 << 10
	b, err := io.ReadAll(io.NewSectionReader(said, 0, most))
	if err != nil || len(bytes.TrimSpace(b)) == 0 {
		return
	}
	u.speaking.Lock()
	defer u.speaking.Unlock()
	_, _ = u.stderr.Write(b) // there is nowhere else to say it
}
