package cgroups

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	oc "github.com/opencontainers/cgroups"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

const (
	// Prefix starts the name of every group of ours. Nothing else is removed.
	Prefix = "nucleus-"
	// MinMemory is the least memory limit that is taken. PID 1 of a sandbox
	// and its page tables alone need about 4 MiB; below this the start would
	// end in an OOM kill that looks like the workload's.
	MinMemory = 6 << 20
	// MinPids is the least limit on tasks that is taken: threads count, and
	// PID 1 of a sandbox has several.
	MinPids = 8
	// period is the window of a CPU quota, in microseconds, if none is given.
	period = 100_000
)

// Spec is the group of one sandbox.
type Spec struct {
	// Name is the directory name: Prefix, then letters, digits, '-' and '_'.
	Name string
	// Resources are the limits in OCI words. Memory.Swap is memory plus swap,
	// as OCI has it; absent, a memory limit allows no swap. Unified may have
	// "memory.high" (v2 only) and "cpu.weight" (v1: converted to shares).
	Resources *specs.LinuxResources
	// Privileged: the caller is root on the host, and so may move the group's processes
	// whoever they are. On v1 the freezer's group, which costs each start and each end as
	// much as another limit, is then made by the first Freeze.
	Privileged bool
}

// limits are a spec's resources in the library's words.
type limits struct {
	res     oc.Resources
	needs   []string // controllers of Facts.Controllers
	swapSet bool     // asked for, not our default
	high    string   // memory.high
}

func (l *limits) need(c string) {
	if !slices.Contains(l.needs, c) {
		l.needs = append(l.needs, c)
	}
}

func checkName(name string) error {
	if !strings.HasPrefix(name, Prefix) || len(name) == len(Prefix) || len(name) > 128 || name == leafName {
		return fmt.Errorf("cgroup name %q: want %q and an id", name, Prefix)
	}
	for _, r := range name {
		if r != '-' && r != '_' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') {
			return fmt.Errorf("cgroup name %q: %q is not allowed", name, r)
		}
	}
	return nil
}

// translate turns OCI resources into limits. What it has no translation for is
// an error: a limit is never dropped in silence.
func translate(r *specs.LinuxResources, layout Layout) (*limits, error) {
	l := &limits{res: oc.Resources{SkipDevices: true, Unified: map[string]string{}}}
	if r == nil {
		return l, nil
	}
	errs := []error{
		l.unknown(r), l.memory(r.Memory), l.cpu(r.CPU, layout), l.pids(r.Pids), l.io(r.BlockIO),
	}
	for _, key := range sortedKeys(r.Unified) {
		errs = append(errs, l.unified(key, r.Unified[key], layout))
	}
	return l, errors.Join(errs...)
}

func (l *limits) unknown(r *specs.LinuxResources) error {
	var errs []error
	refuse := func(set bool, what string) {
		if set {
			errs = append(errs, &UnsupportedError{Controller: what, Why: "Nucleus does not use this controller"})
		}
	}
	refuse(len(r.Devices) > 0, "devices")
	refuse(len(r.HugepageLimits) > 0, "hugetlb")
	refuse(r.Network != nil, "net_cls")
	refuse(len(r.Rdma) > 0, "rdma")
	return errors.Join(errs...)
}

func (l *limits) memory(m *specs.LinuxMemory) error {
	if m == nil {
		return nil
	}
	//nolint:staticcheck // Kernel is deprecated, and refused for that
	if m.Kernel != nil || m.KernelTCP != nil || m.Swappiness != nil || m.DisableOOMKiller != nil || m.Reservation != nil {
		return &UnsupportedError{Controller: Memory, Why: "of the OCI memory resources only limit and swap are used"}
	}
	if m.Limit == nil {
		if m.Swap != nil {
			return &LimitError{Limit: Swap, Asked: strconv.FormatInt(*m.Swap, 10), Why: "a swap limit needs a memory limit"}
		}
		return nil
	}
	limit := *m.Limit
	if limit < MinMemory {
		return &LimitError{
			Limit: Memory, Asked: strconv.FormatInt(limit, 10),
			Why: fmt.Sprintf("a sandbox needs at least %d bytes (%d MiB) to start", MinMemory, MinMemory>>20),
		}
	}
	l.need(Memory)
	l.res.Memory, l.res.MemorySwap = limit, limit
	if m.Swap == nil {
		return nil
	}
	if *m.Swap != -1 && *m.Swap < limit {
		return &LimitError{Limit: Swap, Asked: strconv.FormatInt(*m.Swap, 10), Why: "memory plus swap is less than memory"}
	}
	l.need(Swap)
	l.res.MemorySwap, l.swapSet = *m.Swap, true
	return nil
}

