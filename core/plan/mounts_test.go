package plan

import (
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/nucleus-runtime/nucleus/core/job"
	"github.com/nucleus-runtime/nucleus/internal/pathname"
)

// TestMountsAreMadeFromTheTopDown: what lies below another mount is made after
// it, else it would be hidden.
func TestMountsAreMadeFromTheTopDown(t *testing.T) {
	lines := []string{
		`volume "deep" {`, `source = "/deep"`, `target = "/a/b/c"`, `}`,
		`volume "middle" {`, `source = "/middle"`, `target = "/a/b"`, `}`,
		`tmpfs "/a" {}`, `tmpfs "/workspace/tmp" {}`, `tmpfs "/dev/shm" {}`, `tmpfs "/tmp/below" {}`,
		`workspace {`, `path = "/w"`, `}`,
		`context {`, `source = "/c"`, `target = "/a/b/context"`, `}`,
	}
	for name, p := range plansOf(t, lines) {
		for i, m := range p.Mounts {
			for _, later := range p.Mounts[i+1:] {
				if later.Destination != m.Destination && pathname.Within(m.Destination, later.Destination) {
					t.Errorf("%s: %s is made before %s, and hidden by it", name, m.Destination, later.Destination)
				}
			}
		}
		for _, dest := range []string{"/a", "/a/b", "/a/b/c", "/a/b/context", "/workspace", "/workspace/tmp", "/tmp/below", "/proc", "/dev", "/dev/null"} {
			if _, ok := findMount(p, dest); !ok {
				t.Errorf("%s: no mount on %s", name, dest)
			}
		}
	}
}

// plansOf plans a job with all kinds of roots.
func plansOf(t *testing.T, lines []string) map[string]*Plan {
	t.Helper()
	out := map[string]*Plan{}
	for kind, more := range map[string][]string{
		RootToolchain: nil, RootRootfs: {`rootfs {`, `path = "/r"`, `}`}, RootOverlay: {`rootfs {`, `path = "/r"`, `writable = "overlay"`, `}`},
	} {
		p := mustPlan(t, jobOf(t, append(slices.Clone(lines), more...)...), rootV2())
		if p.Root.Kind != kind {
			t.Fatalf("root is %s, want %s", p.Root.Kind, kind)
		}
		out[kind] = p
	}
	return out
}

// TestNothingIsMadeInWhatTheHostLends: a directory of ours that would lie in a
// volume is left out.
func TestNothingIsMadeInWhatTheHostLends(t *testing.T) {
	for _, c := range []struct {
		target string
		gone   []string
	}{
		{"/var", []string{"/var/tmp"}},
		{"/home", []string{"/home/app"}},
		{"/home/app", nil},
		{"/tmp", nil},
		{"/homeless", nil},
	} {
		p := mustPlan(t, jobOf(t, `user = "app"`, `volume "v" {`, `source = "/v"`, `target = "`+c.target+`"`, `}`), rootV2())
		seen := map[string]int{}
		for _, m := range p.Mounts {
			seen[m.Destination]++
			if m.Kind == MountScratch && slices.Contains(c.gone, m.Destination) {
				t.Errorf("%s is made in the volume at %s", m.Destination, c.target)
			}
		}
		if seen[c.target] != 1 {
			t.Errorf("%d mounts on %s", seen[c.target], c.target)
		}
		for _, dest := range []string{"/tmp", "/var/tmp", "/run", "/home/app"} {
			if seen[dest] == 0 && !slices.Contains(c.gone, dest) {
				t.Errorf("with a volume at %s there is no %s", c.target, dest)
			}
		}
	}
}

