package plan

import (
	"errors"
	"strings"
	"testing"

	"github.com/nucleus-runtime/nucleus/core/host/fact"
	"github.com/nucleus-runtime/nucleus/core/job"
)

// base is a job that every mode takes on the base host, so that a change in one
// place shows what that place does.
func base(mode job.Mode) *job.Job {
	memory, pids := int64(64<<20), int64(64)
	return &job.Job{
		Name: "x", Mode: mode, Command: []string{"/bin/true"}, Init: true,
		Rootfs:     &job.Rootfs{Path: "/r", Writable: "none", Digest: "sha256:" + strings.Repeat("0", 64)},
		Namespaces: job.Namespaces{User: "auto"}, Network: job.Network{Backend: "none"},
		Resources: job.Resources{Memory: &memory, CPUs: 1, Pids: &pids},
	}
}

// TestModes is the table of what must hold for a run to start, by mode. "" is
// accepted, "warn" is accepted and named as degraded.
func TestModes(t *testing.T) {
	noLandlock := abi(0)
	for _, c := range []struct {
		name                      string
		job                       func(*job.Job)
		host                      func(*fact.Host)
		agent, strict, production string
	}{
		{name: "nothing", agent: "", strict: "", production: ""},
		{
			name: "a control that the job asks for cannot be had",
			job:  func(j *job.Job) { j.Security.LandlockTCP = &job.LandlockTCP{} }, host: abi(3),
			agent: "ABI 4", strict: "ABI 4", production: "ABI 4",
		},
		{name: "a default protection cannot be had", host: noLandlock, agent: "warn", strict: "cannot be had", production: "cannot be had"},
		{
			name: "which the job allows", job: func(j *job.Job) { j.AllowDegraded = []string{"landlock"} }, host: noLandlock,
			agent: "warn", strict: "allow_degraded is refused", production: "allow_degraded is refused",
		},
		{
			name: "allow_degraded for what this host has", job: func(j *job.Job) { j.AllowDegraded = []string{"landlock"} },
			agent: "", strict: "allow_degraded is refused", production: "allow_degraded is refused",
		},
		{
			name: "the host's network", job: func(j *job.Job) { j.Network.Backend = "host" },
			agent: "", strict: `network "host" is refused`, production: `network "host" is refused`,
		},
		{name: "no account of swap", host: noSwapAccounts, agent: "warn", strict: `"cgroup.swap" cannot be had`, production: `"cgroup.swap" cannot be had`},
		{
			name: "which the job allows", job: func(j *job.Job) { j.AllowDegraded = []string{"cgroup.swap"} }, host: noSwapAccounts,
			agent: "warn", strict: "allow_degraded is refused", production: "allow_degraded is refused",
		},
		{
			name: "no account of swap, and no limit of memory", host: noSwapAccounts, job: func(j *job.Job) { j.Resources.Memory = nil },
			agent: "", strict: "", production: "needs limits of memory, cpus and pids",
		},
		{name: "no swap at all", host: noSwap},
		{
			name: "no control groups, and no limit asked", host: noCgroups,
			job:   func(j *job.Job) { j.Resources = job.Resources{} },
			agent: "", strict: "needs a control group", production: "needs a control group",
		},
		{name: "no control groups, and limits asked", host: noCgroups, agent: "memory limit cannot be enforced", strict: "memory limit cannot be enforced", production: "memory limit cannot be enforced"},
		{
			name: "no limits", job: func(j *job.Job) { j.Resources = job.Resources{} },
			agent: "", strict: "", production: "needs limits of memory, cpus and pids",
		},
		{
			name: "no limit of cpus", job: func(j *job.Job) { j.Resources.CPUs = 0 },
			agent: "", strict: "", production: "needs limits of memory, cpus and pids",
		},
		{
			name: "no user namespace", job: func(j *job.Job) { j.Namespaces.User = "host" },
			agent: "", strict: `user = "host" is refused`, production: `user = "host" is refused`,
		},
		{
			name: "the host's root in the map", job: func(j *job.Job) { j.Namespaces.User = "keep-id" },
			agent: "", strict: "uid 0 may not be mapped", production: "uid 0 may not be mapped",
		},
		{name: "the host's toolchain", job: func(j *job.Job) { j.Rootfs = nil }, agent: "", strict: "", production: "needs a rootfs"},
		{name: "a writable root", job: func(j *job.Job) { j.Rootfs.Writable = "overlay" }, agent: "", strict: "", production: "writable and executable"},
		{
			name: "a workspace that is writable and executable", job: func(j *job.Job) { j.Workspace = &job.Workspace{Path: "/w", Mode: "bind-rw", Exec: true} },
			agent: "", strict: "", production: "writable and executable",
		},
		{
			name: "a volume that is writable and executable", job: func(j *job.Job) { j.Volumes = []job.Volume{{Name: "v", Source: "/v", Target: "/v", Exec: true}} },
			agent: "", strict: "", production: "writable and executable",
		},
		{
			name: "a tmpfs that is executable", job: func(j *job.Job) { j.Tmpfs = []job.Tmpfs{{Target: "/x", Exec: new(true)}} },
			agent: "", strict: "", production: "writable and executable",
		},
		{name: "a tmpfs on /tmp", job: func(j *job.Job) { j.Tmpfs = []job.Tmpfs{{Target: "/tmp"}} }},
		{
			name: "a Landlock rule that grants both",
			job: func(j *job.Job) {
				j.Security.Landlock = []job.LandlockRule{{Paths: []string{"/x"}, Access: []string{"write", "execute"}}}
			},
			agent: "", strict: "", production: "grants write and execute",
		},
		{
			name: "a dangerous capability", job: func(j *job.Job) { j.Security.Keep = []string{"CAP_SYS_ADMIN"} },
			agent: "", strict: "", production: "danger list", // the decoder refuses it in strict-agent
		},
		{name: "a harmless capability", job: func(j *job.Job) { j.Security.Keep = []string{"CAP_NET_BIND_SERVICE"} }},
		{
			name: "lockdown asked and weaker", job: func(j *job.Job) { j.Security.Lockdown = "confidentiality" },
			agent: "is required", strict: "is required", production: "is required",
		},
		{name: "lockdown not asked and off", host: func(h *fact.Host) { h.Lockdown = "none" }},
	} {
		t.Run(c.name, func(t *testing.T) {
			for mode, want := range map[job.Mode]string{job.ModeAgent: c.agent, job.ModeStrictAgent: c.strict, job.ModeProduction: c.production} {
				j, h := base(mode), rootV2()
				if c.job != nil {
					c.job(j)
				}
				if c.host != nil {
					c.host(&h)
				}
				p, err := Make(j, inputs(h))
				switch want {
				case "", "warn":
					if err != nil {
						t.Errorf("%s: %v", mode, err)
					} else if (len(p.Degraded) > 0) != (want == "warn") {
						t.Errorf("%s: degraded is %v", mode, p.Degraded)
					}
				default:
					if err == nil || !strings.Contains(err.Error(), want) {
						t.Errorf("%s: %v, want …%s…", mode, err, want)
					}
				}
			}
		})
	}
}

