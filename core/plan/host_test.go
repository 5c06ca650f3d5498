package plan

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/nucleus-runtime/nucleus/core/host/fact"
	"github.com/nucleus-runtime/nucleus/core/job"
)

// namedHost is a made-up host, so that no plan here depends on this one.
type namedHost struct {
	name string
	fact.Host
}

func controllers(state fact.State, why string) map[string]fact.Feature {
	out := map[string]fact.Feature{}
	for _, c := range []string{"memory", "cpu", "pids", "io"} {
		out[c] = fact.Feature{Name: "cgroup." + c, State: state, Why: why}
	}
	return out
}

// rootV2 is the base that the other hosts differ from.
func rootV2() fact.Host {
	return fact.Host{
		Kernel: "6.18.1", Arch: "amd64", UserName: "root", Privileged: true,
		FreeSubID: fact.IDRange{Start: 524288, Count: 65536}, LandlockABI: 7, Lockdown: "integrity",
		NewUIDMap: "/usr/bin/newuidmap", NewGIDMap: "/usr/bin/newgidmap", CPUs: 4,
		Cgroup: fact.Cgroup{Layout: "v2", Controllers: controllers(fact.Available, "")},
		Toolchain: []fact.HostPath{
			{Path: "/usr", Dir: true},
			{Path: "/bin", Link: "usr/bin"},
			{Path: "/opt", Dir: true},
			{Path: "/etc/alternatives", Dir: true},
			{Path: "/etc/localtime", Source: "/usr/share/zoneinfo/Etc/UTC"},
		},
		Features: map[string]fact.Feature{"timens": {Name: "timens", State: fact.Available}},
	}
}

func hostWith(name string, change func(*fact.Host)) namedHost {
	h := rootV2()
	change(&h)
	return namedHost{name, h}
}

func asUser(h *fact.Host) {
	h.EUID, h.EGID, h.UserName, h.Privileged = 1000, 1000, "me", false
}

func withSubID(h *fact.Host) {
	h.SubUID, h.SubGID = []fact.IDRange{{Start: 100000, Count: 65536}}, []fact.IDRange{{Start: 100000, Count: 65536}}
}

func noSwapAccounts(h *fact.Host) {
	h.Cgroup.Controllers["swap"] = fact.Feature{Name: "cgroup.swap", State: fact.Unavailable, Why: "no memory.memsw.limit_in_bytes", Remedy: "boot with swapaccount=1"}
}

func noSwap(h *fact.Host) {
	h.Cgroup.Controllers["swap"] = fact.Feature{Name: "cgroup.swap", State: fact.Unavailable, Why: "this kernel has no swap", Remedy: "leave out swap"}
	h.Cgroup.SwapAbsent = true
}

func noCgroups(h *fact.Host) {
	h.Cgroup = fact.Cgroup{Layout: "v2", Controllers: controllers(fact.Unavailable, ""), Why: "no group is delegated to you", Remedy: "systemd-run --user --scope -p Delegate=yes nucleus run -config job.hcl"}
}

func hosts() []namedHost {
	hs := []namedHost{
		{"root-v2", rootV2()},
		hostWith("root-hybrid", func(h *fact.Host) { h.Cgroup.Layout = "hybrid"; h.Kernel = "5.10.200" }),
		hostWith("user", asUser),
		hostWith("user-subid", func(h *fact.Host) { asUser(h); withSubID(h) }),
		hostWith("user-5.10-no-cgroup", func(h *fact.Host) { asUser(h); noCgroups(h); h.Kernel, h.LandlockABI = "5.10.200", 0 }),
		hostWith("user-6.18-no-cgroup", func(h *fact.Host) { asUser(h); noCgroups(h) }),
		hostWith("root-in-container", func(h *fact.Host) { h.UserNS, h.Privileged = true, false }),
		hostWith("no-lockdown", func(h *fact.Host) { h.Lockdown = "" }),
		hostWith("confidentiality", func(h *fact.Host) { h.Lockdown = "confidentiality" }),
		hostWith("no-swap-accounts", noSwapAccounts),
		hostWith("no-timens", func(h *fact.Host) { h.Features = nil; h.Kernel = "5.4.0" }),
	}
	for _, abi := range []int{0, 1, 3, 4, 6} {
		hs = append(hs, hostWith("landlock-"+string(rune('0'+abi)), func(h *fact.Host) { h.LandlockABI = abi }))
	}
	return hs
}

const passwd = "root:x:0:0:root:/root:/bin/sh\n# comment\nbad:x:notanumber:0:::\napp:x:1001:1002:App:/srv/app:/bin/sh\nme:x:1000:1000::/home/me:/bin/sh\nlost:x:1003:1003::../../x:/bin/sh\n"

const group = "root:x:0:\nstaff:x:50:\napp:x:1002:\n"

func inputs(h fact.Host) Inputs {
	return Inputs{
		Host: h, Accounts: Accounts{Passwd: []byte(passwd), Group: []byte(group)}, HostResolv: []byte("nameserver 192.0.2.1\n"), Term: "xterm-256color",
		Secrets: true, Runtimes: true,
		Devices: map[string]string{"/dev/vda": "254:0", "/dev/disk/by-id/vda": "254:0"},
	}
}

func parse(t testing.TB, name, src string) *job.Job {
	t.Helper()
	j, diags := job.Parse(name, []byte(src), job.Options{Dir: "/jobs"})
	if diags.HasErrors() {
		t.Fatalf("%s: %v", name, diags)
	}
	return j
}

// jobOf wraps lines of a job block. The first of them is line 3.
func jobOf(t testing.TB, lines ...string) *job.Job {
	t.Helper()
	return parse(t, "job.hcl", "job \"x\" {\n  command = [\"/bin/true\"]\n"+strings.Join(lines, "\n")+"\n}\n")
}

func mustPlan(t testing.TB, j *job.Job, h fact.Host) *Plan {
	t.Helper()
	p, err := Make(j, inputs(h))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func jobFiles(t testing.TB) map[string]*job.Job {
	t.Helper()
	entries, err := os.ReadDir("testdata/jobs")
	if err != nil || len(entries) == 0 {
		t.Fatalf("no jobs: %v", err)
	}
	out := map[string]*job.Job{}
	for _, e := range entries {
		src, err := os.ReadFile("testdata/jobs/" + e.Name())
		if err != nil {
			t.Fatal(err)
		}
		out[strings.TrimSuffix(e.Name(), ".hcl")] = parse(t, e.Name(), string(src))
	}
	return out
}

func findMount(p *Plan, dest string) (Mount, bool) {
	// The last on a path is the one that is seen.
	for _, m := range slices.Backward(p.Mounts) {
		if m.Destination == dest {
			return m, true
		}
	}
	return Mount{}, false
}
