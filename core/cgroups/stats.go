package cgroups

import (
	"fmt"
	"math"
	"path/filepath"
	"strconv"
	"strings"

	oc "github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/fs"
	"github.com/opencontainers/cgroups/fs2"
	"github.com/opencontainers/cgroups/fscommon"

	"github.com/nucleus-runtime/nucleus/internal/plainfile"
)

// Stats is what a sandbox uses and has used. A nil part or field is one that
// this host does not account for.
type Stats struct {
	Memory *MemoryStats `json:"memory,omitempty"`
	CPU    *CPUStats    `json:"cpu,omitempty"`
	Pids   *PidsStats   `json:"pids,omitempty"`
	IO     *IOStats     `json:"io,omitempty"`
}

// MemoryStats counts bytes, and OOM kills.
type MemoryStats struct {
	Current  uint64    `json:"current"`
	Peak     *uint64   `json:"peak,omitempty"` // v2: since Linux 5.19
	Limit    *uint64   `json:"limit,omitempty"`
	Swap     *uint64   `json:"swap,omitempty"`
	OOMKills uint64    `json:"oom_kills"`
	Pressure *Pressure `json:"pressure,omitempty"`
}

// CPUStats counts microseconds, and periods of the quota.
type CPUStats struct {
	UsageUsec        uint64    `json:"usage_usec"`
	UserUsec         uint64    `json:"user_usec"`
	SystemUsec       uint64    `json:"system_usec"`
	Periods          uint64    `json:"periods"`
	ThrottledPeriods uint64    `json:"throttled_periods"`
	ThrottledUsec    uint64    `json:"throttled_usec"`
	Pressure         *Pressure `json:"pressure,omitempty"`
}

// PidsStats counts tasks: processes and their threads.
type PidsStats struct {
	Current uint64  `json:"current"`
	Peak    *uint64 `json:"peak,omitempty"` // since Linux 6.1
	Limit   *uint64 `json:"limit,omitempty"`
}

// IOStats counts bytes on block devices.
type IOStats struct {
	ReadBytes  uint64    `json:"read_bytes"`
	WriteBytes uint64    `json:"write_bytes"`
	Pressure   *Pressure `json:"pressure,omitempty"`
}

// Pressure is the kernel's pressure stall information: the time lost by some
// tasks, and by all of them at once.
type Pressure struct {
	Some Stall `json:"some"`
	Full Stall `json:"full"`
}

// Stall has percentages of the last 10, 60 and 300 seconds, and all time lost.
type Stall struct {
	Avg10     float64 `json:"avg10"`
	Avg60     float64 `json:"avg60"`
	Avg300    float64 `json:"avg300"`
	TotalUsec uint64  `json:"total_usec"`
}

// Stats reads the accounts of the group. They are gone after Remove.
func (t *tree) Stats() (Stats, error) {
	s, err := t.statsV1()
	if t.rec.Layout == V2 {
		s, err = t.statsV2()
	}
	if err != nil {
		return Stats{}, fmt.Errorf("reading the accounts of cgroup %q: %w", t.rec.Name, err)
	}
	return s, nil
}

func (t *tree) statsV2() (Stats, error) {
	dir := t.rec.Paths[unified]
	m, err := fs2.NewManager(&oc.Cgroup{Resources: &oc.Resources{}}, dir)
	if err != nil {
		return Stats{}, err
	}
	o, err := m.Stats(&oc.StatsOptions{Controllers: oc.CPU | oc.Memory | oc.Pids | oc.IO})
	if err != nil {
		return Stats{}, err
	}
	s := Stats{CPU: cpuStats(o), Pids: &PidsStats{Current: o.PidsStats.Current}}
	if s.Pids.Peak, err = optional(dir, "pids.peak"); err != nil {
		return Stats{}, err
	}
	if s.Pids.Limit, err = limit(dir, "pids.max"); err != nil {
		return Stats{}, err
	}
	for _, c := range words(dir + "/cgroup.controllers") {
		switch c {
		case IO:
			s.IO = ioStats(o)
		case Memory:
			s.Memory = &MemoryStats{Current: o.MemoryStats.Usage.Usage, Pressure: pressure(o.MemoryStats.PSI)}
			if s.Memory.OOMKills, err = t.OOMKills(); err != nil {
				return Stats{}, err
			}
			if s.Memory.Peak, err = optional(dir, "memory.peak"); err != nil {
				return Stats{}, err
			}
			if s.Memory.Limit, err = limit(dir, "memory.max"); err != nil {
				return Stats{}, err
			}
			if s.Memory.Swap, err = optional(dir, "memory.swap.current"); err != nil {
				return Stats{}, err
			}
		}
	}
	return s, nil
}

