package plan

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"sort"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/nucleus-runtime/nucleus/core/host/fact"
	"github.com/nucleus-runtime/nucleus/core/job"
)

func (m *maker) resources() {
	r := m.j.Resources
	unified := map[string]string{}
	res := &specs.LinuxResources{Unified: unified}
	pids := int64(DefaultPids)
	asked := false
	if r.Pids != nil {
		pids, asked = *r.Pids, true
	}
	if pids > 0 {
		res.Pids = &specs.LinuxPids{Limit: &pids}
	}
	if r.Memory != nil {
		asked = true
		mem := *r.Memory
		res.Memory = &specs.LinuxMemory{Limit: &mem}
		swap := int64(0)
		if r.Swap != nil {
			swap = *r.Swap
		}
		// A kernel that does not account for swap can't keep it from a job: degraded.
		if r.Swap != nil || m.h.Cgroup.Controllers["swap"].State != fact.Unavailable {
			total := mem + swap // OCI: memory plus swap
			res.Memory.Swap = &total
		}
	}
	if r.MemoryHigh != nil {
		asked = true
		unified["memory.high"] = fmt.Sprint(*r.MemoryHigh)
	}
	if r.CPUs > 0 || r.CPUWeight > 0 {
		asked = true
		res.CPU = &specs.LinuxCPU{}
		if r.CPUs > 0 {
			period := uint64(100_000)
			quota := int64(math.Round(r.CPUs * float64(period)))
			res.CPU.Period, res.CPU.Quota = &period, &quota
		}
		if r.CPUWeight > 0 {
			unified["cpu.weight"] = fmt.Sprint(r.CPUWeight)
		}
	}
	asked = asked || len(r.IO) > 0
	m.io(res)
	m.p.Resources = res
	m.p.Cgroup = Cgroup{Wanted: true, Required: asked || m.j.Mode.Strict(), Parent: m.in.CgroupParent}
	cpu := "resources.cpus"
	if r.CPUs == 0 {
		cpu = "resources.cpu_weight"
	}
	memory := "resources.memory"
	if r.Memory == nil {
		memory = "resources.memory_high"
	}
	for _, l := range []struct {
		name, path string
		asked      bool
	}{
		{"memory", memory, r.Memory != nil || r.MemoryHigh != nil},
		{"swap", "resources.swap", r.Swap != nil && m.h.Cgroup.Controllers["memory"].State == fact.Available && m.h.Cgroup.Controllers["swap"].State == fact.Unavailable},
		{"cpu", cpu, res.CPU != nil},
		{"pids", "resources.pids", r.Pids != nil},
		{"io", "resources.io", len(r.IO) > 0},
	} {
		if f := m.h.Cgroup.Controllers[l.name]; l.asked && f.State != fact.Available {
			hint := remedy(f, m.h.Cgroup)
			if l.name == "swap" && !m.h.Cgroup.SwapAbsent {
				hint += ", or leave out swap"
			}
			m.fail(l.path, hint, "the %s limit cannot be enforced: %s", l.name, reason(f, m.h.Cgroup))
		}
	}
	if f := m.h.Cgroup.Controllers["memory"]; r.MemoryHigh != nil && f.State == fact.Available && m.h.Cgroup.Layout != "v2" {
		m.fail("resources.memory_high", "boot with systemd.unified_cgroup_hierarchy=1, or leave out memory_high", "memory_high cannot be enforced: it is a limit of cgroup v2, and this host has v1")
	}
	if c := m.h.Cgroup; m.in.CgroupParent != "" && !m.p.Cgroup.Required && c.Why != "" {
		// It stands in no line of the job.
		m.errs = append(m.errs, &Error{Msg: fmt.Sprintf("cgroup_parent %q cannot be used: %s", m.in.CgroupParent, c.Why), Hint: c.Remedy})
	}
	if m.p.Cgroup.Required && !asked && m.h.Cgroup.Controllers["pids"].State != fact.Available {
		m.fail("mode", remedy(m.h.Cgroup.Controllers["pids"], m.h.Cgroup), "mode %s needs a control group: %s", m.j.Mode, reason(m.h.Cgroup.Controllers["pids"], m.h.Cgroup))
	}
	if m.j.Mode == job.ModeProduction && (r.Memory == nil || r.CPUs == 0 || r.Pids == nil) {
		m.fail("mode", "add to resources: memory, cpus and pids", "mode production needs limits of memory, cpus and pids")
	}
	if r.Memory != nil && *r.Memory < MinMemory {
		m.fail("resources.memory", "write at least memory = \"16MiB\"", "memory = %d bytes is less than a sandbox's own init needs (%d)", *r.Memory, int64(MinMemory))
	}
	if r.Pids != nil && *r.Pids < MinPids {
		m.fail("resources.pids", fmt.Sprintf("write at least pids = %d", MinPids), "pids = %d is less than a sandbox needs to start (%d: init's threads and the workload)", *r.Pids, MinPids)
	}
}

// The least limits under which init and a small workload come up.
const (
	MinMemory = 16 << 20
	MinPids   = 16
)

