package plan

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/nucleus-runtime/nucleus/core/host/fact"
)

func with(change ...func(*fact.Host)) fact.Host {
	h := rootV2()
	for _, c := range change {
		c(&h)
	}
	return h
}

func abi(n int) func(*fact.Host) { return func(h *fact.Host) { h.LandlockABI = n } }

// TestErrors has every reason for which a job is refused. Each names the line
// that asked for it and says what helps.
func TestErrors(t *testing.T) {
	strict := `mode = "strict-agent"`
	for _, c := range []struct {
		name    string
		host    fact.Host
		lines   []string // the first is line 3
		where   string
		message string
		hint    string
	}{
		{"network plugin", with(), []string{`network "netbridge" {}`}, "job.hcl:3", `network plugin "netbridge"`, "remove it"},
		{"runtime plugin", with(), []string{`runtime "gvisor" {}`}, "job.hcl:3", `runtime plugin "gvisor"`, "remove it"},
		{"plugin hook", with(), []string{`plugin_hook "trail" {}`}, "job.hcl:3", `plugin_hook "trail"`, "remove it"},
		{"a mount over the socket for notifications", with(), []string{`sd_notify = true`, `tmpfs "/run/nucleus" {}`}, "job.hcl:4", "where the socket for notifications is", "choose another target"},
		{"a mount in its place", with(), []string{`readiness {`, `notify = true`, `}`, `volume "x" {`, `source = "/srv"`, `target = "/run/nucleus/notify"`, `}`}, "job.hcl:6", "where the socket for notifications is", "choose another target"},
		{"hook without an init", with(), []string{`init = false`, `hook "startContainer" {`, `command = ["/bin/true"]`, `}`}, "job.hcl:4", "needs an init", "remove init = false"},
		{"trace on an old kernel", with(func(h *fact.Host) { h.Kernel = "5.4.1" }), []string{`security {`, `seccomp {`, `mode = "trace"`, `}`, `}`}, "job.hcl:5", "seccomp trace mode cannot be had: Linux 5.4.1", "boot Linux 5.6"},
		{"trace without notifications", with(func(h *fact.Host) {
			h.Features = map[string]fact.Feature{"seccomp.notify": {State: fact.Unavailable, Why: "refused by a filter", Remedy: "leave the container"}}
		}), []string{`security {`, `seccomp {`, `mode = "trace"`, `}`, `}`}, "job.hcl:5", "refused by a filter", "leave the container"},

		{"groups unknown", with(), []string{`groups = ["nobody-here"]`}, "job.hcl:3", `group "nobody-here" is not in the host's /etc/group`, "numeric gid"},
		{"user unknown", with(), []string{`user = "nobody-here"`}, "job.hcl:3", `user "nobody-here" is not in the host's /etc/passwd`, "root, bad, app"},
		{"user unknown in a rootfs", with(), []string{`user = "x"`, `rootfs {`, `path = "/r"`, `}`}, "job.hcl:3", "the rootfs's /etc/passwd", "numeric uid"},
		{"group unknown", with(), []string{`user = "0:nogroup-here"`}, "job.hcl:3", `group "nogroup-here"`, "numeric gid"},
		{"supplementary group unknown", with(), []string{``, `groups = ["wheel-of-nowhere"]`}, "job.hcl:4", `group "wheel-of-nowhere"`, "numeric gid"},
		{"user not mapped", with(), []string{`user = "70000:0"`}, "job.hcl:3", "user 70000 is not mapped", "choose an id that is mapped"},
		{"group not mapped", with(), []string{`user = "0:70000"`}, "job.hcl:3", "group 70000 is not mapped", "choose an id that is mapped"},
		{"supplementary group not mapped", with(), []string{`groups = [70000]`}, "job.hcl:3", "supplementary group 70000 is not mapped", "choose an id that is mapped"},
		{"groups need a range", with(asUser), []string{`groups = [5]`}, "job.hcl:3", "supplementary groups cannot be set", "usermod --add-subgids"},
		{"maps need helpers", with(asUser), []string{`namespaces {`, `user = "map"`, `uid_map = ["0:100000:65536"]`, `gid_map = ["0:100000:65536"]`, `}`}, "job.hcl:4", "newuidmap", "apt-get install uidmap"},
		{"a map of foreign uids", with(asUser, withSubID), []string{`namespaces {`, `user = "map"`, `uid_map = ["0:165530:10"]`, `gid_map = ["0:1000:1", "1:100000:65536"]`, `}`}, "job.hcl:5", "the host's uids 165530-165539 are not all yours to map (yours: 1000, 100000-165535)", "/etc/subuid"},
		{"a map of foreign gids", with(asUser, withSubID), []string{`namespaces {`, `user = "map"`, `uid_map = ["0:100000:65536"]`, `gid_map = ["0:1000:2"]`, `}`}, "job.hcl:6", "the host's gids 1000-1001 are not all yours to map", "/etc/subgid"},
		{"user host needs root", with(asUser), []string{`namespaces {`, `user = "host"`, `}`}, "job.hcl:4", "needs root", `user = "auto"`},
		{"the host's root kept", with(), []string{strict, `namespaces {`, `user = "keep-id"`, `}`}, "job.hcl:5", "the host's uid 0 may not be mapped", `user = "auto"`},
		{"the host's root mapped", with(), []string{strict, `namespaces {`, `user = "map"`, `uid_map = ["0:100000:65536"]`, `gid_map = ["0:0:1"]`, `}`}, "job.hcl:7", "the host's gid 0 may not be mapped", "range that nobody"},
		{"no time namespaces", with(func(h *fact.Host) { h.Kernel = "5.4.1" }), []string{`namespaces {`, `time = true`, `}`}, "job.hcl:4", "no time namespaces", "CONFIG_TIME_NS"},

		{"memory without controller", with(noCgroups), []string{`resources {`, `memory = "64MiB"`, `}`}, "job.hcl:4", "memory limit cannot be enforced: no group is delegated", "Delegate=yes"},
		{"memory_high without controller", with(noCgroups), []string{`resources {`, `memory_high = "64MiB"`, `}`}, "job.hcl:4", "memory limit cannot be enforced", "Delegate=yes"},
		{"memory_high on v1", with(func(h *fact.Host) { h.Cgroup.Layout = "hybrid" }), []string{`resources {`, `memory = "64MiB"`, `memory_high = "32MiB"`, `}`}, "job.hcl:5", "memory_high cannot be enforced: it is a limit of cgroup v2", "or leave out memory_high"},
		{"no swap by default, not accounted for", with(noSwapAccounts), []string{`mode = "strict-agent"`, `resources {`, `memory = "64MiB"`, `}`}, "job.hcl:5", `protection "cgroup.swap" cannot be had: no memory.memsw`, "boot with swapaccount=1"},
		{"swap on a kernel without", with(noSwap), []string{`resources {`, `memory = "64MiB"`, `swap = "1MiB"`, `}`}, "job.hcl:5", "swap limit cannot be enforced: this kernel has no swap", "leave out swap"},
		{"swap that is not accounted for", with(noSwapAccounts), []string{`resources {`, `memory = "64MiB"`, `swap = 0`, `}`}, "job.hcl:5", "swap limit cannot be enforced: no memory.memsw", "swapaccount=1, or leave out swap"},
		{"cpus without controller", with(noCgroups), []string{`resources {`, `cpus = 1`, `}`}, "job.hcl:4", "cpu limit cannot be enforced", "Delegate=yes"},
		{"cpu_weight without controller", with(noCgroups), []string{`resources {`, `cpu_weight = 1`, `}`}, "job.hcl:4", "cpu limit cannot be enforced", "Delegate=yes"},
		{"pids without controller", with(noCgroups), []string{`resources {`, `pids = 100`, `}`}, "job.hcl:4", "pids limit cannot be enforced", "Delegate=yes"},
		{"io without controller", with(noCgroups), []string{`resources {`, `io "/dev/vda" {`, `read_bps = 1`, `}`, `}`}, "job.hcl:3", "io limit cannot be enforced", "Delegate=yes"},
		{"io without device", with(), []string{`resources {`, `io "/dev/nothing" {`, `read_bps = 1`, `}`, `}`}, "job.hcl:4", `"/dev/nothing" is not a block device`, "lsblk -p"},
		{"io of one device twice", with(), []string{`resources {`, `io "/dev/vda" {`, `read_bps = 1`, `}`, `io "254:0" {`, `read_bps = 2`, `}`, `}`}, "job.hcl:7", "are one block device (254:0)", "one io block"},
		{"a group is required", with(noCgroups), []string{strict}, "job.hcl:3", "mode strict-agent needs a control group", "Delegate=yes"},
		{"pids below the least", with(), []string{`resources {`, `pids = 3`, `}`}, "job.hcl:4", "pids = 3 is less than", "pids = 16"},

		{"Landlock rules without Landlock", with(abi(0)), []string{`security {`, `landlock {`, `rule {`, `paths = ["/x"]`, `access = ["read"]`, `}`, `}`, `}`}, "job.hcl:4", "cannot be enforced", "boot a kernel"},
		{"TCP rules without Landlock", with(abi(0)), []string{`security {`, `landlock {`, `tcp {`, `}`, `}`, `}`}, "job.hcl:4", "cannot be enforced", "boot a kernel"},
		{"TCP rules before ABI 4", with(abi(3)), []string{`security {`, `landlock {`, `tcp {`, `}`, `}`, `}`}, "job.hcl:5", "Landlock ABI 3, they need ABI 4", "6.7"},
		{"readiness past the TCP rules", with(), []string{`readiness {`, `tcp = 80`, `}`, `security {`, `landlock {`, `tcp {`, `connect = [443]`, `bind = [80]`, `}`, `}`, `}`}, "job.hcl:4", "no connect to TCP port 80", "connect = [80, 443]"},
		{"health past the TCP rules", with(), []string{`health {`, ``, `http = "http://[::1]:8080"`, `}`, `security {`, `landlock {`, `tcp {`, `}`, `}`, `}`}, "job.hcl:5", "no connect to TCP port 8080", "connect = [8080]"},
		{"lockdown too weak", with(), []string{`security {`, `lockdown = "confidentiality"`, `}`}, "job.hcl:4", `"confidentiality" is required, this host's is integrity`, "lockdown=confidentiality"},
		{"lockdown unknown", with(func(h *fact.Host) { h.Lockdown = "" }), []string{`security {`, `lockdown = "integrity"`, `}`}, "job.hcl:4", "unknown (no /sys/kernel/security/lockdown)", "lockdown=integrity"},
		{"no Landlock in a strict mode", with(abi(0)), []string{strict}, "job.hcl:3", `protection "landlock" cannot be had`, "lsm=landlock"},
		{"no Landlock scopes in a strict mode", with(abi(5)), []string{strict}, "job.hcl:3", `protection "landlock.scope" cannot be had`, "6.12"},

		{"an overlay in an overlay", with(), []string{`rootfs {`, `path = "/r"`, `writable = "overlay"`, `}`, `workspace {`, `path = "/w"`, `mode = "overlay"`, `}`}, "job.hcl:9", "a workspace overlay inside a writable rootfs overlay is not supported", "bind-ro"},
		{"no mount point in a volume", with(), []string{`volume "a" {`, `source = "/a"`, `target = "/x"`, `}`, `volume "b" {`, `source = "/b"`, `target = "/x/missing"`, `}`}, "job.hcl:7", `no mount point for "/x/missing"`, "mkdir -p /a/missing"},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := inputs(c.host)
			in.Runtimes = false
			in.Missing = map[string]bool{"/x/missing": true}
			p, err := Make(jobOf(t, c.lines...), in)
			var errs Errors
			if !errors.As(err, &errs) {
				t.Fatalf("error is %v", err)
			}
			if p != nil {
				t.Error("there is a plan beside the error")
			}
			if len(errs) != 1 {
				t.Errorf("%d errors: %v", len(errs), err)
			}
			e := errs[0]
			if e.Where != c.where || !strings.Contains(e.Msg, c.message) || !strings.Contains(e.Hint, c.hint) {
				t.Errorf("got %s: %s\n\thint: %s\nwant %s: …%s…\n\thint: …%s…", e.Where, e.Msg, e.Hint, c.where, c.message, c.hint)
			}
			if !strings.HasPrefix(err.Error(), c.where+": ") {
				t.Errorf("the text is %q", err)
			}
		})
	}
}

