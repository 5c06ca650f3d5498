package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/control"
	"github.com/nucleus-runtime/nucleus/core/exec"
	"github.com/nucleus-runtime/nucleus/core/lifecycle"
	"github.com/nucleus-runtime/nucleus/core/state"
	"github.com/nucleus-runtime/nucleus/core/supervisor"
)

// sandboxes opens the state root for the verbs that look after sandboxes. They need nothing
// else of the host.
func (a *app) sandboxes() (*state.Root, error) {
	path, err := a.stateRootPath()
	if err != nil {
		return nil, err
	}
	if path == "" {
		path = state.DefaultRoot()
	}
	return state.Open(path)
}

// stateRootPath is "" for the default.
func (a *app) stateRootPath() (string, error) {
	path := a.stateRoot
	if path == "" && os.Getenv(state.EnvRoot) == "" {
		host, err := a.hostConfiguration()
		if err != nil {
			return "", err
		}
		path = host.StateRoot
	}
	if path == "" {
		return "", nil
	}
	return filepath.Abs(path)
}

// find looks a sandbox up.
func (a *app) find(ref string) (*state.Root, state.Ref, error) {
	root, err := a.sandboxes()
	if err != nil {
		return nil, state.Ref{}, err
	}
	x, err := root.Find(ref)
	var nf *state.NotFoundError
	if errors.As(err, &nf) {
		err = &hintedError{err: err, hint: "nucleus ps -a"}
	}
	return root, x, err
}

// dial connects to the supervisor of a sandbox.
func (a *app) dial(ctx context.Context, ref string) (*control.Conn, state.Ref, error) {
	root, x, err := a.find(ref)
	if err != nil {
		return nil, x, err
	}
	c, err := dialTo(ctx, x, ref)
	// Early in its start, and late in its end, a supervisor lives and does not serve.
	for end := time.Now().Add(time.Second); errors.Is(err, errSilent) && held(root, x) && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond)
		c, err = dialTo(ctx, x, ref)
	}
	return c, x, spoilt(root, x, err)
}

// spoilt is an error at the files of a sandbox, which are gc's if nobody holds it.
func spoilt(root *state.Root, x state.Ref, err error) error {
	if err == nil || hintOf(err) != "" || over(x) || held(root, x) {
		return err
	}
	return &hintedError{err: err, hint: "nucleus gc"}
}

var (
	errEnded  = errors.New("has ended")
	errSilent = errors.New("its supervisor is gone, or does not serve yet")
)

// dialTo connects to the supervisor of a sandbox that the caller calls ref.
func dialTo(ctx context.Context, x state.Ref, ref string) (*control.Conn, error) {
	c, err := control.Dial(ctx, x.Path)
	if errors.Is(err, control.ErrNoSupervisor) {
		if x.Kept() {
			return nil, &hintedError{err: fmt.Errorf("sandbox %q %w", ref, errEnded), hint: "nucleus inspect " + ref}
		}
		if over(x) {
			return nil, &state.NotFoundError{Ref: ref}
		}
		return nil, &hintedError{err: fmt.Errorf("sandbox %q: %w", ref, errSilent), hint: "nucleus gc"}
	}
	return c, err
}

// over tells of a sandbox that was there that it has ended, in order: what a supervisor
// leaves that was killed is neither gone nor kept.
func over(x state.Ref) bool {
	if _, err := os.Lstat(x.Path); errors.Is(err, fs.ErrNotExist) {
		return true
	}
	return x.Kept()
}

func held(root *state.Root, x state.Ref) bool {
	held, _, err := root.Held([]state.Ref{x})
	return err == nil && held[x.ID]
}

// call makes one request of one sandbox.
func (a *app) call(ctx context.Context, ref, verb string, body, answer any) error {
	c, x, err := a.dial(ctx, ref)
	if err != nil {
		return err
	}
	defer c.Close()
	return controlError(x, c.Call(ctx, verb, body, answer))
}

// controlError is an error of a request, as users are told of it.
func controlError(x state.Ref, err error) error {
	if errors.Is(err, control.ErrGone) {
		return goneError(x)
	}
	var ce *control.Error
	if errors.As(err, &ce) && ce.Hint != "" {
		return &hintedError{err: err, hint: ce.Hint}
	}
	return err
}

