package plan

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/nucleus-runtime/nucleus/core/host/fact"
)

func resourcesText(p *Plan) string {
	r := p.Resources
	s := ""
	if r.Memory != nil {
		s += fmt.Sprintf("memory %d swap %d ", *r.Memory.Limit, *r.Memory.Swap)
	}
	if r.CPU != nil && r.CPU.Quota != nil {
		s += fmt.Sprintf("cpu %d/%d ", *r.CPU.Quota, *r.CPU.Period)
	}
	for _, k := range []string{"memory.high", "cpu.weight"} {
		if v, ok := r.Unified[k]; ok {
			s += k + " " + v + " "
		}
	}
	return s + fmt.Sprintf("pids %d", p.Pids())
}

func TestResources(t *testing.T) {
	for _, c := range []struct {
		line     string
		want     string
		required bool
		size     int64
	}{
		{``, "pids 512", false, gib},
		{`memory = "16MiB"`, "memory 16777216 swap 16777216 pids 512", true, gib},
		{"memory = \"64MiB\"\nswap = \"1MiB\"", "memory 67108864 swap 68157440 pids 512", true, gib},
		{`memory = "8GiB"`, "memory 8589934592 swap 8589934592 pids 512", true, 4 * gib},
		{"memory = \"8GiB\"\nrootfs_size = \"1MiB\"", "memory 8589934592 swap 8589934592 pids 512", true, 1 << 20},
		{`memory_high = "64MiB"`, "memory.high 67108864 pids 512", true, gib},
		{`cpus = 0.01`, "cpu 1000/100000 pids 512", true, gib},
		{`cpus = 0.29`, "cpu 29000/100000 pids 512", true, gib},
		{`cpus = 1.5`, "cpu 150000/100000 pids 512", true, gib},
		{`cpu_weight = 10000`, "cpu.weight 10000 pids 512", true, gib},
		{`pids = 16`, "pids 16", true, gib},
		{`rootfs_size = "1MiB"`, "pids 512", false, 1 << 20},
	} {
		p := mustPlan(t, jobOf(t, "resources {", c.line, "}"), rootV2())
		if got := resourcesText(p); got != c.want || p.Cgroup.Required != c.required || p.Root.Size != c.size {
			t.Errorf("%s\ngot  %s, required %v, size %d\nwant %s, required %v, size %d", c.line, got, p.Cgroup.Required, p.Root.Size, c.want, c.required, c.size)
		}
	}
}

// Without an account of swap a sandbox has no limit of it, and its plan says so; a
// kernel without swap needs none.
func TestMemoryWithoutAccountsOfSwap(t *testing.T) {
	for want, host := range map[string]fact.Host{
		`swap +not limited +nothing: this kernel does not `: with(noSwapAccounts),
		`swap +0 +this kernel has no swap`:                  with(noSwap),
	} {
		p := mustPlan(t, jobOf(t, "resources {", `memory = "64MiB"`, "}"), host)
		if m := p.Resources.Memory; *m.Limit != 64<<20 || m.Swap != nil {
			t.Errorf("limit %d, swap %v", *m.Limit, m.Swap)
		}
		var b strings.Builder
		if err := Explain(&b, p); err != nil {
			t.Fatal(err)
		}
		if !regexp.MustCompile(`(?m)^cgroups +` + want).MatchString(b.String()) {
			t.Errorf("want %s, the plan says of swap:\n%s", want, b.String())
		}
	}
}

func TestIOLimits(t *testing.T) {
	p := mustPlan(t, jobOf(t, "resources {", `io "/dev/vda" {`, `read_bps = "1MiB"`, `write_iops = 7`, `}`, `io "8:16" {`, `write_bps = 5`, `read_iops = 6`, `}`, "}"), rootV2())
	b := p.Resources.BlockIO
	throttle := func(major, minor int64, rate uint64) specs.LinuxThrottleDevice {
		d := specs.LinuxThrottleDevice{Rate: rate}
		d.Major, d.Minor = major, minor
		return d
	}
	for name, x := range map[string]struct {
		got  []specs.LinuxThrottleDevice
		want specs.LinuxThrottleDevice
	}{
		"read_bps": {b.ThrottleReadBpsDevice, throttle(254, 0, 1<<20)}, "write_bps": {b.ThrottleWriteBpsDevice, throttle(8, 16, 5)},
		"read_iops": {b.ThrottleReadIOPSDevice, throttle(8, 16, 6)}, "write_iops": {b.ThrottleWriteIOPSDevice, throttle(254, 0, 7)},
	} {
		if len(x.got) != 1 || x.got[0] != x.want {
			t.Errorf("%s is %v, want %v", name, x.got, x.want)
		}
	}
	if !p.Cgroup.Required {
		t.Error("the limit would not be missed")
	}
}

// TestPidsPerUserNamespace: without groups, RLIMIT_NPROC counts the sandbox's
// processes alone from Linux 5.14 on; before it would count all of the user's (W19).
func TestPidsPerUserNamespace(t *testing.T) {
	for kernel, want := range map[string]string{"6.18.1": "512", "5.14.0": "512", "5.13.9": "", "5.10.3": ""} {
		h := with(asUser, noCgroups)
		h.Kernel = kernel
		p := mustPlan(t, jobOf(t), h)
		got := ""
		for _, r := range p.Process.Rlimits {
			if r.Type == "RLIMIT_NPROC" {
				got = fmt.Sprint(r.Hard)
			}
		}
		if got != want || p.Cgroup.Wanted {
			t.Errorf("%s: RLIMIT_NPROC is %q, want %q; a group is wanted: %v", kernel, got, want, p.Cgroup.Wanted)
		}
	}
}

func TestRlimits(t *testing.T) {
	for _, c := range []struct{ lines, want string }{
		{"", "[{RLIMIT_CORE 1 1}]"},
		{"rlimit \"core\" {\nsoft = 5\nhard = 9\n}", "[{RLIMIT_CORE 9 5}]"},
		{"rlimit \"nofile\" {\nsoft = 1\nhard = \"unlimited\"\n}", "[{RLIMIT_NOFILE 18446744073709551615 1} {RLIMIT_CORE 1 1}]"},
	} {
		p := mustPlan(t, jobOf(t, "resources {", c.lines, "}"), rootV2())
		if got := fmt.Sprint(p.Process.Rlimits); got != c.want {
			t.Errorf("%s\ngot %s, want %s", c.lines, got, c.want)
		}
	}
}
