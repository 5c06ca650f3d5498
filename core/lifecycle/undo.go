package lifecycle

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/audit"
	"github.com/nucleus-runtime/nucleus/core/boundary"
	"github.com/nucleus-runtime/nucleus/core/cgroups"
	"github.com/nucleus-runtime/nucleus/core/exec"
	"github.com/nucleus-runtime/nucleus/core/network"
	"github.com/nucleus-runtime/nucleus/core/runtimes"
	"github.com/nucleus-runtime/nucleus/core/secret"
	"github.com/nucleus-runtime/nucleus/core/state"
	"github.com/nucleus-runtime/nucleus/internal/procid"
)

// Steps of the journal.
const (
	stepCgroup = "cgroup"
	stepInit   = "init"
	// stepFrozen is a pause: a process below a v1 freezer cannot end.
	stepFrozen = "frozen"
	stepHooks  = "hooks"
	// stepPlugins are the hooks plugins that hear of the clean-up.
	stepPlugins = "plugin_hooks"
	// stepNetwork is the backend of the network.
	stepNetwork = "network"
	// stepLoans are the leases of secrets.
	stepLoans = "secret_leases"
	// stepImage is an image that is being made.
	stepImage = "image"
)

// undoBudget bounds the undoing of one effect; what is not undone then is owed to gc.
const undoBudget = 30 * time.Second

// undoing is what an undo may use.
type undoing struct {
	log           *audit.Log
	sandbox, name string
	// nil: plugins cannot be called
	hooks    boundary.Source
	secrets  secret.Source
	networks network.Source
	groups   func(state.Ref) map[string]string
	// live are the plugins that the sandbox has started, if this is its own
	// supervisor, and end is how it ended, if it ever ran.
	live  *boundaries
	group *cgroups.Group // as live
	loans loans
	net   *connection
	end   *exec.Result
}

// undo is one effect's inverse. It works from the intent's data alone, in any
// process, and is a no-op for an effect that never happened.
var undo = map[string]func(*undoing, context.Context, json.RawMessage) error{
	stepCgroup: func(u *undoing, ctx context.Context, data json.RawMessage) error {
		if u.group != nil {
			return u.group.Remove(ctx)
		}
		var r cgroups.Record
		if err := json.Unmarshal(data, &r); err != nil {
			return err
		}
		return cgroups.Remove(ctx, r)
	},
	stepInit: func(_ *undoing, ctx context.Context, data json.RawMessage) error {
		var id process
		if err := json.Unmarshal(data, &id); err != nil {
			return err
		}
		return id.end(ctx)
	},
	stepFrozen:  (*undoing).unfreeze,
	stepHooks:   (*undoing).runStopHooks,
	stepPlugins: (*undoing).recall,
	stepLoans:   (*undoing).endLoans,
	stepNetwork: (*undoing).disconnect,
	stepImage:   (*undoing).discardImage,
}

// unwind undoes all that a sandbox's journal names, last effect first, and goes
// on after a failure. Teardown and gc are both this function. What poststop hooks
// could not do comes apart: it is no reason to try again.
func unwind(ctx context.Context, d *state.Dir, u *undoing) (warning, err error) {
	records, err := d.Pending()
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, r := range undoOrder(records) {
		f, ok := undo[r.Step]
		if !ok {
			errs = append(errs, fmt.Errorf("undoing %q: written by another version of Nucleus", r.Step))
			continue
		}
		// A budget for each: one that hangs leaves the others theirs.
		within, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoBudget)
		err := f(u, within, r.Data)
		cancel()
		var se *stopHookError
		if errors.As(err, &se) {
			warning, err = se, nil
		}
		if err != nil {
			unread := unreadable(r.Data, err)
			err = fmt.Errorf("undoing %s: %w", r.Step, err)
			if unread {
				err = &state.JournalError{Dir: d.Path, Err: err}
			}
			if !errors.Is(err, ErrNoPlugins) { // somebody else will do it
				u.log.Emit(audit.UndoFailed, err, map[string]any{"step": r.Step})
			}
			errs = append(errs, err)
			continue
		}
		// Not written down, on a full disk, it is undone once more: a no-op.
		_ = d.Journal.Undone(r.Step)
		u.log.Emit(audit.Undone, nil, map[string]any{"step": r.Step})
	}
	return warning, errors.Join(errs...)
}

// unreadable tells of an undo's error that it is about the record's own data, and not about
// what somebody has answered.
func unreadable(data json.RawMessage, err error) bool {
	var kind *json.UnmarshalTypeError
	return len(data) == 0 || errors.As(err, &kind) && err.Error() == kind.Error()
}

// undoRank puts what others have to be told behind what is done here, rank 0.
var undoRank = map[string]int{stepImage: 1, stepNetwork: 1, stepLoans: 1, stepPlugins: 2, stepHooks: 3}

// undoOrder is the last effect first; but what plugins have to be told comes after
// everything that is done here, and the poststop hooks at the very end. Nobody writes to
// an image any more once init is gone.
func undoOrder(records []state.Record) []state.Record {
	out := slices.Clone(records)
	slices.Reverse(out)
	slices.SortStableFunc(out, func(a, b state.Record) int { return cmp.Compare(undoRank[a.Step], undoRank[b.Step]) })
	return out
}

