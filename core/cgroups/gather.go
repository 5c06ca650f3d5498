package cgroups

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	oc "github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/internal/plainfile"
)

// openRounds is how often gather looks for processes that were forked meanwhile before
// it lets no more be forked.
const openRounds = 3

// gather makes the freezer's group, frozen, and moves the sandbox into it: children are
// born where their parents are, so once nobody is outside nobody will be. Who forks
// and exits without end could always be a step ahead of us; from the fourth round on fork(2)
// fails in the sandbox with EAGAIN, as at its limit of tasks, until all are inside.
func (t *tree) gather(ctx context.Context, dir string) error {
	if err := mkdir(dir); err != nil {
		return err
	}
	if err := oc.WriteFile(dir, "freezer.state", string(oc.Frozen)); err != nil {
		return err
	}
	release := func() error { return nil }
	pause := newPause(ctx)
	for round := 0; ; round++ {
		outside, err := t.outside(dir)
		if err != nil || len(outside) == 0 {
			return errors.Join(err, release())
		}
		if round == openRounds {
			if release, err = t.holdForks(); err != nil {
				return err
			}
		}
		for _, pid := range outside {
			if err := t.move(pid, dir); err != nil {
				return errors.Join(err, release())
			}
		}
		if err := pause.next(); err != nil {
			return errors.Join(fmt.Errorf("%d processes are not in the freezer's group: %w", len(outside), err), release())
		}
	}
}

// outside lists the processes that are not in the freezer's group.
func (t *tree) outside(dir string) ([]int, error) {
	inside, err := procs(dir)
	if err != nil {
		return nil, err
	}
	slices.Sort(inside)
	all, err := t.Procs()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(pid int) bool {
		_, in := slices.BinarySearch(inside, pid)
		return in
	}), nil
}

// move moves a process, with its threads, unless it has ended.
func (t *tree) move(pid int, dir string) error {
	if pid == os.Getpid() {
		return errSelf
	}
	pidfd, ok := t.hold(pid)
	if !ok {
		return nil
	}
	defer unix.Close(pidfd)
	file, err := plainfile.Open(filepath.Join(dir, "cgroup.procs"), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	if _, err = file.WriteString(strconv.Itoa(pid)); errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// holdForks lets nobody in the sandbox fork, until release.
func (t *tree) holdForks() (release func() error, err error) {
	dir := t.rec.Paths[Pids]
	before, err := oc.ReadFile(dir, "pids.max")
	if err != nil {
		return nil, err
	}
	if err := oc.WriteFile(dir, "pids.max", "0"); err != nil {
		return nil, err
	}
	return func() error {
		if err := oc.WriteFile(dir, "pids.max", before); !gone(err) {
			return err
		}
		return nil
	}, nil
}
