package cgroups

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	oc "github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"
)

// innerName is the leaf inside a group of a parent that is shared with a
// service manager; see Facts.Shared.
const innerName = "sandbox"

// Record is all that is needed to remove a group, from any process that may
// write to its parent. It is stable JSON for the journal.
type Record struct {
	Layout Layout `json:"layout"`
	Name   string `json:"name"`
	// Paths has the group's directory by v1 controller, or under "" on v2.
	Paths map[string]string `json:"paths"`
	// Leaf is the group that this process moved to; see Facts.Leaf.
	Leaf string `json:"leaf,omitempty"`
	// Later (v1): the freezer's group is made by the first Freeze; see gather.
	Later bool `json:"later,omitempty"`
}

// Group is the control group of one sandbox. Its methods may be called from
// several goroutines once Create, Limit and Attach have returned.
type Group struct {
	tree
	facts  Facts
	limits *limits
	inner  bool
}

// New computes the group of a sandbox and touches nothing. Every resource that
// this host cannot enforce is an *UnsupportedError, every one out of range a
// *LimitError; all are reported together (errors.Join).
func New(f Facts, s Spec) (*Group, error) {
	if err := checkName(s.Name); err != nil {
		return nil, err
	}
	if !f.Usable() {
		return nil, f.Unsupported(anyController)
	}
	l, err := translate(s.Resources, f.Layout)
	errs := []error{err}
	for _, c := range l.needs {
		if c == Swap && f.Controllers[c].State == Unknown {
			continue // Limit reads back what the kernel took
		}
		errs = append(errs, f.Unsupported(c))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	rec := Record{Layout: f.Layout, Name: s.Name, Leaf: f.Leaf, Paths: make(map[string]string, len(f.Parents))}
	for name, parent := range f.Parents {
		if name == "blkio" && !slices.Contains(l.needs, IO) {
			continue
		}
		rec.Paths[name] = filepath.Join(parent, s.Name)
	}
	// The CPU controller is joined for its own sake or where it comes with the
	// accounting, not otherwise.
	if cpu := rec.Paths["cpu"]; cpu != "" && !slices.Contains(l.needs, CPU) && cpu != rec.Paths["cpuacct"] {
		delete(rec.Paths, "cpu")
	}
	rec.Later = s.Privileged && freezable(rec)
	quiet()
	return &Group{tree: tree{rec: rec}, facts: f, limits: l, inner: f.Layout == V2 && f.Shared}, nil
}

// freezable reports whether the freezer's group may be made when it is first needed: its
// hierarchy has nothing else of the sandbox, and forks can be held up meanwhile.
func freezable(r Record) bool {
	if r.Layout == V2 || r.Paths[Freezer] == "" || r.Paths[Pids] == "" {
		return false
	}
	for name, dir := range r.Paths {
		if name != Freezer && dir == r.Paths[Freezer] {
			return false
		}
	}
	return true
}

// Record returns what Remove needs. It is valid before Create.
func (g *Group) Record() Record { return g.rec }

// Paths has the directories of the group that its processes are born in, as Record has all.
func (g *Group) Paths() map[string]string {
	paths := maps.Clone(g.rec.Paths)
	if g.rec.Later && !g.gathered.Load() {
		delete(paths, Freezer)
	}
	return paths
}

// home is where processes of the sandbox go in the hierarchy of dir.
func (g *Group) home(dir string) string {
	if g.inner {
		return filepath.Join(dir, innerName)
	}
	return dir
}

// Create makes the group in each hierarchy that it needs. Groups that exist
// already are taken over, so it may be repeated.
func (g *Group) Create() error {
	if g.rec.Layout == V2 {
		return g.createV2()
	}
	for _, dir := range distinct(g.Paths()) {
		if err := mkdir(dir); err != nil {
			return err
		}
	}
	return nil
}

func mkdir(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("making the cgroup: %w", err)
	}
	return nil
}

// Attach moves the process pid, with all its threads, into the group. Its
// children follow; processes that it has already started do not.
func (g *Group) Attach(pid int) error {
	if pid <= 0 {
		return fmt.Errorf("attaching to cgroup %q: bad pid %d", g.rec.Name, pid)
	}
	for _, dir := range distinct(g.Paths()) {
		if err := oc.WriteCgroupProc(g.home(dir), pid); err != nil {
			return fmt.Errorf("attaching pid %d to cgroup %q: %w", pid, g.rec.Name, err)
		}
	}
	return nil
}

// FD returns the group as a descriptor to clone a process into
// (syscall.SysProcAttr.CgroupFD); the caller closes it. ErrNoFD where v1
// controllers are in use. Spawn does the same for both.
func (g *Group) FD() (*os.File, error) {
	if g.rec.Layout != V2 {
		return nil, ErrNoFD
	}
	dir := g.home(g.rec.Paths[unified])
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	return os.NewFile(uintptr(fd), dir), nil
}
