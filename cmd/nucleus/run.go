package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/cmd/nucleus/internal/signals"
	"github.com/nucleus-runtime/nucleus/core"
	"github.com/nucleus-runtime/nucleus/core/exec"
	"github.com/nucleus-runtime/nucleus/core/journald"
	"github.com/nucleus-runtime/nucleus/core/listen"
	"github.com/nucleus-runtime/nucleus/core/notify"
	"github.com/nucleus-runtime/nucleus/core/plan"
	"github.com/nucleus-runtime/nucleus/core/supervisor"
)

type runFlags struct {
	jobFlags
	events  string
	pidFile string
	trace   bool
	json    bool
	detach  bool
	keep    bool
	console string
	log     string
	restore string
	create  bool // stop at the start gate
	stack   *supervisor.Stack
}

func (a *app) runCommand() *cobra.Command {
	var f runFlags
	c := &cobra.Command{
		Use:   "run [-config FILE|-] [flags] [-- COMMAND ARGS...]",
		Short: "Run a job, in the foreground or with -detach in a process of its own",
		Long: `Run a job in the foreground. The exit code is the workload's; 128+n if signal n
ended it; 125 if Nucleus failed, 126 if the command cannot be executed, 127 if it
is not found. With -detach it returns once the workload runs, or is ready if the job
has a readiness block, and prints the sandbox's id.`,
		Example: `  nucleus run -config job.hcl
  nucleus run -detach -name web -config web.hcl
  nucleus run -config web.hcl -var port=8080 -name web-1
  nucleus run -- /bin/sh -c 'id; ls /'`,
		Args: cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) > 0 && c.ArgsLenAtDash() != 0 {
				return unexpected("run", args[0])
			}
			return a.run(c.Context(), &f, args)
		},
	}
	f.add(c)
	f.addParent(c)
	f.addRun(c)
	c.Flags().BoolVar(&f.detach, "detach", false, "print the id once the workload runs, and leave the sandbox to a process of its own")
	c.Flags().StringVar(&f.inStack, inStackFlag, "", "")
	_ = c.Flags().MarkHidden(inStackFlag) // it exists
	c.Flags().IntVar(&f.stackLock, stackLockFlag, 0, "")
	_ = c.Flags().MarkHidden(stackLockFlag) // as above
	c.Flags().BoolVar(&f.trace, "trace", false, "print where each millisecond of the run goes, to standard error")
	c.Flags().BoolVar(&f.json, "json", false, "print the result as JSON to standard error when the sandbox has ended")
	return c
}

// unexpected is an argument that stands before --.
func unexpected(verb, arg string) error {
	hint := "nucleus " + verb + " -- COMMAND ARGS..."
	if strings.HasSuffix(arg, ".hcl") {
		hint = "nucleus " + verb + " -config " + arg
	}
	return &usageError{err: fmt.Errorf("unexpected argument %q: the command comes after --", arg), hint: hint}
}

func (f *runFlags) addRun(c *cobra.Command) {
	f.addJob(c)
	c.Flags().StringVar(&f.name, "name", "", "name of the sandbox (default: the job's, made unique)")
	c.Flags().StringVar(&f.events, "events", "", "write events as JSON lines to FILE or fd:N")
	c.Flags().StringVar(&f.pidFile, "pid-file", "", "write the workload's host pid to this file, which is removed with the sandbox; what a killed nucleus left is replaced by the next run")
	c.Flags().StringVar(&f.console, "console-socket", "", "hand the terminal of a detached sandbox (tty = true) to whoever listens on this Unix socket, as OCI runtimes do")
	c.Flags().BoolVar(&f.keep, "keep", false, "keep the record of the sandbox after its end, the log of a detached one, and its name, until nucleus rm")
	c.Flags().StringVar(&f.restore, "restore", "", "go on from the image in this directory, which nucleus checkpoint has made of a sandbox of the same job")
	c.Flags().StringVar(&f.log, "log", "", "journald: hand the output of a detached sandbox to systemd's journal as well; journald:SOCKET for another than "+journald.Socket+"; none: to no journal, whatever the host configuration says")
}

