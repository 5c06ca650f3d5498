package pluginhost

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/nucleus-runtime/nucleus/core/cgroups"
	"github.com/nucleus-runtime/nucleus/core/pluginhost/rundir"
)

const (
	// groupPrefix starts the names of plugins' control groups.
	groupPrefix = cgroups.Prefix + "plugin-"
	maxTasks    = 256
	maxMemory   = 256 << 20
)

// group is the control group of one plugin process, nothing where the host gives
// none. It is made beside the rest of a start: it takes half a millisecond.
type group struct {
	made   sync.WaitGroup
	g      *cgroups.Group
	err    error
	memory int64 // the limit, if there is one
}

// startGroup begins to make the group. Its record is in the plugin's directory first.
func (h *Host) startGroup(dir *rundir.Dir, memory int64) *group {
	g := &group{}
	g.made.Go(func() { g.err = g.make(h, dir, memory) })
	return g
}

func (g *group) make(h *Host, dir *rundir.Dir, memory int64) error {
	facts, err := h.cgroups()
	if err != nil {
		return fmt.Errorf("looking at the host's cgroups: %w", err)
	}
	if !facts.Usable() {
		return nil
	}
	facts = facts.Only(cgroups.Memory, cgroups.Pids, cgroups.Freezer)
	if !facts.Usable() {
		return nil
	}
	// A controller that is not there limits nothing; to end all that is in the
	// group, none is needed.
	spec := cgroups.Spec{Name: groupPrefix + filepath.Base(dir.Path), Resources: &specs.LinuxResources{}}
	if facts.Unsupported(cgroups.Memory) == nil {
		if g.memory = memory; memory == 0 {
			g.memory = maxMemory
		}
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
