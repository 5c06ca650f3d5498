package metrics

import (
	"strconv"

	"github.com/nucleus-runtime/nucleus/core/cgroups"
	"github.com/nucleus-runtime/nucleus/core/exec"
	"github.com/nucleus-runtime/nucleus/core/lifecycle"
	"github.com/nucleus-runtime/nucleus/core/supervisor"
	"github.com/nucleus-runtime/nucleus/internal/netdev"
)

// Sandbox is one that is alive.
type Sandbox struct {
	ID, Name string
	Record   *supervisor.Record // nil for one that has not answered
	Stats    *supervisor.Stats  // nil as well
}

// emit adds a sample of the sandbox that is looked at.
type emit func(v float64, labels ...string)

// metric is a family, named without the prefix that all have.
type metric struct {
	name, kind, help string
	of               func(s Sandbox, add emit)
}

const (
	prefix  = "nucleus_"
	counter = "counter"
	gauge   = "gauge"
)

// Text gives all that is known of the sandboxes, whose ids differ.
func Text(version string, list []Sandbox) []byte {
	t := &text{}
	t.describe(prefix+"build_info", gauge, "The version of nucleus that tells this.")
	t.sample(1, "version", version)
	for _, m := range metrics() {
		t.describe(prefix+"sandbox_"+m.name, m.kind, m.help)
		for _, s := range list {
			m.of(s, func(v float64, labels ...string) {
				t.sample(v, append([]string{"id", s.ID, "name", s.Name}, labels...)...)
			})
		}
	}
	return t.b.Bytes()
}

