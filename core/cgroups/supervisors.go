package cgroups

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// supervisorsName, with a uid, is the group of a user's supervisors that are apart from
// whoever has started them. They share one: none could remove a group that it is in itself.
const supervisorsName = Prefix + "supervisors-"

func isSupervisors(dir string) bool { return strings.HasPrefix(filepath.Base(dir), supervisorsName) }

// DetectBeside is Detect for a process that this one is going to start beside itself:
// neither is alone in its group.
func DetectBeside(parent string) (Facts, error) {
	h := thisHost()
	h.pid = -1
	return h.detect(parent)
}

// Supervisors is the group for processes that are to outlive whoever starts them, beside
// those of sandboxes. It is nil, and why says so, where that would be below the group of
// this process: what ends or limits that group does so to all below it.
func (f Facts) Supervisors() (g *Group, why string) {
	if !f.Usable() {
		return nil, f.Why
	}
	name := supervisorsName + strconv.Itoa(os.Geteuid())
	rec := Record{Layout: f.Layout, Name: name, Paths: map[string]string{}}
	for c, parent := range f.Parents {
		if own := f.Own[c]; parent != own && !strings.HasPrefix(parent, strings.TrimSuffix(own, "/")+"/") {
			rec.Paths[c] = filepath.Join(parent, name)
		}
	}
	if len(rec.Paths) == 0 {
		return nil, "groups are made below the one that nucleus was started in"
	}
	return &Group{tree: tree{rec: rec}, facts: f, limits: &limits{}}, ""
}

// InSupervisors tells where this process is in such a group.
func (f Facts) InSupervisors() map[string]string {
	in := map[string]string{}
	for c, dir := range f.Own {
		if isSupervisors(dir) {
			in[c] = dir
		}
	}
	return in
}

// Ours reports whether nobody else owns the group that was made, and so has a say in what
// is in it.
func (g *Group) Ours() error {
	for _, dir := range g.dirs() {
		var st unix.Stat_t
		if err := unix.Lstat(dir, &st); err != nil {
			return &os.PathError{Op: "stat", Path: dir, Err: err}
		}
		if int(st.Uid) != os.Geteuid() {
			return fmt.Errorf("cgroup %q: it is uid %d's", dir, st.Uid)
		}
	}
	return nil
}

// RemoveEmpty removes the group of a record unless something is in it, and tells whether
// it is gone.
func RemoveEmpty(r Record) (bool, error) {
	t := &tree{rec: r}
	if err := t.check(); err != nil {
		return false, err
	}
	for _, dir := range t.dirs() {
		if err := onCgroupFS(dir); gone(err) {
			continue
		} else if err != nil {
			return false, err
		}
		switch err := unix.Rmdir(dir); {
		case err == nil, gone(err):
		case busy(err):
			return false, nil
		default:
			return false, &os.PathError{Op: "rmdir", Path: dir, Err: err}
		}
	}
	return true, nil
}