// each does something with every sandbox that is named, whatever becomes of the others.
func (a *app) each(refs []string, do func(ref string) error) error {
	failed := false
	for _, ref := range refs {
		if err := do(ref); err != nil {
			failed = true
			a.problem("error", err.Error(), hintOf(err))
		}
	}
	if failed {
		return errInvalid
	}
	return nil
}

// simple is a verb that asks every sandbox that is named for one thing.
func (a *app) simple(use, short, verb string) *cobra.Command {
	return &cobra.Command{
		Use: use + " NAME...", Short: short, Example: "  nucleus " + use + " web", Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.each(args, func(ref string) error { return a.call(c.Context(), ref, verb, nil, nil) })
		},
	}
}

func (a *app) startCommand() *cobra.Command {
	return a.simple("start", "Let the workload of a sandbox run that nucleus create has made", supervisor.VerbStart)
}

func (a *app) pauseCommand() *cobra.Command {
	return a.simple("pause", "Stop every process of a sandbox where it is", supervisor.VerbPause)
}

func (a *app) resumeCommand() *cobra.Command {
	return a.simple("resume", "Let a paused sandbox go on", supervisor.VerbResume)
}

func (a *app) restartCommand() *cobra.Command {
	c := a.simple("restart", "End the workload of a sandbox as its job says, and start it again", supervisor.VerbRestart)
	c.Long = `End the workload of a sandbox as nucleus stop does and start it again, in a sandbox made
anew from the same plan, with the same id and name. Returns when it is ready.`
	return c
}

// stopCommand waits for the end, as users of docker stop expect.
func (a *app) stopCommand() *cobra.Command {
	return &cobra.Command{
		Use: "stop NAME...", Short: "End a sandbox: the job's stop signal, and SIGKILL after its grace",
		Long: `End a sandbox as its job says: its stop signal (default SIGTERM), and after its grace
(default 10s) SIGKILL for every process. Returns when nothing of it is left.`,
		Example: "  nucleus stop web", Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.each(args, func(ref string) error { return a.end(c.Context(), ref, supervisor.VerbStop) })
		},
	}
}

// end asks for the end of a sandbox and waits for it.
func (a *app) end(ctx context.Context, ref, verb string) error {
	waiter, x, err := a.dial(ctx, ref)
	if err != nil {
		return err
	}
	defer waiter.Close()
	err = waiter.Send(supervisor.VerbWait, nil)
	if err == nil {
		err = a.call(ctx, x.ID, verb, nil, nil)
	}
	if err == nil {
		var files []*os.File
		_, files, err = waiter.Recv()
		control.CloseAll(files)
	}
	// It may have ended meanwhile, or somebody else has ended it.
	var refused *control.Error
	switch {
	case err == nil, over(x):
		return nil
	case errors.As(err, &refused):
		return err
	}
	return goneError(x)
}

// goneError is the end of a connection before its answer.
func goneError(x state.Ref) error {
	name := cmp.Or(x.Name, x.ID)
	if over(x) {
		return &hintedError{err: fmt.Errorf("sandbox %q %w", name, errEnded), hint: "nucleus ps -a"}
	}
	return &hintedError{err: fmt.Errorf("sandbox %q: its supervisor is gone", name), hint: "nucleus gc"}
}

func (a *app) killCommand() *cobra.Command {
	var name string
	c := &cobra.Command{
		Use: "kill [-signal SIGNAL] NAME...", Short: "Send a signal to the workload; without one, end the whole sandbox at once",
		Example: "  nucleus kill web\n  nucleus kill -signal HUP web", Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if name == "" {
				return a.each(args, func(ref string) error { return a.end(c.Context(), ref, supervisor.VerbKill) })
			}
			n, err := signalNumber(name)
			if err != nil {
				return err
			}
			return a.each(args, func(ref string) error {
				return a.call(c.Context(), ref, supervisor.VerbSignal, supervisor.SignalRequest{Signal: n}, nil)
			})
		},
	}
	c.Flags().StringVar(&name, "signal", "", "name or number of a signal for the workload alone")
	return c
}

func signalNumber(s string) (int, error) {
	name := strings.ToUpper(s)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	if n := unix.SignalNum(name); n != 0 {
		return int(n), nil
	}
	if n, err := strconv.Atoi(s); err == nil && n >= 1 && n <= 64 && strconv.Itoa(n) == s {
		return n, nil
	}
	return 0, &usageError{err: fmt.Errorf("%q is no signal", s), hint: "nucleus kill -signal HUP NAME"}
}