// journal gives the socket that -log names, or the host configuration for sandboxes
// whose output is nucleus's own to keep; "" for none.
func (a *app) journal(f *runFlags) (string, error) {
	const hint = "nucleus run -detach -log journald -config job.hcl"
	switch {
	case f.log == "" && (!f.detach || f.console != ""), f.log == "none":
		return "", nil
	case f.log == "":
		c, err := a.hostConfiguration()
		if err != nil {
			return "", err
		}
		return c.Journal, nil
	}
	socket, ok := journald.Destination(f.log)
	if !ok {
		return "", &usageError{err: fmt.Errorf("-log %q: write journald, journald:SOCKET with an absolute path, or none", f.log), hint: hint}
	}
	if !f.detach {
		return "", &usageError{err: errors.New("-log is for a detached sandbox: in the foreground the output is the caller's"), hint: hint}
	}
	return socket, nil
}

func (a *app) createCommand() *cobra.Command {
	f := runFlags{detach: true, create: true}
	c := &cobra.Command{
		Use:   "create [-config FILE|-] [flags] [-- COMMAND ARGS...]",
		Short: "Make a sandbox up to its start gate, for nucleus start",
		Long: `Make a sandbox: everything is enforced and verified, and the workload waits at the
start gate. Prints the id. A process of its own holds the sandbox until nucleus
start, or nucleus rm.`,
		Example: `  nucleus create -config job.hcl -name web
  nucleus start web`,
		Args: cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) > 0 && c.ArgsLenAtDash() != 0 {
				return unexpected("create", args[0])
			}
			return a.run(c.Context(), &f, args)
		},
	}
	f.add(c)
	f.addParent(c)
	f.addRun(c)
	return c
}