// process identifies a process beyond the reuse of its pid: a pid together
// with the time of its start belongs to one process of one boot.
type process struct {
	Pid   int    `json:"pid"`
	Start string `json:"start"`
	Boot  string `json:"boot"`
}

func identify(pid int) (process, error) {
	start, err := procid.Start(pid)
	if err != nil {
		return process{}, err
	}
	boot, err := procid.Boot()
	if err != nil {
		return process{}, err
	}
	return process{Pid: pid, Start: start, Boot: boot}, nil
}

// end kills the process if it is still the same, and waits until it is gone.
func (p process) end(ctx context.Context) error {
	fd, err := unix.PidfdOpen(p.Pid, 0)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return nil
	}
	if err != nil {
		return os.NewSyscallError("pidfd_open", err)
	}
	defer unix.Close(fd)
	// The descriptor holds whatever has the pid now; only then is it identified.
	now, err := identify(p.Pid)
	if err != nil || now != p {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return os.NewSyscallError("pidfd_send_signal", err)
	}
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 100)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("poll", err)
		}
		if n > 0 {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

// Sources are what plugins are reached by.
type Sources struct {
	Secrets  secret.Source
	Hooks    boundary.Source
	Networks network.Source
	Runtimes runtimes.Source
	// Groups gives the control group of a sandbox as it is on record beside the journal.
	Groups func(state.Ref) map[string]string
	// Passing leaves out the sandboxes of which an earlier Collect has found that they wait for
	// plugins alone: for who has none, and only passes by.
	Passing bool
}

// Collected is what was removed.
type Collected struct {
	Sandboxes []string // their ids
	Networks  []network.Collected
}

// Collect cleans up after every sandbox whose supervisor is gone, and tells what it has
// removed. It may run beside live sandboxes at any time. What it cannot clean
// up it leaves and tells of in the error, and goes on with the others.
// Without sources what a plugin has to be called for is left as well, with an error
// that is ErrNoPlugins. With one of networks their backends remove what no sandbox has
// written down.
func Collect(ctx context.Context, root *state.Root, from Sources, sinks ...io.Writer) (done Collected, err error) {
	dead, err := root.Dead(!from.Passing)
	errs := []error{err}
	for _, d := range dead {
		log := audit.NewLog(d.ID, d.Name, sinks...)
		u := &undoing{log: log, sandbox: d.ID, name: d.Name, hooks: from.Hooks, secrets: from.Secrets, networks: from.Networks, groups: from.Groups}
		if waits, err := collect(ctx, d, u); err != nil {
			let := d.Release
			if waits {
				let = d.Owe
			}
			errs = append(errs, fmt.Errorf("sandbox %s: %w", d.ID[:12], err), let())
			continue
		}
		if err := d.Remove(); err != nil {
			errs = append(errs, fmt.Errorf("sandbox %s: %w", d.ID[:12], err))
			continue
		}
		log.Emit(audit.Collected, nil, nil)
		done.Sandboxes = append(done.Sandboxes, d.ID)
	}
	if from.Networks != nil {
		done.Networks, err = collectNetworks(ctx, root, from.Networks, audit.NewLog("", "", sinks...))
		errs = append(errs, err)
	}
	errs = append(errs, root.Sweep())
	return done, errors.Join(errs...)
}

// collect gives up before it begins when the caller's time is over: an undo that
// has begun has a budget of its own. It tells whether what is left waits for plugins alone.
func collect(ctx context.Context, d *state.Dir, u *undoing) (waits bool, err error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	records, err := d.Pending()
	known := err == nil && slices.ContainsFunc(records, func(r state.Record) bool { return r.Step == stepCgroup })
	_, err = unwind(ctx, d, u) // a warning has its event
	if !known {
		if gerr := u.removeGroup(ctx, d); gerr != nil {
			return false, errors.Join(err, gerr)
		}
	}
	return err != nil && owed(d), err
}

// owed tells whether there is nothing left to undo but what plugins have to be called for.
func owed(d *state.Dir) bool {
	records, err := d.Pending()
	return err == nil && len(records) > 0 && !slices.ContainsFunc(records, func(r state.Record) bool {
		return r.Step != stepPlugins && r.Step != stepNetwork && r.Step != stepLoans
	})
}

// removeGroup is for a journal that was lost, or cut off: without it nobody would know of the
// group once the directory is gone. It is named by the sandbox's id, whatever the record says.
func (u *undoing) removeGroup(ctx context.Context, d *state.Dir) error {
	if u.groups == nil {
		return nil
	}
	r := cgroups.Known(cgroups.Prefix+d.ID, u.groups(d.Ref()))
	if len(r.Paths) == 0 {
		return nil
	}
	within, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoBudget)
	defer cancel()
	if err := cgroups.Remove(within, r); err != nil {
		err = fmt.Errorf("undoing %s: %w", stepCgroup, err)
		u.log.Emit(audit.UndoFailed, err, map[string]any{"step": stepCgroup})
		return err
	}
	u.log.Emit(audit.Undone, nil, map[string]any{"step": stepCgroup})
	return nil
}
