package cgroups

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	oc "github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/internal/plainfile"
)

// openRounds is how often gather looks for processes that were forked meanwhile before
// it lets no more be forked.
const openRounds = 3

// gather makes the freezer's group, has it frozen, and moves the sandbox into it: children are
// born where their parents are, so once nobody is outside nobody will be. Who forks
// and exits without end could always be a step ahead of us; from the fourth round on fork(2)
// fails in the sandbox with EAGAIN, as at its limit of tasks, until all are inside.
func (t *tree) gather(ctx context.Context, dir string, freeze func() error) error {
	if err := mkdir(dir); err != nil {
		return err
	}
	t.gathered.Store(true)
	if err := freeze(); err != nil {
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
		if err := t.move(outside, dir); err != nil {
			return errors.Join(err, release())
		}
		if err := pause.next(); err != nil {
			return errors.Join(fmt.Errorf("%d threads are not in the freezer's group: %w", len(outside), err), release())
		}
	}
}

// outside lists the threads that are not in the freezer's group. Not the processes: one whose
// first thread has ended is listed where that was, and cannot be moved from there.
func (t *tree) outside(dir string) ([]int, error) {
	inside, err := tasks(dir)
	if err != nil {
		return nil, err
	}
	slices.Sort(inside)
	var outside []int
	for _, d := range t.dirs() {
		all, err := tasks(d)
		if err != nil {
			return nil, err
		}
		for _, tid := range all {
			if _, in := slices.BinarySearch(inside, tid); !in {
				outside = append(outside, tid)
			}
		}
	}
	slices.Sort(outside)
	return slices.Compact(outside), nil
}

// tasks lists the threads in a v1 group and below.
func tasks(dir string) ([]int, error) {
	var all []int
	err := walk(dir, func(dir string) error {
		text, err := plainfile.Read(filepath.Join(dir, "tasks"))
		if gone(err) {
			return nil
		}
		for word := range strings.FieldsSeq(string(text)) {
			tid, nerr := strconv.Atoi(word)
			if nerr != nil {
				return fmt.Errorf("parsing %q: %w", filepath.Join(dir, "tasks"), nerr)
			}
			if tid > 0 { // 0: out of sight, in a foreign PID namespace
				all = append(all, tid)
			}
		}
		return err
	})
	return all, err
}

// move moves the processes of these threads, but for those that have ended.
func (t *tree) move(tids []int, dir string) error {
	procs, err := plainfile.Open(filepath.Join(dir, "cgroup.procs"), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer procs.Close()
	for _, tid := range tids {
		if unix.Access("/proc/self/task/"+strconv.Itoa(tid), unix.F_OK) == nil {
			return errSelf
		}
		proc := "/proc/" + strconv.Itoa(tid)
		// Its process may be inside by now, by another thread of it.
		if elsewhere, there := t.whereIs(proc); there || !elsewhere {
			continue
		}
		if _, err := procs.WriteString(strconv.Itoa(tid)); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
		// Meanwhile the number may have passed to a stranger. Frozen, that one is still there.
		if elsewhere, there := t.whereIs(proc); there && !elsewhere {
			if err := oc.WriteFile(filepath.Dir(dir), "cgroup.procs", strconv.Itoa(tid)); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("letting thread %d go, which is not the sandbox's: %w", tid, err)
			}
		}
	}
	return nil
}

// whereIs tells whether the process or thread with this directory in /proc is in a group of the
// sandbox, or below it: in the freezer's hierarchy of v1, and in another one. Names of sandboxes
// are unique on a host, so the name as a path element is enough. Who is ending is nowhere.
func (t *tree) whereIs(proc string) (elsewhere, inFreezer bool) {
	groups, err := groupsOf(proc + "/cgroup")
	if err != nil {
		return false, false
	}
	for name := range t.rec.Paths {
		switch in := slices.Contains(elements(groups[name]), t.rec.Name); {
		case name == Freezer:
			inFreezer = in
		case in:
			elsewhere = true
		}
	}
	return elsewhere, inFreezer
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
