package cgroups

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Spawn is for who makes a process by os/exec or syscall; for others there is Doors. It
// runs start so that the process that it makes is born in the group, and so is never
// moved: moving a process makes the kernel wait for an RCU grace period
// (cgroup_attach_lock() takes a per-CPU rwsem for writing), which is 4 to 30 ms, more
// than the rest of a sandbox's start.
//
// On v2 start gets the group as a descriptor to clone into (CLONE_INTO_CGROUP).
// On v1 the calling thread itself goes into the group, makes the process, and
// goes back: a thread that writes itself to a tasks file is moved without that
// lock (Linux 5.5, commit 9a3284fad42f). The calling goroutine must therefore be
// locked to its thread, and start must make the process on that thread.
func (g *Group) Spawn(start func(group *os.File) error) error {
	if g.rec.Layout == V2 {
		f, err := g.FD()
		if err != nil {
			return err
		}
		defer f.Close()
		return start(f)
	}
	var entered []string
	var errs []error
	paths := g.Paths()
	for _, name := range sortedKeys(paths) {
		if err := enterThread(paths[name]); err != nil {
			errs = append(errs, fmt.Errorf("entering cgroup %q: %w", g.rec.Name, err))
			break
		}
		entered = append(entered, name)
	}
	if len(errs) == 0 {
		errs = append(errs, start(nil))
	}
	for _, name := range entered {
		if err := enterThread(g.facts.Own[name]); err != nil {
			errs = append(errs, fmt.Errorf("leaving cgroup %q: %w", g.rec.Name, err))
		}
	}
	return errors.Join(errs...)
}

// enterThread moves the calling thread, and no other, into a v1 group.
func enterThread(dir string) error {
	fd, err := unix.Open(filepath.Join(dir, "tasks"), unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: filepath.Join(dir, "tasks"), Err: err}
	}
	defer unix.Close(fd)
	for {
		// 0 stands for the writer itself.
		_, err := unix.Write(fd, []byte("0"))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		return os.NewSyscallError("write tasks", err)
	}
}

// Doors opens what a process has to go through to be born in the group, for those
// who make it by themselves: on v2 a descriptor to clone into, and on v1 files to
// which the new process, while it has one thread, writes "0" first of all. The
// caller closes them.
func (g *Group) Doors() (unified *os.File, tasks []*os.File, err error) {
	if g.rec.Layout == V2 {
		unified, err = g.FD()
		return unified, nil, err
	}
	for _, dir := range distinct(g.Paths()) {
		path := filepath.Join(dir, "tasks")
		fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			for _, f := range tasks {
				_ = f.Close()
			}
			return nil, nil, &os.PathError{Op: "open", Path: path, Err: err}
		}
		tasks = append(tasks, os.NewFile(uintptr(fd), path))
	}
	return nil, tasks, nil
}

// Only gives the facts as if the host had these controllers and no others: a group
// that needs few is made faster.
func (f Facts) Only(controllers ...string) Facts {
	if f.Layout == V2 {
		return f // one group, whatever it limits
	}
	parents := map[string]string{}
	for _, c := range controllers {
		if dir, ok := f.Parents[v1Controller(c)]; ok {
			parents[v1Controller(c)] = dir
		}
	}
	f.Parents = parents
	return f
}
