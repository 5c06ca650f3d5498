package cgroups

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Remove ends what is left in the group and removes it, with the groups that
// the workload made below it. It may be repeated, and takes a group that was
// made in part or not at all. It is bounded by ctx, or by 10 s.
func (t *tree) Remove(ctx context.Context) error {
	if err := t.check(); err != nil {
		return err
	}
	quiet()
	ctx, cancel := bounded(ctx)
	defer cancel()
	for _, dir := range t.dirs() {
		if err := t.removeTree(ctx, dir); err != nil {
			return fmt.Errorf("removing cgroup %q: %w", t.rec.Name, err)
		}
	}
	if t.rec.Leaf != "" {
		restore(t.rec.Leaf)
	}
	return nil
}

// Remove removes the group of a record, as Group.Remove does, from any process.
func Remove(ctx context.Context, r Record) error {
	t := &tree{rec: r}
	return t.Remove(ctx)
}

// Known gives the record of a sandbox's group by what somebody else than its journal tells of its
// directories, by controller. Whatever is no group of that name is left out: it is of another, or gone.
func Known(name string, paths map[string]string) Record {
	r := Record{Layout: V1, Name: name, Paths: map[string]string{}}
	for controller, dir := range paths {
		one := tree{rec: Record{Name: name, Paths: map[string]string{controller: dir}}}
		if st, err := os.Lstat(dir); err != nil || !st.IsDir() || one.check() != nil || onCgroupFS(dir) != nil {
			continue
		}
		if r.Paths[controller] = dir; controller == unified {
			r.Layout = V2
		}
	}
	return r
}

// removeTree removes dir and the groups below it by rmdir alone, which the
// kernel refuses while there are processes: what is removed was empty.
func (t *tree) removeTree(ctx context.Context, dir string) error {
	if err := onCgroupFS(dir); gone(err) {
		return nil
	} else if err != nil {
		return err
	}
	// Most have nothing below and nobody in them any more.
	if err := rmdir(dir); err == nil || !busy(err) {
		return err
	}
	for pause := newPause(ctx); ; {
		err := walk(dir, rmdir)
		if err == nil || !busy(err) {
			return err
		}
		// Killed once at the first refusal, and again if something is still
		// there: an ending task can hold its group for a moment longer.
		if killErr := t.Kill(ctx); killErr != nil {
			return errors.Join(err, killErr)
		}
		if waitErr := pause.next(); waitErr != nil {
			return errors.Join(err, waitErr)
		}
	}
}

// rmdir removes an empty group, which may be gone.
func rmdir(dir string) error {
	if err := unix.Rmdir(dir); err != nil && !gone(err) {
		return &os.PathError{Op: "rmdir", Path: dir, Err: err}
	}
	return nil
}

// busy reports whether a group could not be removed yet: it has tasks (EBUSY),
// or a child appeared while we were at it (ENOTEMPTY, on old kernels).
func busy(err error) bool {
	return errors.Is(err, unix.EBUSY) || errors.Is(err, unix.ENOTEMPTY)
}

// onCgroupFS guards against a record that names a directory elsewhere.
func onCgroupFS(dir string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	if st.Type != unix.CGROUP2_SUPER_MAGIC && st.Type != unix.CGROUP_SUPER_MAGIC {
		return fmt.Errorf("%q is not on a cgroup file system", dir)
	}
	return nil
}

// Stale lists the groups with our prefix below the parents that this process
// would use. Whether their sandboxes live is for the caller to know.
func Stale(f Facts) ([]Record, error) {
	byName := make(map[string]Record)
	for _, controller := range sortedKeys(f.Parents) {
		subs, err := subdirs(f.Parents[controller])
		if err != nil && !gone(err) {
			return nil, fmt.Errorf("looking for groups: %w", err)
		}
		for _, dir := range subs {
			name := filepath.Base(dir)
			if checkName(name) != nil {
				continue
			}
			r, ok := byName[name]
			if !ok {
				r = Record{Layout: f.Layout, Name: name, Paths: map[string]string{}, Leaf: f.Leaf}
			}
			r.Paths[controller] = dir
			byName[name] = r
		}
	}
	records := make([]Record, 0, len(byName))
	for _, name := range sortedKeys(byName) {
		records = append(records, byName[name])
	}
	return records, nil
}

func elements(path string) []string {
	return slices.DeleteFunc(strings.Split(path, "/"), func(s string) bool { return s == "" })
}