func (a *app) run(ctx context.Context, f *runFlags, argv []string) error {
	journal, err := a.journal(f)
	if err != nil {
		return err
	}
	if f.detach {
		if f.trace || f.json {
			return &usageError{err: errors.New("-trace and -json tell of a run in the foreground: leave them out, or -detach"), hint: "nucleus inspect NAME"}
		}
		if !a.supervises() {
			return a.leave(f)
		}
		if err := a.readyPipe(); err != nil {
			return err
		}
		if f.inStack != "" {
			if err := a.takeStackLock(f.stackLock); err != nil {
				return err
			}
		}
	}
	if f.console != "" && !f.detach {
		return &usageError{err: errors.New("-console-socket is for a detached sandbox: in the foreground the terminal is the caller's"), hint: "nucleus run -detach -console-socket PATH -config job.hcl"}
	}
	if f.console != "" && journal != "" {
		return &usageError{err: errors.New("-log and -console-socket: a terminal that is handed over has no log"), hint: "nucleus run -detach -console-socket PATH -config job.hcl"}
	}
	tr := newTrace(f.trace)
	if f.restore != "" { // this process may leave the directory that it starts from
		if f.restore, err = filepath.Abs(f.restore); err != nil {
			return err
		}
	}
	exact := f.name
	f.name = "" // the job's own name stays; -name names the sandbox
	o := core.Options{Lap: tr.lap, CgroupParent: f.parent, Manager: notify.FromEnv(os.Getenv, os.Getpid())}
	events, closeEvents, err := a.sinks(f.events)
	if err != nil {
		return err
	}
	defer closeEvents()
	o.Events = events
	use, err := a.usePlugins(&o)
	if err != nil {
		return err
	}
	defer use.forget()
	rt, err := a.runtime(o)
	if err != nil {
		return err
	}
	var sockets []listen.Socket
	var begun *core.Begun
	j, err := a.load(&f.jobFlags, argv)
	if err == nil {
		// Only the build that is going to run the job comes further than this.
		if err := a.pluginHostFor(j, use); err != nil {
			return err
		}
		if sockets, err = a.sockets(j, f.detach); err != nil {
			return err
		}
		if err := ownDescriptors(); err != nil {
			return err
		}
		use.expect(j)
		if f.inStack != "" {
			if f.stack, err = stackRecord(&f.jobFlags, j); err != nil {
				return err
			}
		}
		tr.lap("job decoded")
		// Init makes its namespaces while the rest of the host is looked at.
		begun = rt.Begin(j)
		defer begun.Dismiss()
	}
	if oerr := rt.Open(ctx); oerr != nil {
		return oerr
	}
	if err != nil {
		reason := err
		if errors.Is(err, errInvalid) {
			reason = fmt.Errorf("job file %q is not valid", f.config)
		}
		rt.Refused("", reason)
		return err
	}
	p, err := rt.Plan(j)
	if err != nil {
		return err
	}
	for _, text := range p.OwnFileWarnings() {
		a.problem("warning", text, plan.OwnFileHint)
	}
	for _, d := range p.Degraded {
		if !d.Accepted {
			a.problem("warning", fmt.Sprintf("protection %q is missing: %s", d.Name, d.Why), fmt.Sprintf("to accept it: allow_degraded = [%q]", d.Name))
		}
	}
	if f.console != "" && !p.Process.Terminal {
		return &hintedError{err: errors.New("-console-socket: the job has no terminal to hand over"), hint: "write tty = true in the job"}
	}
	res, err := a.supervise(ctx, rt, p, core.RunOptions{Begun: begun, Name: exact, Sockets: sockets, Journal: journal, Restore: f.restore}, f)
	tr.print(a.stderr)
	if f.json {
		if jerr := json.NewEncoder(a.stderr).Encode(printedResult{1, res}); jerr != nil && err == nil {
			err = jerr
		}
	}
	if err != nil {
		return err
	}
	switch res.Cause {
	case "oom":
		a.problem("warning", "the kernel killed the workload for lack of memory", "raise resources { memory = … }")
	case "timeout":
		a.problem("warning", "the job's timeout was reached", "")
	case "exit":
		a.outOfPids(p, res)
	}
	a.code = res.ExitCode
	if !f.json && !f.detach { // both have it in what they tell
		a.traced(p, res)
		writeRefusals(a.stderr, p, res.Network)
	}
	if res.NetworkError != "" {
		a.problem("warning", res.NetworkError, "")
	}
	if res.HooksError != "" {
		a.problem("warning", res.HooksError, "")
	}
	if res.EventsError != "" {
		a.problem("warning", "events were lost: "+res.EventsError, "")
	}
	if res.OutputError != "" {
		a.problem("error", "output of the workload was lost: "+res.OutputError, "")
		// Without us the workload's own write would have failed.
		if a.code == 0 {
			a.code = exec.CodeRuntime
		}
	}
	return nil
}

// traced tells what a trace of the system calls is made for.
func (a *app) traced(p *plan.Plan, res core.Result) {
	if p.Seccomp.Mode != "trace" {
		return
	}
	var refused, names, closed []string
	for _, c := range res.Syscalls {
		switch {
		case c.Refused > 0 && c.Closed:
			closed = append(closed, c.Name)
		case c.Refused > 0:
			refused = append(refused, fmt.Sprintf("%s (%s, %d of %d times)", tracedCall(c), c.Answer, c.Refused, c.Count))
			names = append(names, strconv.Quote(c.Name))
		}
	}
	text, hint := fmt.Sprintf("seccomp trace: %d different system calls", len(res.Syscalls)), ""
	if len(names) > 0 {
		text += "; the filter would refuse " + strings.Join(refused, ", ")
		hint = fmt.Sprintf(`if that is to work: mode = "enforce", and allow = [%s], which opens them whatever their arguments`, strings.Join(names, ", "))
	}
	if len(closed) > 0 {
		text += "; refused as without a trace: " + strings.Join(closed, ", ")
	}
	if len(names)+len(closed) == 0 {
		text += "; the filter admits all of them"
	}
	a.problem("note", text, hint)
	if p.Seccomp.Record != "" {
		a.problem("note", fmt.Sprintf("a profile of the calls that the filter admits is in %q", p.Seccomp.Record), "")
	}
}