func (a *app) waitCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use: "wait [-json] NAME", Short: "Wait for the end of a sandbox; the exit code is its workload's",
		Example: "  nucleus wait web", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			e, err := a.await(c.Context(), args[0])
			if err != nil {
				return err
			}
			a.code = e.Result.ExitCode
			if asJSON {
				return a.printJSON(e)
			}
			if e.Error != "" {
				return &endedError{code: e.Result.ExitCode, text: e.Error}
			}
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print how it ended as JSON")
	return c
}

// endedError is what a supervisor says of the end of its sandbox.
type endedError struct {
	code int
	text string
}

func (e *endedError) Error() string { return e.text }

// await gives the end of a sandbox, of one that is kept from its record.
func (a *app) await(ctx context.Context, ref string) (*supervisor.Ended, error) {
	var e supervisor.Ended
	c, x, err := a.dial(ctx, ref)
	if err == nil {
		defer c.Close()
		if err = controlError(x, c.Call(ctx, supervisor.VerbWait, nil, &e)); err == nil {
			return &e, nil
		}
	}
	if x.Path == "" || !x.Kept() {
		return nil, err
	}
	var r supervisor.Record
	if err := x.ReadJSON(supervisor.RecordName, &r); err != nil {
		return nil, err
	}
	if r.Result == nil {
		return nil, fmt.Errorf("sandbox %q: its record has no result", ref)
	}
	return &supervisor.Ended{Result: *r.Result, Error: r.Error}, nil
}

func (a *app) rmCommand() *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use: "rm [-force] NAME...", Short: "Remove a sandbox that was created, or kept after its end",
		Long: `Remove a sandbox that was created and not started, or that has ended and was kept.
With -force one that runs, too: it is killed first.`,
		Example: "  nucleus rm web\n  nucleus rm -force web", Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.each(args, func(ref string) error { return a.remove(c.Context(), ref, force) })
		},
	}
	c.Flags().BoolVar(&force, "force", false, "kill a sandbox that runs")
	return c
}

func (a *app) remove(ctx context.Context, ref string, force bool) error {
	root, x, err := a.find(ref)
	if err != nil {
		return err
	}
	if !x.Kept() {
		var r supervisor.Record
		err := a.call(ctx, x.ID, supervisor.VerbState, nil, &r)
		if err == nil && r.Status != lifecycle.StatusCreated && !force {
			return &hintedError{err: fmt.Errorf("sandbox %q is %s", ref, r.Status), hint: "nucleus rm -force " + ref}
		}
		if err == nil {
			err = a.end(ctx, x.ID, supervisor.VerbKill)
		}
		if err != nil && !over(x) { // else it has ended meanwhile
			return err
		}
		if !x.Kept() {
			return nil
		}
	}
	d, err := root.Take(x)
	if err != nil {
		return err
	}
	return d.Remove()
}

func (a *app) psCommand() *cobra.Command {
	var asJSON, all bool
	var f stackFlags
	c := &cobra.Command{
		Use: "ps [-a] [-json] [-config FILE] [-stack NAME]", Short: "List the sandboxes of this user, or the jobs of a stack",
		Long: `List the sandboxes of this user: those that are alive; with -a also those that have
ended and are kept, and those whose supervisor was killed (dead), which nucleus gc
removes. With -config or -stack the jobs of a stack, also those that were not started or
have ended; what they are called is all that is read of the file, and -var and -var-file
are taken so that the arguments of nucleus up fit.`,
		Example: "  nucleus ps\n  nucleus ps -a -json\n  nucleus ps -config stack.hcl", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if f.config != "" || f.name != "" {
				return a.psStack(c.Context(), &f, asJSON)
			}
			return a.ps(c.Context(), all, asJSON)
		},
	}
	f.add(c)
	c.Flags().BoolVarP(&all, "all", "a", false, "also what has ended")
	c.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	return c
}