func TestNestedMounts(t *testing.T) {
	h := rootV2()
	for _, c := range []struct {
		name  string
		lines []string
		want  string // "target in source/rel", in the job's order
	}{
		{"none", []string{`tmpfs "/x" {}`}, ""},
		{"in a volume", []string{`volume "a" {`, `source = "/src"`, `target = "/x"`, `}`, `tmpfs "/x/y/z" {}`}, "/x/y/z in /src/y/z"},
		{"a name that only begins alike", []string{`volume "a" {`, `source = "/src"`, `target = "/x"`, `}`, `tmpfs "/xy" {}`}, ""},
		{"the nearest one counts", []string{`volume "a" {`, `source = "/a"`, `target = "/x"`, `}`, `tmpfs "/x/y" {}`, `tmpfs "/x/y/z" {}`}, "/x/y in /a/y"},
		{"in the workspace", []string{`workspace {`, `path = "/w"`, `}`, `tmpfs "/workspace/t" {}`}, "/workspace/t in /w/t"},
		{"in a workspace's overlay", []string{`workspace {`, `path = "/w"`, `mode = "overlay"`, `}`, `tmpfs "/workspace/t" {}`}, ""},
		{"in the context", []string{`context {`, `source = "/c"`, `target = "/ctx"`, `}`, `tmpfs "/ctx/t" {}`}, "/ctx/t in /c/t"},
		{"in the host's toolchain", []string{`tmpfs "/opt/app" {}`}, "/opt/app in /opt/app"},
		{"in a rootfs, which is composed", []string{`rootfs {`, `path = "/r"`, `}`, `tmpfs "/opt/app" {}`}, ""},
	} {
		var got []string
		for _, n := range NestedMounts(jobOf(t, c.lines...), h) {
			got = append(got, n.Target+" in "+n.Source+"/"+n.Rel)
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
}

func TestToolchainFollowsLinksThatLeaveIt(t *testing.T) {
	p := mustPlan(t, jobOf(t), rootV2())
	if m, _ := findMount(p, "/etc/localtime"); m.Source != "/usr/share/zoneinfo/Etc/UTC" {
		t.Errorf("%+v", m)
	}
	if m, _ := findMount(p, "/bin"); m.Kind != MountLink || m.Source != "usr/bin" {
		t.Errorf("%+v", m)
	}
	for _, m := range p.Mounts {
		if m.Kind == MountToolchain && !m.Has("ro") {
			t.Errorf("%s of the host can be written: %v", m.Destination, m.Options)
		}
	}
}

// TestEveryMountIsHardened: no setuid program and no device anywhere, whatever
// the job says, and what comes from the host is read-only unless it says so.
func TestEveryMountIsHardened(t *testing.T) {
	for name, j := range jobFiles(t) {
		for _, h := range hosts() {
			p, err := Make(j, inputs(h.Host))
			if err != nil {
				continue
			}
			for _, m := range p.Mounts {
				if m.Kind == MountLink {
					continue
				}
				if !m.Has("nosuid") {
					t.Errorf("%s on %s: %s may have setuid programs", name, h.name, m.Destination)
				}
				device := m.Kind == MountDevice || m.Destination == "/dev" || m.Destination == "/dev/pts"
				if !device && !m.Has("nodev") {
					t.Errorf("%s on %s: %s may have devices", name, h.name, m.Destination)
				}
			}
		}
	}
}

// TestProductionHasNothingWritableAndExecutable, by mounts and by Landlock.
func TestProductionHasNothingWritableAndExecutable(t *testing.T) {
	j := base(job.ModeProduction)
	j.Workspace = &job.Workspace{Path: "/w", Mode: "bind-ro", Exec: true}
	j.Volumes = []job.Volume{{Name: "data", Source: "/data", Target: "/data"}, {Name: "tools", Source: "/t", Target: "/tools", ReadOnly: true, Exec: true}}
	j.Tmpfs = []job.Tmpfs{{Target: "/scratch", Mode: 0o700}, {Target: "/tmp"}, {Target: "/var/tmp"}}
	j.Context = &job.Context{Source: "/c", Target: "/ctx", Method: "copy"}
	p, err := Make(j, inputs(rootV2()))
	if err != nil {
		t.Fatal(err)
	}
	executable := 0
	for _, m := range p.Mounts {
		if m.Kind == MountLink || m.Kind == MountDevice {
			continue
		}
		if !m.Has("ro") && !m.Has("noexec") {
			t.Errorf("%s is writable and executable: %v", m.Destination, m.Options)
		}
		if !m.Has("noexec") {
			executable++
		}
	}
	if executable != 2 {
		t.Errorf("%d mounts are executable, want the workspace and the tools", executable)
	}
	for _, r := range p.Landlock.Rules {
		if r.Rights&llExecute != 0 && r.Rights&(llWriteFile|llMakeReg) != 0 {
			t.Errorf("Landlock grants write and execute on %s", r.Path)
		}
	}
}

// TestExecutableTmpfs: unsaid, it is as the default sandbox has it at that place; Landlock grants the same.
func TestExecutableTmpfs(t *testing.T) {
	for block, want := range map[string]bool{
		`tmpfs "/tmp" {}`:                      true,
		`tmpfs "/var/tmp" {}`:                  true,
		`tmpfs "/tmp/below" {}`:                false,
		`tmpfs "/scratch" {}`:                  false,
		`tmpfs "/dev/shm" {}`:                  false,
		"tmpfs \"/tmp\" {\nexec = false\n}":    false,
		"tmpfs \"/scratch\" {\nexec = true\n}": true,
	} {
		p := mustPlan(t, jobOf(t, block), rootV2())
		i := slices.IndexFunc(p.Mounts, func(m Mount) bool { return m.Kind == MountTmpfs })
		at := p.Mounts[i].Destination
		if got := !p.Mounts[i].Has("noexec"); got != want {
			t.Errorf("%s: executable is %t: %v", block, got, p.Mounts[i].Options)
		}
		rule := slices.IndexFunc(p.Landlock.Rules, func(r LandlockRule) bool { return r.Path == at && r.Origin != "" })
		if rule < 0 || (p.Landlock.Rules[rule].Rights&llExecute != 0) != want {
			t.Errorf("%s: Landlock's rules are %+v", block, p.Landlock.Rules)
		}
	}
}

// TestRootsOwnFiles: the rootfs's accounts stay, the sandbox's names are its own.
func TestRootsOwnFiles(t *testing.T) {
	for kind, p := range plansOf(t, []string{`user = "app:staff"`, `hostname = "box"`}) {
		for _, f := range p.Files {
			keep := kind != RootToolchain && (f.Path == "/etc/passwd" || f.Path == "/etc/group")
			if f.Keep != keep || f.Mode != 0o644 {
				t.Errorf("%s: %+v", kind, f)
			}
			for path, want := range map[string]string{
				"/etc/hostname": "box\n", "/etc/hosts": "127.0.0.1\tlocalhost box\n", "/etc/passwd": "app:x:1001:50:", "/etc/group": ":x:50:",
			} {
				if f.Path == path && !strings.Contains(f.Content, want) {
					t.Errorf("%s: %s lacks %q:\n%s", kind, path, want, f.Content)
				}
			}
		}
	}
}

func TestResolver(t *testing.T) {
	resolv := func(lines ...string) string {
		p := mustPlan(t, jobOf(t, lines...), rootV2())
		i := slices.IndexFunc(p.Files, func(f File) bool { return f.Path == "/etc/resolv.conf" })
		return p.Files[i].Content
	}
	if got := resolv(); strings.Contains(got, "nameserver") {
		t.Errorf("without a network: %q", got)
	}
	if got := resolv(`network "host" {}`); got != "nameserver 192.0.2.1\n" {
		t.Errorf("the host's: %q", got)
	}
	if got := resolv(`network "host" {`, `dns = ["10.0.0.1", "fd00::1"]`, `}`); got != "nameserver 10.0.0.1\nnameserver fd00::1\n" {
		t.Errorf("the job's: %q", got)
	}
}

func TestOwnersExistInside(t *testing.T) {
	// A map of one id, which is not 0, has no root.
	p := mustPlan(t, jobOf(t, `user = "app"`), with(asUser))
	for _, m := range p.Mounts {
		if m.Kind != MountScratch {
			continue
		}
		if _, ok := HostID(p.IDs.UIDs, m.UID); !ok {
			t.Errorf("%s is to belong to uid %d, which is not mapped", m.Destination, m.UID)
		}
	}
	if p := mustPlan(t, jobOf(t, `user = "app"`), with()); p.Mounts != nil {
		if m, _ := findMount(p, "/tmp"); m.UID != 0 || m.Mode != 0o1777 {
			t.Errorf("/tmp is %+v", m)
		}
	}
}

func TestSearchPath(t *testing.T) {
	for _, c := range []struct {
		lines []string
		want  string
	}{
		{[]string{`env = { PATH = "/a:/b/" }`, `workdir = "/w"`}, "/a/true /b/true"},
		{[]string{`env = { PATH = "/a::/b" }`, `workdir = "/w"`}, "/a/true /w/true /b/true"},
	} {
		j := jobOf(t, c.lines...)
		j.Command = []string{"true"}
		if got := strings.Join(mustPlan(t, j, rootV2()).ExecPaths, " "); got != c.want {
			t.Errorf("got %s, want %s", got, c.want)
		}
	}
	j := jobOf(t)
	j.Command = []string{"./true"}
	if got := mustPlan(t, j, rootV2()).ExecPaths; len(got) != 1 || got[0] != "./true" {
		t.Errorf("a path is not searched for: %v", got)
	}
}

func TestMountAt(t *testing.T) {
	at := func(dest, source string) Mount {
		return Mount{Mount: specs.Mount{Destination: dest, Source: source}}
	}
	p := Plan{Mounts: []Mount{at("/usr", "toolchain"), at("/work", "outer"), at("/work/in", "inner"), at("/two", "first"), at("/two", "second")}}
	for path, want := range map[string]string{
		"/work": "outer", "/work/x": "outer", "/work/in": "inner", "/work/in/x": "inner", "/work/inner": "outer",
		"/two/x": "second", "/workspace": "", "/": "",
	} {
		got := ""
		if m := p.MountAt(path); m != nil {
			got = m.Source
		}
		if got != want {
			t.Errorf("%s lies on %q, want %q", path, got, want)
		}
	}
}
