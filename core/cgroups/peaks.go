package cgroups

import (
	"fmt"

	"github.com/opencontainers/cgroups/fscommon"
)

// Peaks is what of the accounts is told of a sandbox that has ended. A nil field is one
// that this host does not account for.
type Peaks struct {
	Memory   *uint64 // bytes; v2: since Linux 5.19
	Pids     *uint64 // since Linux 6.1
	CPUUsec  uint64  // in all
	OOMKills uint64
}

// Peaks reads a file for each of them, where Stats reads some twenty.
func (t *tree) Peaks() (Peaks, error) {
	p, err := t.peaks()
	if err != nil {
		return Peaks{}, fmt.Errorf("reading the accounts of cgroup %q: %w", t.rec.Name, err)
	}
	return p, nil
}

func (t *tree) peaks() (p Peaks, err error) {
	if dir := t.rec.Paths[unified]; t.rec.Layout == V2 {
		if p.CPUUsec, err = fscommon.GetValueByKey(dir, "cpu.stat", "usage_usec"); err != nil {
			return p, err
		}
		if p.Memory, err = optional(dir, "memory.peak"); err != nil {
			return p, err
		}
		if p.Pids, err = optional(dir, "pids.peak"); err != nil {
			return p, err
		}
	}
	if dir := t.rec.Paths["cpuacct"]; dir != "" {
		if p.CPUUsec, err = number(dir, "cpuacct.usage"); err != nil {
			return p, err
		}
		p.CPUUsec /= 1000
	}
	if dir := t.rec.Paths[Memory]; dir != "" {
		if p.Memory, err = optional(dir, "memory.max_usage_in_bytes"); err != nil {
			return p, err
		}
	}
	if dir := t.rec.Paths[Pids]; dir != "" {
		if p.Pids, err = optional(dir, "pids.peak"); err != nil {
			return p, err
		}
	}
	p.OOMKills, err = t.OOMKills()
	return p, err
}
