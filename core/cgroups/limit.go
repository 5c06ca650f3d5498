package cgroups

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	oc "github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/fs"
	"github.com/opencontainers/cgroups/fs2"

	"github.com/nucleus-runtime/nucleus/internal/plainfile"
)

// Limit writes the limits and reads each one back. A value that the kernel
// rounded to its own unit is taken; anything else is a *LimitError. Call it
// before anything is attached.
func (g *Group) Limit() error {
	// A copy, since the library keeps and changes what it is given.
	res := g.limits.res
	if g.facts.Controllers[Swap].State == Unavailable && !g.limits.swapSet {
		res.MemorySwap = 0 // our default of no swap; this kernel could not tell swap apart
	}
	var err error
	if g.rec.Layout == V2 {
		err = g.limitV2(&res)
	} else {
		err = g.limitV1(&res)
	}
	if err != nil {
		return err
	}
	return g.verify(&res)
}

func (g *Group) limitV2(res *oc.Resources) error {
	res.Unified = make(map[string]string, 2)
	if g.limits.high != "" {
		res.Unified["memory.high"] = g.limits.high
	}
	if res.Memory != 0 {
		// Half a sandbox is no use to anyone: the kernel kills all of it.
		res.Unified["memory.oom.group"] = "1"
	}
	m, err := fs2.NewManager(&oc.Cgroup{Resources: &oc.Resources{SkipDevices: true}}, g.rec.Paths[unified])
	if err == nil {
		err = m.Set(res)
	}
	if err != nil {
		return fmt.Errorf("limiting cgroup %q: %w", g.rec.Name, err)
	}
	return nil
}

// limitV1 sets each controller by itself: the library's manager also visits
// those that the group is not in, and its block I/O part keeps what it learned
// in a package variable, unguarded.
func (g *Group) limitV1(res *oc.Resources) error {
	res.Unified = nil
	for _, c := range []struct {
		name string
		set  interface {
			Set(path string, r *oc.Resources) error
		}
	}{
		{"memory", &fs.MemoryGroup{}},
		{"cpu", &fs.CpuGroup{}},
		{"pids", &fs.PidsGroup{}},
		{"blkio", &fs.BlkioGroup{}},
	} {
		dir := g.rec.Paths[c.name]
		if dir == "" {
			continue
		}
		if err := c.set.Set(dir, res); err != nil {
			return fmt.Errorf("limiting cgroup %q in hierarchy %s: %w", g.rec.Name, c.name, err)
		}
	}
	if res.Memory == 0 {
		return nil
	}
	// What sockets of TCP and UDP hold is counted apart on v1, and only where it has a limit.
	err := oc.WriteFile(g.rec.Paths[Memory], tcpLimit, num(res.Memory))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("limiting cgroup %q in hierarchy %s: %w", g.rec.Name, Memory, err)
	}
	return nil
}

// tcpLimit is missing where the kernel has no TCP.
const tcpLimit = "memory.kmem.tcp.limit_in_bytes"

// check is one limit to read back.
type check struct {
	limit      string
	controller string // of v1
	file, want string
	bytes      bool   // rounded down to a page by the kernel
	optional   bool   // may be missing where it was not asked for
	key        string // io: the words of the line to look in
}

func (g *Group) verify(res *oc.Resources) error {
	checks := g.checksV1(res)
	if g.rec.Layout == V2 {
		checks = g.checksV2(res)
	}
	var errs []error
	for _, c := range checks {
		errs = append(errs, g.readBack(c))
	}
	return errors.Join(errs...)
}

func (g *Group) checksV2(r *oc.Resources) (cs []check) {
	if r.Memory != 0 {
		cs = append(cs, check{limit: Memory, file: "memory.max", want: num(r.Memory), bytes: true})
	}
	if r.MemorySwap == -1 {
		cs = append(cs, check{limit: Swap, file: "memory.swap.max", want: "max", optional: !g.limits.swapSet})
	} else if r.MemorySwap != 0 {
		cs = append(cs, check{limit: Swap, file: "memory.swap.max", want: num(r.MemorySwap - r.Memory), bytes: true, optional: !g.limits.swapSet})
	}
	if g.limits.high != "" {
		cs = append(cs, check{limit: "memory.high", file: "memory.high", want: g.limits.high, bytes: true})
	}
	if r.CpuQuota != 0 {
		cs = append(cs, check{limit: CPU, file: "cpu.max", want: fmt.Sprintf("%d %d", r.CpuQuota, r.CpuPeriod)})
	}
	if r.CpuWeight != 0 {
		cs = append(cs, check{limit: "cpu.weight", file: "cpu.weight", want: num(r.CpuWeight)})
	}
	if r.PidsLimit != nil {
		cs = append(cs, check{limit: Pids, file: "pids.max", want: num(*r.PidsLimit)})
	}
	return append(cs, throttles(r, func(_, word string, d *oc.ThrottleDevice) check {
		return check{file: "io.max", want: word + "=" + num(d.Rate)}
	})...)
}