// tracedCall is a call with the arguments by which it was refused.
func tracedCall(c exec.TracedCall) string {
	if len(c.Args) == 0 {
		return c.Name
	}
	args := make([]string, len(c.Args))
	for i, v := range c.Args {
		args[i] = fmt.Sprintf("%#x", v)
	}
	return c.Name + "(" + strings.Join(args, ", ") + ")"
}

// outOfPids tells of a workload that has failed where forks may have: programs say "Resource temporarily unavailable", if anything.
func (a *app) outOfPids(p *plan.Plan, res core.Result) {
	// The group of a runtime's program has threads of that program's own as well.
	if res.ExitCode == 0 || res.Peaks.Pids == nil || p.Pids() == 0 || p.Runtime != nil || *res.Peaks.Pids < uint64(p.Pids()) {
		return
	}
	a.problem("warning", fmt.Sprintf("the sandbox had all the processes and threads that it may have, %d", p.Pids()), "raise resources { pids = … }")
}

// supervise runs the plan and passes signals on.
func (a *app) supervise(ctx context.Context, rt *core.Runtime, p *plan.Plan, o core.RunOptions, f *runFlags) (core.Result, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	caught, release, err := signals.Catch(unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2)
	if err != nil {
		return core.Failed(err), fmt.Errorf("catching signals: %w", err)
	}
	defer release()
	// A reader of the output that goes away is the workload's to hear of. Go's
	// runtime would end this process, and leave the terminal raw and the sandbox to gc.
	signal.Ignore(unix.SIGPIPE)
	created := make(chan *core.Sandbox, 1)
	ended := make(chan struct{})
	defer close(ended)
	go forward(caught, created, ended, cancel)

	path := f.pidFile
	if path != "" { // this process may leave the directory that it starts from
		if path, err = filepath.Abs(path); err != nil {
			return core.Failed(err), err
		}
	}
	console := f.console
	if console != "" {
		if console, err = filepath.Abs(console); err != nil {
			return core.Failed(err), err
		}
	}
	pid := &pidFile{path: path}
	o.Streams = core.Streams{In: a.stdin, Out: a.stdout, Err: a.stderr, Console: console}
	o.ThreadsStay, o.Detached, o.Held, o.Keep, o.Pid, o.Stack = true, f.detach, f.create, f.keep, pid.set, f.stack
	o.Again = func(r core.Restarting) {
		a.problem("warning", fmt.Sprintf("%s; started again in %s (restart %d)", endOf(r), r.Wait, r.Count), "")
	}
	s, err := rt.Create(ctx, p, o)
	if err != nil {
		return core.Failed(err), err
	}
	a.warnOf(o.Sockets, p) // and not of those that are refused
	if f.create {
		if err := a.awaitStart(ctx, s); err != nil {
			return s.Failed(), errors.Join(err, s.Destroy(context.WithoutCancel(ctx)))
		}
	}
	// From here on a signal is the workload's, not the start's: the hand-over comes
	// before the workload can say that it is there.
	created <- s
	if err := s.Start(context.WithoutCancel(ctx)); err != nil {
		return s.Failed(), err
	}
	// A signal that came in between ended a start that was over already: it is the
	// workload's.
	stop := context.AfterFunc(ctx, func() { late(context.Cause(ctx), s) })
	defer stop()
	if f.detach && !f.create {
		a.awaitRunning(s, p.Readiness != nil, f.inStack != "")
	}
	return s.Wait()
}

// twice is how soon a second Ctrl-C must come to mean "at once".
const twice = 3 * time.Second

