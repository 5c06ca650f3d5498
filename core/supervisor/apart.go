package supervisor

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"runtime"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/cgroups"
	"github.com/nucleus-runtime/nucleus/core/state"
	"github.com/nucleus-runtime/nucleus/internal/failpoint"
)

// groupsName is the file of a state root that lists the groups that supervisors share.
const groupsName = "supervisors.json"

// Apart lets start make the process of a supervisor, in a control group apart from this
// process's where the host has a place for one, with the group to clone into if there is
// one: what ends or limits whoever starts a sandbox is not to do so to its supervisor.
// Where it cannot be had, it is made where we are, and its record says why.
func Apart(cgroupParent string, open func() (*state.Root, error), start func(group *os.File) error) error {
	f, err := cgroups.DetectBeside(cgroupParent)
	if err != nil {
		return start(nil) // the supervisor looks, too, and tells
	}
	g, _ := f.Supervisors()
	if g == nil {
		return start(nil)
	}
	root, err := open()
	if err != nil {
		return start(nil) // as above
	}
	defer root.Close()
	for range 3 {
		began, err := startIn(root, g, start)
		if began {
			return nil
		}
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENODEV) {
			break
		}
		// Somebody has found the group empty, and removed it.
	}
	return start(nil)
}

func startIn(root *state.Root, g *cgroups.Group, start func(group *os.File) error) (began bool, err error) {
	var have []cgroups.Record
	// Noted first, and before somebody could find that there is nothing to note.
	err = root.Update(groupsName, &have, func(save func() error) error {
		if !slices.ContainsFunc(have, func(r cgroups.Record) bool { return maps.Equal(r.Paths, g.Record().Paths) }) {
			have = append(have, g.Record())
			if err := save(); err != nil {
				return err
			}
		}
		failpoint.Hit("supervisors noted")
		return g.Create()
	})
	if err == nil {
		err = g.Ours()
	}
	if err != nil {
		return false, err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: it may not come back out of the group
		err = g.Spawn(func(group *os.File) error {
			err := start(group)
			began = err == nil
			return err
		})
	}()
	<-done
	return began, err
}

// RemoveGroups removes the groups that supervisors shared and none is in any more.
func RemoveGroups(root *state.Root) error {
	var have []cgroups.Record
	var errs []error
	err := root.Update(groupsName, &have, func(save func() error) error {
		var left []cgroups.Record
		for _, r := range have {
			gone, err := cgroups.RemoveEmpty(r)
			if err != nil {
				errs = append(errs, fmt.Errorf("the group of supervisors: %w", err))
			}
			if !gone {
				left = append(left, r)
			}
		}
		if len(left) == len(have) {
			return nil
		}
		have = left
		return save()
	})
	return errors.Join(append(errs, err)...)
}

// whereabouts tells in which groups this process is apart from who has started it, or why
// it is not.
func whereabouts(f cgroups.Facts) (in map[string]string, why string) {
	if in = f.InSupervisors(); len(in) > 0 {
		return in, ""
	}
	if g, why := f.Supervisors(); g == nil {
		return nil, "the control group of who started it: " + why
	}
	return nil, "the control group of who started it: one of its own could not be made, or entered"
}
