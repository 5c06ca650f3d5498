package pluginhost

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/nucleus-runtime/nucleus/core/cgroups"
	"github.com/nucleus-runtime/nucleus/core/pluginhost/rundir"
	"github.com/nucleus-runtime/nucleus/sdk/manifest"
)

const (
	maxTasks  = 256
	maxMemory = 256 << 20
	// A backend of networks carries the flows of a sandbox.
	maxNetworkMemory = 1 << 30
)

// memoryOf is the limit of a plugin for which its operator names none.
func memoryOf(as manifest.Service) int64 {
	if as == manifest.Network {
		return maxNetworkMemory
	}
	return maxMemory
}

// place is where a plugin is to be: its directory, and its control group. They take
// most of a millisecond, and so are made while its file is looked at.
type place struct {
	there sync.WaitGroup // for dir and err
	dir   *rundir.Dir
	err   error
	group group
}

// prepare begins to make the place of a plugin.
func (h *Host) prepare(name string, as manifest.Service) *place {
	host, _ := h.o.Finder.Host.Plugin(name)
	memory := host.Memory
	if memory == 0 {
		memory = memoryOf(as)
	}
	at := &place{}
	at.there.Add(1)
	at.group.made.Go(func() {
		at.dir, at.err = rundir.Make(h.o.RunDirs, maxSocketDir)
		at.there.Done()
		if at.err == nil {
			at.group.err = at.group.make(h, at.dir, memory)
		}
	})
	return at
}

func (at *place) directory() (*rundir.Dir, error) {
	at.there.Wait()
	return at.dir, at.err
}

// leave removes the group, with all that is left in it, and the directory.
func (at *place) leave() {
	dir, err := at.directory()
	switch {
	case err != nil:
	case at.group.remove() != nil:
		_ = dir.Leave() // with the record of the group: the next start tries again
	default:
		_ = dir.Remove() // the next start sweeps what is left
	}
}

// group is the control group of one plugin process, nothing where the host gives
// none.
type group struct {
	made   sync.WaitGroup
	g      *cgroups.Group
	err    error
	memory int64 // the limit, if there is one
}

// make makes the group. Its record is in the plugin's directory first.
func (g *group) make(h *Host, dir *rundir.Dir, memory int64) error {
	facts, err := h.cgroups()
	if err != nil {
		return fmt.Errorf("looking at the host's cgroups: %w", err)
	}
	if !facts.Usable() {
		return nil
	}
	ends := cgroups.Pids // what lets all that is in it be ended at once
	if facts.Unsupported(cgroups.Pids) != nil {
		ends = cgroups.Freezer
	}
	facts = facts.Only(cgroups.Memory, ends)
	if !facts.Usable() {
		return nil
	}
	// A controller that is not there limits nothing; to end all that is in the
	// group, none is needed.
	spec := cgroups.Spec{Name: rundir.GroupPrefix + filepath.Base(dir.Path), Resources: &specs.LinuxResources{}}
	if facts.Unsupported(cgroups.Memory) == nil {
		g.memory = memory
		spec.Resources.Memory = &specs.LinuxMemory{Limit: &g.memory}
	}
	if facts.Unsupported(cgroups.Pids) == nil {
		tasks := int64(maxTasks)
		spec.Resources.Pids = &specs.LinuxPids{Limit: &tasks}
	}
	cg, err := cgroups.New(facts, spec)
	if err != nil {
		return err
	}
	if err := dir.Record(cg.Record()); err != nil {
		return err
	}
	g.g = cg
	if err := cg.Create(); err != nil {
		return err
	}
	return cg.Limit()
}

// ready waits until the group is made, and gives it.
func (g *group) ready() (*cgroups.Group, error) {
	g.made.Wait()
	return g.g, g.err
}

// starved tells whether the kernel has killed a process of the group for want of
// memory.
func (g *group) starved() bool {
	g.made.Wait()
	if g.g == nil || g.memory == 0 {
		return false
	}
	n, err := g.g.OOMKills()
	return err == nil && n > 0
}

// remove ends all that is left in the group, and removes it.
func (g *group) remove() error {
	g.made.Wait()
	if g.g == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return g.g.Remove(ctx)
}
