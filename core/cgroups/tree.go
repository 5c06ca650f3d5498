package cgroups

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"

	oc "github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"
)

// tree is a sandbox's group as it can be known from a record alone: its
// directories with whatever the workload made below them.
type tree struct {
	rec Record
	// gathered: all that is later is there.
	gathered atomic.Bool
}

// dirs are the group's directories, one per hierarchy.
func (t *tree) dirs() []string { return distinct(t.rec.Paths) }

// distinct gives the directories in the order of their controllers: those that are
// mounted together share one.
func distinct(paths map[string]string) []string {
	dirs := make([]string, 0, len(paths))
	for _, name := range sortedKeys(paths) {
		if dir := paths[name]; !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

// check guards Remove against a record that was tampered with: only groups of
// ours, by name, on a cgroup file system.
func (t *tree) check() error {
	if err := checkName(t.rec.Name); err != nil {
		return err
	}
	for _, dir := range t.rec.Paths {
		if !filepath.IsAbs(dir) || filepath.Clean(dir) != dir || filepath.Base(dir) != t.rec.Name {
			return fmt.Errorf("cgroup record %q: bad path %q", t.rec.Name, dir)
		}
	}
	if leaf := t.rec.Leaf; leaf != "" {
		if !filepath.IsAbs(leaf) || filepath.Clean(leaf) != leaf || filepath.Base(leaf) != leafName {
			return fmt.Errorf("cgroup record %q: bad leaf %q", t.rec.Name, leaf)
		}
	}
	return nil
}

// subdirs lists the child groups of dir. kernfs keeps the link count of a
// directory at 2 plus its children, which spares reading the usual empty one.
func subdirs(dir string) ([]string, error) {
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	if st.Nlink == 2 {
		return nil, nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var subs []string
	for _, e := range entries {
		if e.IsDir() {
			subs = append(subs, filepath.Join(dir, e.Name()))
		}
	}
	return subs, nil
}

// walk calls visit for dir and every group below it, children first. Groups
// that vanish meanwhile are none.
func walk(dir string, visit func(dir string) error) error {
	subs, err := subdirs(dir)
	if gone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, sub := range subs {
		if err := walk(sub, visit); err != nil {
			return err
		}
	}
	return visit(dir)
}

// gone reports whether err says that a group does not exist (any more).
func gone(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV)
}

// procs lists the processes in dir and below. Processes that are out of sight,
// in a foreign PID namespace, show as 0 and are left out.
func procs(dir string) ([]int, error) {
	var all []int
	err := walk(dir, func(dir string) error {
		pids, err := oc.GetPids(dir)
		if gone(err) {
			return nil
		}
		for _, pid := range pids {
			if pid > 0 {
				all = append(all, pid)
			}
		}
		return err
	})
	return all, err
}

// Procs lists the processes of the sandbox, in whatever hierarchy of the group.
func (t *tree) Procs() ([]int, error) {
	var all []int
	for _, dir := range t.dirs() {
		pids, err := procs(dir)
		if err != nil {
			return nil, fmt.Errorf("listing the processes of cgroup %q: %w", t.rec.Name, err)
		}
		all = append(all, pids...)
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}
