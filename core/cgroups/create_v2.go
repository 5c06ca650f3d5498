package cgroups

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	oc "github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"
)

const subtreeControl = "cgroup.subtree_control"

// createV2 makes the group and sees to it that its controllers reach it, from
// the top of the delegated subtree down and nowhere else. (The library's own
// Apply would switch on every controller in every group from the root.)
func (g *Group) createV2() error {
	dir := g.rec.Paths[unified]
	if g.facts.Leaf != "" {
		unlock, err := lockDir(filepath.Dir(g.facts.Leaf), unix.LOCK_EX)
		if err != nil {
			return err
		}
		defer unlock()
		if err := g.moveAside(); err != nil {
			return err
		}
	}
	for _, up := range g.facts.Enable {
		if err := g.enable(up, g.limits.controllers()); err != nil {
			return err
		}
	}
	if err := mkdir(dir); err != nil {
		return err
	}
	if !g.inner {
		return nil
	}
	if err := mkdir(g.home(dir)); err != nil {
		return err
	}
	return g.enable(dir, g.pinned(dir))
}

// controllers are the needed controllers in the kernel's words.
func (l *limits) controllers() []string {
	var names []string
	for _, c := range l.needs {
		if c != Swap {
			names = append(names, c)
		}
	}
	return names
}

// pinned are the controllers to hold on to in a shared parent: those that are
// needed, and those that account.
func (g *Group) pinned(dir string) []string {
	names := g.limits.controllers()
	for _, c := range words(filepath.Join(dir, "cgroup.controllers")) {
		if (c == Memory || c == Pids) && !slices.Contains(names, c) {
			names = append(names, c)
		}
	}
	return names
}

// enable passes the controllers on to the children of dir.
func (g *Group) enable(dir string, controllers []string) error {
	have := words(filepath.Join(dir, subtreeControl))
	var add []string
	for _, c := range controllers {
		if !slices.Contains(have, c) {
			add = append(add, "+"+c)
		}
	}
	if len(add) == 0 {
		return nil
	}
	err := oc.WriteFile(dir, subtreeControl, strings.Join(add, " "))
	if errors.Is(err, unix.EBUSY) {
		return &UnsupportedError{
			Controller: strings.TrimPrefix(add[0], "+"),
			Why:        fmt.Sprintf("%q has processes of its own, so it cannot pass controllers on", dir),
			Remedy:     "start nucleus itself, not a shell, in the delegated group",
		}
	}
	if err != nil {
		return fmt.Errorf("passing controllers on to the groups in %q: %w", dir, err)
	}
	return nil
}

// moveAside moves this process out of the parent to the supervisor's leaf.
func (g *Group) moveAside() error {
	if err := mkdir(g.facts.Leaf); err != nil {
		return err
	}
	inside, err := inGroup(g.facts.Leaf)
	if err != nil || inside {
		return err
	}
	if err := oc.WriteCgroupProc(g.facts.Leaf, os.Getpid()); err != nil {
		return fmt.Errorf("moving this process to %q: %w", g.facts.Leaf, err)
	}
	return nil
}

// inGroup reports whether this process runs in dir.
func inGroup(dir string) (bool, error) {
	pids, err := oc.GetPids(dir)
	if err != nil {
		return false, fmt.Errorf("reading the processes of %q: %w", dir, err)
	}
	return slices.Contains(pids, os.Getpid()), nil
}

// restore undoes moveAside once no group of ours is left: otherwise the
// delegated group could not take a process again, and the leaf would stay. It
// does what can be done and is repeated by whoever comes next, so it reports
// nothing. The lock keeps it from taking controllers away from a group that
// another process is just making.
func restore(leaf string) {
	home := filepath.Dir(leaf)
	unlock, err := lockDir(home, unix.LOCK_EX|unix.LOCK_NB)
	if err != nil {
		return
	}
	defer unlock()
	subs, err := subdirs(home)
	if err != nil || len(subs) != 1 || subs[0] != leaf {
		return
	}
	pids, err := oc.GetPids(leaf)
	if err != nil || len(pids) > 1 || len(pids) == 1 && pids[0] != os.Getpid() {
		return
	}
	for _, c := range words(filepath.Join(home, subtreeControl)) {
		if oc.WriteFile(home, subtreeControl, "-"+c) != nil {
			return
		}
	}
	if len(pids) == 1 && oc.WriteCgroupProc(home, pids[0]) != nil {
		return
	}
	_ = unix.Rmdir(leaf)
}

func lockDir(dir string, how int) (unlock func(), err error) {
	file, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(file.Fd()), how); err != nil {
		file.Close()
		return nil, &os.PathError{Op: "lock", Path: dir, Err: err}
	}
	return func() { file.Close() }, nil
}