func (l *limits) cpu(c *specs.LinuxCPU, layout Layout) error {
	if c == nil {
		return nil
	}
	if c.Cpus != "" || c.Mems != "" {
		return &UnsupportedError{Controller: "cpuset", Why: "Nucleus does not use this controller"}
	}
	if c.RealtimePeriod != nil || c.RealtimeRuntime != nil || c.Burst != nil || c.Idle != nil {
		return &UnsupportedError{Controller: CPU, Why: "of the OCI cpu resources only quota, period and shares are used"}
	}
	if c.Quota != nil && *c.Quota >= 0 {
		l.need(CPU)
		l.res.CpuQuota, l.res.CpuPeriod = *c.Quota, period
		if c.Period != nil && *c.Period != 0 {
			l.res.CpuPeriod = *c.Period
		}
		if *c.Quota < 1000 || l.res.CpuPeriod < 1000 || l.res.CpuPeriod > 1_000_000 {
			return &LimitError{
				Limit: CPU, Asked: fmt.Sprintf("%d/%d us", *c.Quota, l.res.CpuPeriod),
				Why: "the kernel wants a quota of at least 1 ms and a period of 1 ms to 1 s",
			}
		}
	}
	if c.Shares != nil && *c.Shares != 0 {
		if *c.Shares < 2 || *c.Shares > 262144 {
			return &LimitError{Limit: "cpu shares", Asked: strconv.FormatUint(*c.Shares, 10), Why: "want 2 to 262144"}
		}
		l.setShares(*c.Shares, layout)
	}
	return nil
}

func (l *limits) setShares(shares uint64, layout Layout) {
	l.need(CPU)
	if layout == V2 {
		l.res.CpuWeight = oc.ConvertCPUSharesToCgroupV2Value(shares)
		return
	}
	l.res.CpuShares = shares
}

func (l *limits) pids(p *specs.LinuxPids) error {
	if p == nil || p.Limit == nil || *p.Limit == -1 {
		return nil
	}
	if *p.Limit < MinPids {
		return &LimitError{
			Limit: Pids, Asked: strconv.FormatInt(*p.Limit, 10),
			Why: fmt.Sprintf("a sandbox needs at least %d tasks to start (threads count)", MinPids),
		}
	}
	l.need(Pids)
	l.res.PidsLimit = p.Limit
	return nil
}

func (l *limits) io(b *specs.LinuxBlockIO) error {
	if b == nil {
		return nil
	}
	if b.Weight != nil || b.LeafWeight != nil || len(b.WeightDevice) > 0 {
		return &UnsupportedError{Controller: IO, Why: "of the OCI block I/O resources only the throttles are used"}
	}
	for _, t := range []struct {
		from []specs.LinuxThrottleDevice
		to   *[]*oc.ThrottleDevice
	}{
		{b.ThrottleReadBpsDevice, &l.res.BlkioThrottleReadBpsDevice},
		{b.ThrottleWriteBpsDevice, &l.res.BlkioThrottleWriteBpsDevice},
		{b.ThrottleReadIOPSDevice, &l.res.BlkioThrottleReadIOPSDevice},
		{b.ThrottleWriteIOPSDevice, &l.res.BlkioThrottleWriteIOPSDevice},
	} {
		for _, d := range t.from {
			if d.Rate == 0 {
				return &LimitError{Limit: fmt.Sprintf("io %d:%d", d.Major, d.Minor), Asked: "0", Why: "want at least 1"}
			}
			l.need(IO)
			*t.to = append(*t.to, oc.NewThrottleDevice(d.Major, d.Minor, d.Rate))
		}
	}
	return nil
}

func (l *limits) unified(key, value string, layout Layout) error {
	n, err := strconv.ParseUint(value, 10, 64)
	if err != nil {
		return &LimitError{Limit: key, Asked: strconv.Quote(value), Why: "want a whole number"}
	}
	switch key {
	case "memory.high":
		if layout != V2 {
			return &UnsupportedError{
				Controller: Memory, Why: "memory_high is a limit of cgroup v2, and this host has v1",
				Remedy: "boot with systemd.unified_cgroup_hierarchy=1, or leave out memory_high",
			}
		}
		if n < MinMemory || n > math.MaxInt64 {
			return &LimitError{Limit: key, Asked: value, Why: fmt.Sprintf("want at least %d bytes", MinMemory)}
		}
		l.need(Memory)
		l.high = value
		return nil
	case "cpu.weight":
		if n < 1 || n > 10000 {
			return &LimitError{Limit: key, Asked: value, Why: "want 1 to 10000 (100 is normal)"}
		}
		l.need(CPU)
		if layout == V2 {
			l.res.CpuWeight = n
			return nil
		}
		// Linear, with both normals (100 and 1024) on each other; the kernel's
		// floor is 2.
		l.res.CpuShares = max(2, min(262144, n*1024/100))
		return nil
	}
	return &UnsupportedError{Controller: key, Why: "of the unified resources only memory.high and cpu.weight are used"}
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