// forward passes signals to the sandbox. During the start they end it. SIGTERM
// is a stop with the job's grace; more of them change nothing, for timeout(1)
// and service managers send it twice. A second Ctrl-C kills. Whoever sends one that
// is meant to end the workload does not want it to be started again.
func forward(caught <-chan unix.Signal, created <-chan *core.Sandbox, ended <-chan struct{}, cancel context.CancelCauseFunc) {
	var s *core.Sandbox
	var interrupted time.Time
	for {
		select {
		case <-ended:
			return
		case s = <-created:
			created = nil
		case n := <-caught:
			if s == nil {
				// Just created, perhaps: then the signal is the workload's.
				select {
				case s = <-created:
				default:
				}
			}
			switch {
			case s == nil:
				cancel(&receivedError{n})
			case n == unix.SIGINT && time.Since(interrupted) < twice:
				s.Kill()
			default:
				if n == unix.SIGINT {
					interrupted = time.Now()
				}
				pass(s, n)
			}
		}
	}
}

// receivedError is a signal by which somebody has ended a start.
type receivedError struct{ n unix.Signal }

func (e *receivedError) Error() string { return "received " + unix.SignalName(e.n) }

// signalled is what signals are passed to.
type signalled interface {
	Stop()
	Last()
	Signal(n unix.Signal)
}

// pass passes a signal to a sandbox that was created.
func pass(s signalled, n unix.Signal) {
	if n == unix.SIGTERM {
		s.Stop()
		return
	}
	if n == unix.SIGINT || n == unix.SIGQUIT {
		s.Last()
	}
	s.Signal(n)
}

// late passes on what was to end a start that has come to its end.
func late(cause error, s signalled) {
	var r *receivedError
	if errors.As(cause, &r) {
		pass(s, r.n)
		return
	}
	s.Stop()
}

// endOf says how a workload has ended that is started again.
func endOf(r core.Restarting) string {
	switch x := r.Result; {
	case r.Err != nil:
		return r.Err.Error()
	case x.Cause == exec.CauseOOM:
		return "the kernel killed the workload for lack of memory"
	case x.Signal != 0:
		return fmt.Sprintf("the workload was ended by %s", unix.SignalName(unix.Signal(x.Signal)))
	default:
		return fmt.Sprintf("the workload has ended with exit code %d", x.ExitCode)
	}
}

// pidFile is a file that holds the pid of a workload while there is one.
type pidFile struct {
	path    string // "" for none
	written bool
}

// set takes the pid of a workload, or 0: the kernel may give the number to another
// process then.
func (p *pidFile) set(pid int) error {
	if p.path == "" {
		return nil
	}
	if pid == 0 {
		p.remove()
		return nil
	}
	err := writePidFile(p.path, pid)
	p.written = err == nil
	return err
}

func (p *pidFile) remove() {
	if p.written {
		_ = os.Remove(p.path) // somebody else has
		p.written = false
	}
}

func writePidFile(path string, pid int) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o644)
	if errors.Is(err, fs.ErrExist) && removeStalePidFile(path) {
		f, err = os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o644)
	}
	if err != nil {
		return fmt.Errorf("pid file: %w", err)
	}
	_, err = fmt.Fprintf(f, "%d\n", pid)
	if err = errors.Join(err, f.Close()); err != nil {
		// Without a pid in it, it would be taken for the user's.
		err = errors.Join(fmt.Errorf("pid file: %w", err), os.Remove(path))
	}
	return err
}

// removeStalePidFile removes what a killed supervisor left: a file that holds
// the pid of no process, and nothing else. Any other file is the user's.
func removeStalePidFile(path string) bool {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() || st.Size() > 16 {
		return false
	}
	b := make([]byte, st.Size())
	if _, err := io.ReadFull(f, b); err != nil {
		return false
	}
	pid, err := strconv.Atoi(strings.TrimSuffix(string(b), "\n"))
	return err == nil && pid > 0 && errors.Is(unix.Kill(pid, 0), unix.ESRCH) && os.Remove(path) == nil
}