func TestProductionHidesOtherProcesses(t *testing.T) {
	for mode, want := range map[job.Mode]bool{job.ModeAgent: false, job.ModeStrictAgent: false, job.ModeProduction: true} {
		p, err := Make(base(mode), inputs(rootV2()))
		if err != nil {
			t.Fatal(err)
		}
		if m, _ := findMount(p, "/proc"); m.Has("hidepid=invisible") != want {
			t.Errorf("%s: /proc is %v", mode, m.Options)
		}
	}
}

// TestTrust: untrusted code needs a runtime that does not share the kernel.
func TestTrust(t *testing.T) {
	j := base(job.ModeAgent)
	j.Trust = "untrusted"
	_, err := Make(j, inputs(rootV2()))
	var errs Errors
	if !errors.As(err, &errs) || len(errs) != 1 || errs[0].Hint != `write: runtime "gvisor" {}` {
		t.Errorf("%v", err)
	}
}

func TestDegradedNames(t *testing.T) {
	for _, c := range []struct {
		name  string
		host  fact.Host
		lines []string
		want  string
	}{
		{"all there", with(), nil, ""},
		{"no Landlock", with(abi(0)), nil, "landlock"},
		{"no scopes", with(abi(5)), nil, "landlock.scope"},
		{"ABI 6 has scopes", with(abi(6)), nil, ""},
		{"accepted", with(abi(0)), []string{`allow_degraded = ["landlock"]`}, "landlock(accepted)"},
		{"another one accepted", with(abi(0)), []string{`allow_degraded = ["landlock.scope"]`}, "landlock"},
		{"no groups, but a limit per user namespace", with(noCgroups), nil, ""},
		{"no groups and an old kernel", with(noCgroups, func(h *fact.Host) { h.Kernel = "5.10.3" }), nil, "cgroup.pids"},
		{"no groups and no user namespace", with(noCgroups), []string{`namespaces {`, `user = "host"`, `}`}, "cgroup.pids"},
		{"no account of swap", with(noSwapAccounts), []string{`resources {`, `memory = "64MiB"`, `}`}, "cgroup.swap"},
		{"accepted", with(noSwapAccounts), []string{`allow_degraded = ["cgroup.swap"]`, `resources {`, `memory = "64MiB"`, `}`}, "cgroup.swap(accepted)"},
		{"no account of swap, and no limit of memory", with(noSwapAccounts), nil, ""},
		{"no swap", with(noSwap), []string{`resources {`, `memory = "64MiB"`, `}`}, ""},
		{"two at once", with(noCgroups, abi(0), func(h *fact.Host) { h.Kernel = "5.10.3" }), []string{`allow_degraded = ["landlock", "cgroup.pids"]`}, "cgroup.pids(accepted) landlock(accepted)"},
	} {
		p := mustPlan(t, jobOf(t, c.lines...), c.host)
		var got []string
		for _, d := range p.Degraded {
			if d.Why == "" || d.Remedy == "" {
				t.Errorf("%s: %+v says not why, or not what helps", c.name, d)
			}
			n := d.Name
			if d.Accepted {
				n += "(accepted)"
			}
			got = append(got, n)
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s: got %v, want %s", c.name, got, c.want)
		}
	}
}
