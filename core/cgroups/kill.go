package cgroups

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	oc "github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"
)

// freezeSlice is how long one round of killing waits for the group to freeze. A
// group that will not freeze (a task in an uninterruptible wait) is killed as
// it runs.
const freezeSlice = 50 * time.Millisecond

// settleSlice is how long one round then waits for the signals to act.
const settleSlice = 200 * time.Millisecond

// Kill ends every process of the sandbox with SIGKILL and returns when none is
// left, or when ctx ends (after 10 s if it has no deadline). It copes with
// frozen groups and with processes that fork all the while. Zombies are not
// left: a dead process leaves its group before it is reaped.
func (t *tree) Kill(ctx context.Context) error {
	ctx, cancel := bounded(ctx)
	defer cancel()
	var err error
	if t.rec.Layout == V2 {
		err = t.killV2(ctx)
	} else {
		err = t.killAll(ctx)
	}
	if err != nil && !gone(err) {
		return fmt.Errorf("killing cgroup %q: %w", t.rec.Name, err)
	}
	return nil
}

func (t *tree) killV2(ctx context.Context) error {
	dir := t.rec.Paths[unified]
	err := oc.WriteFile(dir, "cgroup.kill", "1")
	if err == nil {
		return waitEvent(ctx, dir, "populated 0")
	}
	// Before Linux 5.14 there is no such file; an absent group has none either.
	if _, statErr := os.Stat(dir); errors.Is(statErr, os.ErrNotExist) {
		return nil
	}
	return t.killAll(ctx)
}

// errSelf: a thread of ours could not leave the group (see Spawn). Freezing the
// group would freeze us, and killing it would kill us.
var errSelf = errors.New("a thread of this process is in the group")

// killAll kills in rounds: stop the group so that it cannot fork, signal all
// that is in it, let it go on so that the signals act (v1 keeps a frozen task
// alive even against SIGKILL), and give it time to die: the next freeze would
// catch dying tasks again. Where the group has a limit of tasks of its own, none
// at all are allowed from now on, which takes no freezing.
func (t *tree) killAll(ctx context.Context) error {
	barren := t.rec.Layout != V2 && t.rec.Paths[Pids] != ""
	for {
		pids, err := t.Procs()
		if err != nil || len(pids) == 0 {
			return err
		}
		if slices.Contains(pids, os.Getpid()) {
			return errSelf
		}
		if barren {
			if _, err := t.holdForks(); err != nil {
				return err
			}
		}
		if barren || t.freezeBriefly(ctx) {
			if pids, err = t.Procs(); err != nil {
				return errors.Join(err, t.thaw())
			}
		}
		for _, pid := range pids {
			t.killOne(pid)
		}
		if err := t.thaw(); err != nil && !gone(err) && !unsupported(err) {
			return err
		}
		settle, cancel := context.WithTimeout(ctx, settleSlice)
		err = t.waitEmpty(settle)
		cancel()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return err
		}
	}
}

// waitEmpty polls, since v1 has no event for it.
func (t *tree) waitEmpty(ctx context.Context) error {
	for pause := newPause(ctx); ; {
		pids, err := t.Procs()
		if err != nil || len(pids) == 0 {
			return err
		}
		if err := pause.next(); err != nil {
			return fmt.Errorf("%d processes are left: %w", len(pids), err)
		}
	}
}

func unsupported(err error) bool {
	var e *UnsupportedError
	return errors.As(err, &e)
}

func (t *tree) freezeBriefly(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, freezeSlice)
	defer cancel()
	return t.freeze(ctx) == nil
}

// killOne signals through a pidfd, after a second look at the group: between the listing and
// now the pid may have passed to a stranger.
func (t *tree) killOne(pid int) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return // it has ended, or the next round meets it again
	}
	defer unix.Close(fd)
	proc := "/proc/" + strconv.Itoa(pid)
	if !t.holds(proc) {
		// A first thread that has ended is in no group, while others may live.
		threads, _ := filepath.Glob(proc + "/task/*") // the pattern is a good one
		if !slices.ContainsFunc(threads, t.holds) {
			return
		}
	}
	_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
}

// holds reports whether the process or thread with this directory in /proc is the sandbox's.
func (t *tree) holds(proc string) bool {
	elsewhere, inFreezer := t.whereIs(proc)
	return elsewhere || inFreezer
}