// TestErrorsOfProduction need a job that is otherwise in order.
func TestErrorsOfProduction(t *testing.T) {
	const digest = `digest = "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"`
	base := func(rootfs, more string) []string {
		return []string{`mode = "production"`, `resources {`, `memory = "64MiB"`, `cpus = 1`, `pids = 64`, `}`, `rootfs {`, `path = "/r"`, digest, rootfs, `}`, more}
	}
	if _, err := Make(jobOf(t, base("", "")...), inputs(rootV2())); err != nil {
		t.Fatalf("the base is refused: %v", err)
	}
	for name, c := range map[string]struct {
		lines []string
		want  string
	}{
		"a writable root": {base(`writable = "overlay"`, ""), "job.hcl:12: a root that is writable and executable is refused"},
		"no Landlock":     {base("", ""), `job.hcl:3: protection "landlock" cannot be had`},
	} {
		in := inputs(rootV2())
		if name == "no Landlock" {
			in.Host.LandlockABI = 0
		}
		_, err := Make(jobOf(t, c.lines...), in)
		if err == nil || !strings.HasPrefix(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAllErrorsAreCollected(t *testing.T) {
	h := with(noCgroups, abi(0))
	_, err := Make(jobOf(t, `user = "nobody-here"`, `resources {`, `memory = "64MiB"`, `cpus = 2`, `}`, `security {`, `lockdown = "confidentiality"`, `}`), inputs(h))
	var errs Errors
	if !errors.As(err, &errs) || len(errs) != 4 {
		t.Fatalf("%v", err)
	}
	var lines []string
	for _, e := range errs {
		lines = append(lines, e.Where)
		if e.Hint == "" {
			t.Errorf("%q has no hint", e.Msg)
		}
	}
	if got := fmt.Sprint(lines); got != "[job.hcl:3 job.hcl:5 job.hcl:6 job.hcl:9]" {
		t.Error(got)
	}
}