// metrics makes them: most processes never do.
func metrics() []metric {
	return []metric{
		{"up", gauge, "Whether the supervisor of the sandbox answers.", func(s Sandbox, add emit) { add(truth(s.Record != nil && s.Stats != nil)) }},
		{"info", gauge, "What the sandbox is; always 1.", ofRecord(func(r *supervisor.Record, add emit) {
			add(1, "job", r.Job, "mode", r.Mode, "root", r.Root, "network", r.Network, "detached", strconv.FormatBool(r.Detached))
		})},
		{"status", gauge, "1 for the status that the sandbox has, 0 for the others.", ofRecord(func(r *supervisor.Record, add emit) {
			for _, x := range []lifecycle.Status{lifecycle.StatusCreating, lifecycle.StatusCreated, lifecycle.StatusRunning, lifecycle.StatusPaused, lifecycle.StatusCheckpointing, supervisor.StatusRestarting, lifecycle.StatusStopping} {
				add(truth(r.Status == x), "status", string(x))
			}
		})},
		{"ready", gauge, "Whether the workload runs, and is ready if its job says what that is.", ofRecord(func(r *supervisor.Record, add emit) { add(truth(r.Ready)) })},
		{"healthy", gauge, "Whether the health probe of the job says so.", ofRecord(func(r *supervisor.Record, add emit) {
			if r.Health != "" {
				add(truth(r.Health == "healthy"))
			}
		})},
		{"created_timestamp_seconds", gauge, "When the sandbox was made, in Unix time.", ofRecord(func(r *supervisor.Record, add emit) { add(float64(r.Created.UnixMilli()) / 1e3) })},
		{"started_timestamp_seconds", gauge, "When the workload was started, in Unix time.", ofRecord(func(r *supervisor.Record, add emit) {
			if !r.Started.IsZero() {
				add(float64(r.Started.UnixMilli()) / 1e3)
			}
		})},
		{"restarts_total", counter, "How often the workload was started again.", ofRecord(func(r *supervisor.Record, add emit) { add(float64(r.Restarts)) })},
		{"execs_total", counter, "Commands that were run beside the workload.", ofRecord(func(r *supervisor.Record, add emit) { add(float64(r.Execs)) })},

		{"cpu_seconds_total", counter, "Processor time.", ofCPU(func(c *cgroups.CPUStats, add emit) { add(usec(c.UsageUsec)) })},
		{"cpu_user_seconds_total", counter, "Processor time of programs.", ofCPU(func(c *cgroups.CPUStats, add emit) { add(usec(c.UserUsec)) })},
		{"cpu_system_seconds_total", counter, "Processor time of the kernel for them.", ofCPU(func(c *cgroups.CPUStats, add emit) { add(usec(c.SystemUsec)) })},
		{"cpu_periods_total", counter, "Periods of the processor limit in which the sandbox ran.", ofCPU(func(c *cgroups.CPUStats, add emit) { add(float64(c.Periods)) })},
		{"cpu_throttled_periods_total", counter, "Periods in which the processor limit held the sandbox up.", ofCPU(func(c *cgroups.CPUStats, add emit) { add(float64(c.ThrottledPeriods)) })},
		{"cpu_throttled_seconds_total", counter, "Time that the processor limit held the sandbox up.", ofCPU(func(c *cgroups.CPUStats, add emit) { add(usec(c.ThrottledUsec)) })},

		{"memory_bytes", gauge, "Memory in use, with the page cache of what the sandbox reads.", ofMemory(func(m *cgroups.MemoryStats, add emit) { add(float64(m.Current)) })},
		{"memory_peak_bytes", gauge, "The most memory that was in use.", ofMemory(func(m *cgroups.MemoryStats, add emit) { known(m.Peak, add) })},
		{"memory_limit_bytes", gauge, "The limit of memory, if there is one.", ofMemory(func(m *cgroups.MemoryStats, add emit) { known(m.Limit, add) })},
		{"swap_bytes", gauge, "Swap in use.", ofMemory(func(m *cgroups.MemoryStats, add emit) { known(m.Swap, add) })},
		{"oom_kills_total", counter, "Processes that the kernel killed for lack of memory.", ofMemory(func(m *cgroups.MemoryStats, add emit) { add(float64(m.OOMKills)) })},

		{"tasks", gauge, "Processes and threads.", ofPids(func(p *cgroups.PidsStats, add emit) { add(float64(p.Current)) })},
		{"tasks_peak", gauge, "The most processes and threads that there were.", ofPids(func(p *cgroups.PidsStats, add emit) { known(p.Peak, add) })},
		{"tasks_limit", gauge, "The limit of processes and threads, if there is one.", ofPids(func(p *cgroups.PidsStats, add emit) { known(p.Limit, add) })},

		{"io_read_bytes_total", counter, "Bytes read from block devices.", ofIO(func(x *cgroups.IOStats, add emit) { add(float64(x.ReadBytes)) })},
		{"io_written_bytes_total", counter, "Bytes written to block devices.", ofIO(func(x *cgroups.IOStats, add emit) { add(float64(x.WriteBytes)) })},

		{"pressure_waiting_seconds_total", counter, "Time in which some task had to wait for a resource.", ofPressure(func(p *cgroups.Pressure) uint64 { return p.Some.TotalUsec })},
		{"pressure_stalled_seconds_total", counter, "Time in which every task had to wait for a resource.", ofPressure(func(p *cgroups.Pressure) uint64 { return p.Full.TotalUsec })},

		{"network_receive_bytes_total", counter, "Bytes that interfaces of the sandbox's own network received.", ofInterfaces(func(x netdev.Interface) uint64 { return x.RxBytes })},
		{"network_receive_packets_total", counter, "Packets that they received.", ofInterfaces(func(x netdev.Interface) uint64 { return x.RxPackets })},
		{"network_receive_errors_total", counter, "Errors in receiving.", ofInterfaces(func(x netdev.Interface) uint64 { return x.RxErrors })},
		{"network_receive_dropped_total", counter, "Packets that were received and dropped.", ofInterfaces(func(x netdev.Interface) uint64 { return x.RxDropped })},
		{"network_transmit_bytes_total", counter, "Bytes that interfaces of the sandbox's own network sent.", ofInterfaces(func(x netdev.Interface) uint64 { return x.TxBytes })},
		{"network_transmit_packets_total", counter, "Packets that they sent.", ofInterfaces(func(x netdev.Interface) uint64 { return x.TxPackets })},
		{"network_transmit_errors_total", counter, "Errors in sending.", ofInterfaces(func(x netdev.Interface) uint64 { return x.TxErrors })},
		{"network_transmit_dropped_total", counter, "Packets that were dropped instead of being sent.", ofInterfaces(func(x netdev.Interface) uint64 { return x.TxDropped })},
		{"network_flows_total", counter, "Connections that the network's policy let through.", ofFlows(func(f *exec.Flow) uint64 { return f.Connections })},
		{"network_flows_receive_bytes_total", counter, "Bytes that the sandbox received through them, as the network plugin counts.", ofFlows(func(f *exec.Flow) uint64 { return f.RxBytes })},
		{"network_flows_transmit_bytes_total", counter, "Bytes that the sandbox sent through them.", ofFlows(func(f *exec.Flow) uint64 { return f.TxBytes })},
		{"network_denied_total", counter, "Flows and names that the network's policy refused.", ofNetwork(func(n *lifecycle.NetworkStats, add emit) { known(n.Denied, add) })},
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func usec(n uint64) float64 { return float64(n) / 1e6 }

// known adds a value that this host may not have.
func known(v *uint64, add emit) {
	if v != nil {
		add(float64(*v))
	}
}

func ofRecord(f func(*supervisor.Record, emit)) func(Sandbox, emit) {
	return func(s Sandbox, add emit) {
		if s.Record != nil {
			f(s.Record, add)
		}
	}
}

func ofCgroup(f func(*cgroups.Stats, emit)) func(Sandbox, emit) {
	return func(s Sandbox, add emit) {
		if s.Stats != nil && s.Stats.Cgroup != nil {
			f(s.Stats.Cgroup, add)
		}
	}
}

func ofCPU(f func(*cgroups.CPUStats, emit)) func(Sandbox, emit) {
	return ofCgroup(func(g *cgroups.Stats, add emit) {
		if g.CPU != nil {
			f(g.CPU, add)
		}
	})
}

func ofMemory(f func(*cgroups.MemoryStats, emit)) func(Sandbox, emit) {
	return ofCgroup(func(g *cgroups.Stats, add emit) {
		if g.Memory != nil {
			f(g.Memory, add)
		}
	})
}

func ofPids(f func(*cgroups.PidsStats, emit)) func(Sandbox, emit) {
	return ofCgroup(func(g *cgroups.Stats, add emit) {
		if g.Pids != nil {
			f(g.Pids, add)
		}
	})
}

func ofIO(f func(*cgroups.IOStats, emit)) func(Sandbox, emit) {
	return ofCgroup(func(g *cgroups.Stats, add emit) {
		if g.IO != nil {
			f(g.IO, add)
		}
	})
}

func ofPressure(total func(*cgroups.Pressure) uint64) func(Sandbox, emit) {
	return ofCgroup(func(g *cgroups.Stats, add emit) {
		tell := func(p *cgroups.Pressure, resource string) {
			if p != nil {
				add(usec(total(p)), "resource", resource)
			}
		}
		if g.CPU != nil {
			tell(g.CPU.Pressure, "cpu")
		}
		if g.Memory != nil {
			tell(g.Memory.Pressure, "memory")
		}
		if g.IO != nil {
			tell(g.IO.Pressure, "io")
		}
	})
}

func ofNetwork(f func(*lifecycle.NetworkStats, emit)) func(Sandbox, emit) {
	return func(s Sandbox, add emit) {
		if s.Stats != nil && s.Stats.Network != nil {
			f(s.Stats.Network, add)
		}
	}
}

func ofFlows(value func(*exec.Flow) uint64) func(Sandbox, emit) {
	return ofNetwork(func(n *lifecycle.NetworkStats, add emit) {
		if n.Flows != nil {
			add(float64(value(n.Flows)))
		}
	})
}

func ofInterfaces(value func(netdev.Interface) uint64) func(Sandbox, emit) {
	return ofNetwork(func(n *lifecycle.NetworkStats, add emit) {
		for _, x := range n.Interfaces {
			add(float64(value(x)), "interface", x.Name)
		}
	})
}
