package cgroups

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	oc "github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"
)

// patience bounds an operation whose context has no deadline: nothing in this
// package waits for ever.
const patience = 10 * time.Second

func bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, patience)
}

// Freeze stops every process of the sandbox where it is and returns when all
// have stopped. If they have not when ctx ends, it thaws them and fails. (The
// library has the same, but with waits of its own that no context ends.)
func (t *tree) Freeze(ctx context.Context) error {
	ctx, cancel := bounded(ctx)
	defer cancel()
	err := t.freeze(ctx)
	if err != nil {
		return fmt.Errorf("freezing cgroup %q: %w", t.rec.Name, errors.Join(err, t.thaw()))
	}
	return nil
}

// Thaw lets a frozen sandbox go on.
func (t *tree) Thaw(context.Context) error {
	if err := t.thaw(); err != nil {
		return fmt.Errorf("thawing cgroup %q: %w", t.rec.Name, err)
	}
	return nil
}

func (t *tree) freezer() (string, error) {
	name := Freezer
	if t.rec.Layout == V2 {
		name = unified
	}
	if dir := t.rec.Paths[name]; dir != "" {
		return dir, nil
	}
	return "", &UnsupportedError{Controller: Freezer, Why: "the group is in no freezer hierarchy"}
}

func (t *tree) freeze(ctx context.Context) error {
	dir, err := t.freezer()
	if err != nil {
		return err
	}
	if t.rec.Layout == V2 {
		if err := oc.WriteFile(dir, "cgroup.freeze", "1"); err != nil {
			return err
		}
		return waitEvent(ctx, dir, "frozen 1")
	}
	write := func() error { return oc.WriteFile(dir, "freezer.state", string(oc.Frozen)) }
	if t.rec.Later {
		err = t.gather(ctx, dir, write)
	} else {
		err = write()
	}
	if err != nil {
		return err
	}
	for pause := newPause(ctx); ; {
		state, err := oc.ReadFile(dir, "freezer.state")
		if err != nil {
			return err
		}
		if strings.TrimSpace(state) == string(oc.Frozen) {
			return nil
		}
		if err := pause.next(); err != nil {
			return err
		}
		// Again each time: v1 misses tasks that are forked meanwhile.
		if err := write(); err != nil {
			return err
		}
	}
}

// thaw also thaws groups that the workload made and froze below ours.
func (t *tree) thaw() error {
	dir, err := t.freezer()
	if err != nil {
		return err
	}
	file, value := "freezer.state", string(oc.Thawed)
	if t.rec.Layout == V2 {
		file, value = "cgroup.freeze", "0"
	}
	return walk(dir, func(dir string) error {
		err := oc.WriteFile(dir, file, value)
		if gone(err) {
			return nil
		}
		return err
	})
}

// waitEvent waits for a line of a v2 group's cgroup.events.
func waitEvent(ctx context.Context, dir, want string) error {
	file, err := oc.OpenFile(dir, "cgroup.events", unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer file.Close()
	buf := make([]byte, 256)
	for {
		// Read before poll: reading is what arms the notification.
		n, err := file.ReadAt(buf, 0)
		if n == 0 && err != nil {
			return err
		}
		for line := range strings.Lines(string(buf[:n])) {
			if strings.TrimSpace(line) == want {
				return nil
			}
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("waiting for %q in %s: %w", want, filepath.Join(dir, "cgroup.events"), err)
		}
		// In slices, since poll knows nothing of ctx.
		fds := []unix.PollFd{{Fd: int32(file.Fd()), Events: unix.POLLPRI}}
		if _, err := unix.Poll(fds, 20); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("polling cgroup.events: %w", err)
		}
	}
}

// pause spaces retries: short at first, since what is waited for (an exiting
// task) mostly takes well under a millisecond, and never long.
type pause struct {
	ctx  context.Context
	wait time.Duration
}

func newPause(ctx context.Context) *pause { return &pause{ctx: ctx, wait: 50 * time.Microsecond} }

func (p *pause) next() error {
	timer := time.NewTimer(p.wait)
	defer timer.Stop()
	p.wait = min(2*p.wait, 5*time.Millisecond)
	select {
	case <-p.ctx.Done():
		return p.ctx.Err()
	case <-timer.C:
		return nil
	}
}

// Thaw lets the processes of a group go on, from any process that may write to it. A
// group that is gone has none.
func Thaw(ctx context.Context, r Record) error {
	t := &tree{rec: r}
	if err := t.Thaw(ctx); err != nil && !gone(err) {
		return err
	}
	return nil
}