func (g *Group) checksV1(r *oc.Resources) (cs []check) {
	if r.Memory != 0 {
		cs = append(cs, check{limit: Memory, controller: Memory, file: "memory.limit_in_bytes", want: num(r.Memory), bytes: true},
			check{limit: Memory, controller: Memory, file: tcpLimit, want: num(r.Memory), bytes: true, optional: true})
	}
	if r.MemorySwap > 0 {
		cs = append(cs, check{limit: Swap, controller: Memory, file: "memory.memsw.limit_in_bytes", want: num(r.MemorySwap), bytes: true})
	}
	if r.CpuQuota != 0 {
		cs = append(cs,
			check{limit: CPU, controller: CPU, file: "cpu.cfs_quota_us", want: num(r.CpuQuota)},
			check{limit: CPU, controller: CPU, file: "cpu.cfs_period_us", want: num(r.CpuPeriod)})
	}
	if r.CpuShares != 0 {
		cs = append(cs, check{limit: "cpu.shares", controller: CPU, file: "cpu.shares", want: num(r.CpuShares)})
	}
	if r.PidsLimit != nil {
		cs = append(cs, check{limit: Pids, controller: Pids, file: "pids.max", want: num(*r.PidsLimit)})
	}
	return append(cs, throttles(r, func(file, _ string, d *oc.ThrottleDevice) check {
		return check{controller: "blkio", file: "blkio.throttle." + file + "_device", want: num(d.Rate)}
	})...)
}

// throttles makes a check of each block I/O limit.
func throttles(r *oc.Resources, make func(file, word string, d *oc.ThrottleDevice) check) (cs []check) {
	for _, t := range []struct {
		file, word string
		devices    []*oc.ThrottleDevice
	}{
		{"read_bps", "rbps", r.BlkioThrottleReadBpsDevice},
		{"write_bps", "wbps", r.BlkioThrottleWriteBpsDevice},
		{"read_iops", "riops", r.BlkioThrottleReadIOPSDevice},
		{"write_iops", "wiops", r.BlkioThrottleWriteIOPSDevice},
	} {
		for _, d := range t.devices {
			c := make(t.file, t.word, d)
			c.key = fmt.Sprintf("%d:%d", d.Major, d.Minor)
			c.limit = "io " + c.key + " " + t.word
			cs = append(cs, c)
		}
	}
	return cs
}

func (g *Group) readBack(c check) error {
	dir := g.rec.Paths[c.controller]
	if g.rec.Layout == V2 {
		dir = g.rec.Paths[unified]
	}
	b, err := plainfile.Read(filepath.Join(dir, c.file))
	if errors.Is(err, os.ErrNotExist) && c.optional {
		return nil
	}
	if err != nil {
		return &LimitError{Limit: c.limit, Asked: c.want, Why: "it cannot be read back", Err: err}
	}
	text := string(b)
	got := strings.TrimSpace(text)
	if c.key != "" {
		got = lineOf(text, c.key)
		for _, word := range strings.Fields(got) {
			if word == c.want {
				return nil
			}
		}
	}
	if got == c.want || c.bytes && roundsTo(c.want, got) {
		return nil
	}
	return &LimitError{Limit: c.limit, Asked: c.want, Why: fmt.Sprintf("the kernel has %q in %s", got, c.file)}
}

// lineOf returns what follows the key on its line of a device table.
func lineOf(text, key string) string {
	for line := range strings.Lines(text) {
		if first, rest, ok := strings.Cut(strings.TrimSpace(line), " "); ok && first == key {
			return rest
		}
	}
	return ""
}

// roundsTo reports whether got is want rounded down to a page.
func roundsTo(want, got string) bool {
	w, err := strconv.ParseUint(want, 10, 64)
	if err != nil {
		return false
	}
	n, err := strconv.ParseUint(got, 10, 64)
	return err == nil && n <= w && w-n < uint64(os.Getpagesize())
}

func num[T int64 | uint64](n T) string { return fmt.Sprint(n) }