func reason(f fact.Feature, c fact.Cgroup) string {
	switch {
	case f.Why != "":
		return f.Why
	case c.Why != "":
		return c.Why
	}
	return "this host's cgroups (" + c.Layout + ") do not have the controller"
}

func remedy(f fact.Feature, c fact.Cgroup) string {
	if f.Remedy != "" {
		return f.Remedy
	}
	return c.Remedy
}

func (m *maker) seccomp() {
	s := &m.p.Seccomp
	s.Source, s.Mode = "default", "enforce"
	s.Caps = m.p.Process.Capabilities.Bounding
	s.NoSetID = !slices.Contains(s.Caps, "CAP_FSETID") && slices.ContainsFunc(m.p.Mounts, func(x Mount) bool {
		return x.Kind == MountBind && x.Has("rw")
	})
	c := m.j.Security.Seccomp
	if c == nil {
		return
	}
	s.Mode, s.Record, s.Allow, s.SHA256 = c.Mode, c.Record, c.Allow, c.SHA256
	if c.Profile != "" {
		s.Source, s.Profile = "profile", c.Profile
	}
	if c.Mode != "trace" {
		return
	}
	// Notifications that let a call go on came with 5.5, and pidfd_getfd(2) with 5.6.
	switch f := m.h.Feature("seccomp.notify"); {
	case !m.h.KernelAtLeast(5, 6):
		m.fail("security.seccomp.mode", "boot Linux 5.6 or newer, or write mode = \"enforce\"", "seccomp trace mode cannot be had: Linux %s has no notifications that a call can go on after", m.h.Kernel)
	case f.State == fact.Unavailable:
		m.fail("security.seccomp.mode", cmp.Or(f.Remedy, "write mode = \"enforce\""), "seccomp trace mode cannot be had: %s", f.Why)
	}
}

// swapUnlimited: the job limits memory, says nothing of swap, and so is to have
// none, which the kernel could give it all the same.
func (m *maker) swapUnlimited() bool {
	c := m.h.Cgroup
	return m.j.Resources.Memory != nil && m.j.Resources.Swap == nil && c.SwapUnlimited(c.Controllers["memory"].State, c.Controllers["swap"].State)
}

// degraded finds the default protections that the host cannot give. In mode
// agent they are warned about, unless the job accepts them by name; elsewhere
// they are errors.
func (m *maker) degraded() {
	type loss struct {
		Degraded
		path string // what of the job needs it
	}
	var lost []loss
	add := func(path, name, why, remedy string) {
		lost = append(lost, loss{Degraded{Name: name, Why: why, Remedy: remedy}, path})
	}
	if f := m.h.Cgroup.Controllers["swap"]; m.swapUnlimited() {
		add("resources.memory", "cgroup.swap", f.Why+"; what the sandbox has in swap is not limited", f.Remedy)
	}
	if m.h.LandlockABI == 0 {
		add("mode", "landlock", "this kernel has no Landlock, or it is not in the lsm= list", "boot with lsm=landlock,… (kernel 5.13 or newer, CONFIG_SECURITY_LANDLOCK)")
	} else if m.h.LandlockABI < 6 {
		add("mode", "landlock.scope", fmt.Sprintf("Landlock ABI %d cannot confine signals and abstract sockets (ABI 6)", m.h.LandlockABI), "use a kernel from 6.12 on")
	}
	if !m.p.Cgroup.Required && m.h.Cgroup.Controllers["pids"].State != fact.Available {
		if m.p.IDs.Kind != "none" && m.h.KernelAtLeast(5, 14) {
			// Counted per user namespace since 5.14, so it means the sandbox (W19).
			if n := m.p.Pids(); n > 0 {
				limit := specs.POSIXRlimit{Type: "RLIMIT_NPROC", Soft: uint64(n), Hard: uint64(n)}
				if r := m.p.Runtime; r != nil {
					r.Rlimits = append(r.Rlimits, limit)
				} else {
					m.p.Process.Rlimits = append(m.p.Process.Rlimits, limit)
				}
			}
			m.p.Resources.Pids = nil
			m.p.Cgroup.Wanted = false
		} else {
			m.p.Cgroup.Wanted = false
			add("mode", "cgroup.pids", reason(m.h.Cgroup.Controllers["pids"], m.h.Cgroup), remedy(m.h.Cgroup.Controllers["pids"], m.h.Cgroup))
		}
	}
	accepted := map[string]bool{}
	for _, n := range m.j.AllowDegraded {
		accepted[n] = true
	}
	if len(m.j.AllowDegraded) > 0 && m.j.Mode.Strict() {
		m.fail("allow_degraded", "remove the line, or use mode = \"agent\"", "allow_degraded is refused in mode %s", m.j.Mode)
	}
	for _, d := range lost {
		d.Accepted = accepted[d.Name]
		if m.j.Mode.Strict() {
			m.fail(d.path, d.Remedy, "protection %q cannot be had: %s", d.Name, d.Why)
			continue
		}
		m.p.Degraded = append(m.p.Degraded, d.Degraded)
	}
	sort.Slice(m.p.Degraded, func(a, b int) bool { return m.p.Degraded[a].Name < m.p.Degraded[b].Name })
}