func (a *app) ps(ctx context.Context, all, asJSON bool) error {
	root, err := a.sandboxes()
	if err != nil {
		return err
	}
	refs, err := root.Refs()
	if err != nil {
		return err
	}
	held, unknown, err := root.Held(refs)
	if err != nil {
		return err
	}
	list := []supervisor.Record{}
	failed := false
	for _, x := range refs {
		r, err := onRecord(ctx, x, held[x.ID])
		var gone *state.NotFoundError
		if errors.As(err, &gone) {
			continue // since we looked
		}
		if err != nil {
			err = fmt.Errorf("sandbox %s: %w", x.ID[:12], err)
		}
		if unknown[x.ID] != nil {
			err = unknown[x.ID]
		}
		if err != nil {
			failed = true
			a.problem("error", err.Error(), hintOf(err))
			continue
		}
		if all || held[x.ID] {
			list = append(list, r)
		}
	}
	slices.SortFunc(list, func(a, b supervisor.Record) int { return b.Created.Compare(a.Created) })
	if asJSON {
		err = a.printJSON(struct {
			Version   int                 `json:"version"`
			Sandboxes []supervisor.Record `json:"sandboxes"`
		}{supervisor.RecordVersion, list})
	} else {
		err = a.printList(list)
	}
	if err == nil && failed {
		return errInvalid
	}
	return err
}

func (a *app) printList(list []supervisor.Record) error {
	t := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NAME\tID\tSTATUS\tPID\tAGE\tJOB")
	for _, r := range list {
		pid, age := "-", "-"
		if r.Pid != 0 {
			pid = fmt.Sprint(r.Pid)
		}
		if !r.Created.IsZero() {
			age = time.Since(r.Created).Round(time.Second).String()
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", printable(r.Name), r.ID[:12], status(r), pid, age, jobOf(r))
	}
	return t.Flush()
}

func status(r supervisor.Record) string {
	if x := r.Result; x != nil {
		return fmt.Sprintf("%s (%s)", r.Status, ending(*x))
	}
	return string(r.Status)
}

// ending says in short how a workload has ended.
func ending(x exec.Result) string {
	switch {
	case x.Cause == exec.CauseExit:
		return fmt.Sprintf("exit %d", x.ExitCode)
	case x.Cause == exec.CauseSignal && x.Signal != 0:
		return unix.SignalName(unix.Signal(x.Signal))
	case x.Cause == exec.CauseStopped:
		return fmt.Sprintf("on request, exit %d", x.ExitCode)
	}
	return fmt.Sprintf("%s, exit %d", x.Cause, x.ExitCode)
}

// jobOf shows where a sandbox comes from.
func jobOf(r supervisor.Record) string {
	if r.File == "" {
		return printable(r.Job)
	}
	return printable(r.Job + " (" + r.File + ")")
}

func (a *app) inspectCommand() *cobra.Command {
	var oci, asPlan bool
	c := &cobra.Command{
		Use: "inspect [-oci|-plan] NAME", Short: "Print what is known of a sandbox, as JSON; with -keep also after its end",
		Example: "  nucleus inspect web\n  nucleus inspect -oci web\n  nucleus inspect -plan web", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			root, x, err := a.find(args[0])
			if err != nil {
				return err
			}
			if asPlan {
				var p json.RawMessage
				if err := x.ReadJSON(supervisor.PlanName, &p); err != nil {
					return spoilt(root, x, planError(x, err))
				}
				return a.printJSON(p)
			}
			r, err := a.record(c.Context(), root, x)
			if err != nil {
				return err
			}
			if oci {
				return a.printJSON(ociState(x, r))
			}
			return a.printJSON(r)
		},
	}
	c.Flags().BoolVar(&oci, "oci", false, "print the state of the OCI runtime specification (runtime.md, State)")
	c.Flags().BoolVar(&asPlan, "plan", false, "print what holds for it, as plan -json does, without commands and values of variables")
	c.MarkFlagsMutuallyExclusive("oci", "plan")
	return c
}

// planError says why there is no plan to print.
func planError(x state.Ref, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return &hintedError{err: fmt.Errorf("sandbox %q: its plan was not written down", x.Name), hint: "it is on its way, or gone, or the disk was full: nucleus ps -a"}
	}
	return err
}

// exitCodeOf is what a verb ends with that tells the end of something else.
func exitCodeOf(err error) (int, bool) {
	var ee *endedError
	if errors.As(err, &ee) {
		return ee.code, true
	}
	return exec.CodeRuntime, false
}