func (t *tree) statsV1() (s Stats, err error) {
	o := oc.NewStats()
	for _, c := range []struct {
		name string
		get  interface {
			GetStats(path string, s *oc.Stats) error
		}
	}{
		{"cpu", &fs.CpuGroup{}}, {"cpuacct", &fs.CpuacctGroup{}}, {"pids", &fs.PidsGroup{}},
	} {
		dir := t.rec.Paths[c.name]
		if dir == "" {
			continue
		}
		if err := c.get.GetStats(dir, o); err != nil {
			return Stats{}, err
		}
		switch c.name {
		case "cpuacct":
			s.CPU = cpuStats(o)
		case "pids":
			s.Pids = &PidsStats{Current: o.PidsStats.Current}
			if s.Pids.Peak, err = optional(dir, "pids.peak"); err != nil {
				return Stats{}, err
			}
			if s.Pids.Limit, err = limit(dir, "pids.max"); err != nil {
				return Stats{}, err
			}
		}
	}
	if dir := t.rec.Paths["blkio"]; dir != "" {
		if s.IO, err = ioStatsV1(dir); err != nil {
			return Stats{}, err
		}
	}
	if dir := t.rec.Paths[Memory]; dir != "" {
		// By hand: the library would read a page of statistics per NUMA node.
		s.Memory = &MemoryStats{}
		if s.Memory.Current, err = number(dir, "memory.usage_in_bytes"); err != nil {
			return Stats{}, err
		}
		if s.Memory.Peak, err = optional(dir, "memory.max_usage_in_bytes"); err != nil {
			return Stats{}, err
		}
		if s.Memory.Limit, err = limit(dir, "memory.limit_in_bytes"); err != nil {
			return Stats{}, err
		}
		both, err := optional(dir, "memory.memsw.usage_in_bytes")
		if err != nil {
			return Stats{}, err
		}
		if both != nil {
			// The two are read one after the other, so the sum can lag behind.
			swap := max(*both, s.Memory.Current) - s.Memory.Current
			s.Memory.Swap = &swap
		}
		if s.Memory.OOMKills, err = t.OOMKills(); err != nil {
			return Stats{}, err
		}
	}
	return s, nil
}

// OOMKills counts the processes of the sandbox that the kernel killed for want
// of memory, in the group and in those that the workload made below it. It is 0
// without a memory controller.
func (t *tree) OOMKills() (uint64, error) {
	if t.rec.Layout == V2 {
		n, err := fs2.OOMKillCount(t.rec.Paths[unified])
		if gone(err) {
			return 0, nil
		}
		return n, err
	}
	dir := t.rec.Paths[Memory]
	if dir == "" {
		return 0, nil
	}
	var sum uint64
	// The counter of v1 does not include child groups.
	err := walk(dir, func(dir string) error {
		n, err := fs.OOMKillCount(dir)
		sum += n
		if gone(err) {
			return nil
		}
		return err
	})
	return sum, err
}

// number reads one; "max" is more than any.
func number(dir, file string) (uint64, error) {
	path := filepath.Join(dir, file)
	b, err := plainfile.Read(path)
	if err != nil {
		return 0, err
	}
	text := strings.TrimSpace(string(b))
	if text == "max" {
		return math.MaxUint64, nil
	}
	n, err := fscommon.ParseUint(text, 10, 64) // some are negative for a moment
	if err != nil {
		return 0, fmt.Errorf("parsing %q: %w", path, err)
	}
	return n, nil
}

// optional reads a number from a file that this kernel may not have.
func optional(dir, file string) (*uint64, error) {
	n, err := number(dir, file)
	switch {
	case gone(err):
		return nil, nil
	case err != nil:
		return nil, err
	}
	return &n, nil
}

// limit reads one; nil for none. That is "max", on v1 the most that a page counter
// holds (PAGE_COUNTER_MAX), in whole pages below 2^63.
func limit(dir, file string) (*uint64, error) {
	n, err := optional(dir, file)
	if n != nil && *n >= 1<<62 {
		n = nil
	}
	return n, err
}

func cpuStats(o *oc.Stats) *CPUStats {
	return &CPUStats{
		UsageUsec:        o.CpuStats.CpuUsage.TotalUsage / 1000,
		UserUsec:         o.CpuStats.CpuUsage.UsageInUsermode / 1000,
		SystemUsec:       o.CpuStats.CpuUsage.UsageInKernelmode / 1000,
		Periods:          o.CpuStats.ThrottlingData.Periods,
		ThrottledPeriods: o.CpuStats.ThrottlingData.ThrottledPeriods,
		ThrottledUsec:    o.CpuStats.ThrottlingData.ThrottledTime / 1000,
		Pressure:         pressure(o.CpuStats.PSI),
	}
}

func ioStats(o *oc.Stats) *IOStats {
	s := &IOStats{Pressure: pressure(o.BlkioStats.PSI)}
	for _, e := range o.BlkioStats.IoServiceBytesRecursive {
		switch e.Op {
		case "Read":
			s.ReadBytes += e.Value
		case "Write":
			s.WriteBytes += e.Value
		}
	}
	return s
}

// ioStatsV1 reads the throttle's account, which has every device. The library
// prefers that of the BFQ scheduler, which has only the devices that BFQ serves.
func ioStatsV1(dir string) (*IOStats, error) {
	text, err := oc.ReadFile(dir, "blkio.throttle.io_service_bytes_recursive")
	if gone(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	s := &IOStats{}
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) != 3 {
			continue
		}
		n, err := strconv.ParseUint(f[2], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("parsing %q: %w", strings.TrimSpace(line), err)
		}
		switch f[1] {
		case "Read":
			s.ReadBytes += n
		case "Write":
			s.WriteBytes += n
		}
	}
	return s, nil
}

func pressure(p *oc.PSIStats) *Pressure {
	if p == nil {
		return nil
	}
	stall := func(d oc.PSIData) Stall { return Stall{d.Avg10, d.Avg60, d.Avg300, d.Total} }
	return &Pressure{Some: stall(p.Some), Full: stall(p.Full)}
}
