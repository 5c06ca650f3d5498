package plan

import (
	"fmt"
	"strings"
	"testing"

	"github.com/nucleus-runtime/nucleus/internal/pathname"
)

// TestLandlockFollowsTheMounts: no rule grants what the mount on its path takes
// away, so that one guard does not depend on the other.
func TestLandlockFollowsTheMounts(t *testing.T) {
	write := uint64(llWriteFile | llTruncate | llMakeReg | llMakeDir | llMakeSym | llMakeSock | llMakeFifo | llRemoveFile | llRemoveDir | llRefer)
	// These hold more than files: /proc has each process's own entries to write
	// (oom_score_adj, and setgroups of a nested sandbox), /dev its devices.
	documented := map[string]uint64{"/dev": llWriteFile | llTruncate}
	for name, j := range jobFiles(t) {
		for _, h := range hosts() {
			p, err := Make(j, inputs(h.Host))
			if err != nil {
				continue
			}
			for _, r := range p.Landlock.Rules {
				if strings.HasPrefix(r.Origin, "security.landlock") {
					continue // the job's own words
				}
				m, mounted := findMount(p, r.Path)
				readOnly, noexec := r.Path == "/" || r.Path == "/etc", r.Path == "/etc"
				if p.Root.Kind == RootOverlay && r.Path == "/" {
					readOnly = false
				}
				if mounted {
					readOnly, noexec = m.Has("ro"), m.Has("noexec")
				}
				where := fmt.Sprintf("%s on %s: %s (%v)", name, h.name, r.Path, r.Access)
				if got := r.Rights & write &^ documented[r.Path]; readOnly && got != 0 {
					t.Errorf("%s grants writing (%#x) to what is read-only", where, got)
				}
				if r.Rights&llExecute != 0 && noexec {
					t.Errorf("%s grants executing what is noexec", where)
				}
				if r.Rights&^p.Landlock.HandledFS != 0 {
					t.Errorf("%s grants %#x, which the ruleset does not handle: the kernel refuses such a rule", where, r.Rights&^p.Landlock.HandledFS)
				}
			}
		}
	}
}

// TestEveryMountOfTheJobIsReachable: what is mounted for the workload, Landlock
// lets it read.
func TestEveryMountOfTheJobIsReachable(t *testing.T) {
	p := mustPlan(t, jobFiles(t)["agent"], rootV2())
	for _, m := range p.Mounts {
		if m.Kind == MountLink || m.Kind == MountDevice || m.Destination == "/dev/pts" {
			continue
		}
		granted := uint64(0)
		for _, r := range p.Landlock.Rules {
			if r.Path != "/" && pathname.Within(m.Destination, r.Path) {
				granted |= r.Rights
			}
		}
		if granted&llReadFile == 0 {
			t.Errorf("%s cannot be read", m.Destination)
		}
		if write := granted&llWriteFile != 0; m.Has("rw") != write && m.Kind != MountFS {
			t.Errorf("%s is mounted %v, writing is granted: %v", m.Destination, m.Options, write)
		}
	}
}

func TestHandledByABI(t *testing.T) {
	for abi, want := range map[int]struct{ fs, scoped uint64 }{
		1: {0x1fff, 0}, 2: {0x3fff, 0}, 3: {0x7fff, 0}, 4: {0x7fff, 0}, 5: {0xffff, 0}, 6: {0xffff, 3}, 7: {0xffff, 3},
	} {
		h := rootV2()
		h.LandlockABI = abi
		l := mustPlan(t, jobOf(t), h).Landlock
		if l.HandledFS != want.fs || l.Scoped != want.scoped || l.HandledNet != 0 || l.ABI != abi {
			t.Errorf("ABI %d: fs %#x, scopes %#x, net %#x", abi, l.HandledFS, l.Scoped, l.HandledNet)
		}
	}
	h := rootV2()
	h.LandlockABI = 0
	if l := mustPlan(t, jobOf(t), h).Landlock; l.ABI != 0 || l.HandledFS != 0 || l.Rules != nil {
		t.Errorf("without Landlock there is a ruleset: %+v", l)
	}
}

func TestReadDoesNotImplyExecute(t *testing.T) {
	p := mustPlan(t, jobOf(t, "security {", "landlock {", "rule {", `paths = ["/x"]`, `access = ["read"]`, "}", "}", "}"), rootV2())
	r := p.Landlock.Rules[len(p.Landlock.Rules)-1]
	if r.Path != "/x" || r.Rights != llReadFile|llReadDir || r.Origin != "security.landlock.rule[0]" {
		t.Errorf("%+v", r)
	}
}

// TestOnlyTheJobsRules: without the defaults, there is not even a rule that
// lists the root (W32).
func TestOnlyTheJobsRules(t *testing.T) {
	p := mustPlan(t, jobOf(t, "security {", "no_default_landlock = true", "landlock {", "rule {", `paths = ["/usr"]`, `access = ["read", "execute"]`, "}", "}", "}"), rootV2())
	if l := p.Landlock; len(l.Rules) != 1 || l.Rules[0].Path != "/usr" || l.HandledFS == 0 {
		t.Errorf("%+v", l)
	}
}

// TestNoRuleOnTheRootOfARootfs: its entries have rules of their own, one on the
// root would take in /proc and /dev (W32).
func TestNoRuleOnTheRootOfARootfs(t *testing.T) {
	p := mustPlan(t, jobOf(t, `rootfs {`, `path = "/r"`, `}`), rootV2())
	entries := false
	for _, r := range p.Landlock.Rules {
		entries = entries || r.Entries
		if r.Path == "/" && !r.Entries && r.Rights&^llReadDir != 0 {
			t.Errorf("%+v", r)
		}
	}
	if !entries {
		t.Error("no rule for the entries of the rootfs")
	}
}

func TestTCPPorts(t *testing.T) {
	tcp := func(lines ...string) Landlock {
		return mustPlan(t, jobOf(t, append(append([]string{"security {", "landlock {", "tcp {"}, lines...), "}", "}", "}")...), rootV2()).Landlock
	}
	both := uint64(llBindTCP | llConnectTCP)
	for _, c := range []struct {
		lines []string
		want  string
	}{
		{nil, "[]"},
		{[]string{"connect = [443, 80]"}, "[{80 2} {443 2}]"},
		{[]string{"bind = [0, 8080]"}, "[{0 1} {8080 1}]"},
		{[]string{"connect = [443]", "bind = [443, 1]"}, "[{1 1} {443 3}]"},
	} {
		if l := tcp(c.lines...); fmt.Sprint(l.Ports) != c.want || l.HandledNet != both {
			t.Errorf("%v: %v, handled %#x; want %s and both ways", c.lines, l.Ports, l.HandledNet, c.want)
		}
	}
}
