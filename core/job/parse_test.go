package job

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hcldec"
	"github.com/zclconf/go-cty/cty"
)

const hello = `job "hello" {
  command = ["/bin/echo", "hello from nucleus"]
}
`

func mustParse(t *testing.T, src string, o Options) *Job {
	t.Helper()
	if o.Dir == "" {
		o.Dir = "/home/me/web"
	}
	j, diags := Parse("job.hcl", []byte(src), o)
	if diags.HasErrors() {
		t.Fatalf("%s", describe(src, diags))
	}
	return j
}

// TestFull compares everything that the full example says with what was read.
func TestFull(t *testing.T) {
	src, err := os.ReadFile("../../examples/full.hcl")
	if err != nil {
		t.Fatal(err)
	}
	j := mustParse(t, string(src), Options{Job: "web"})
	spec := func(name string) hcldec.Spec {
		return hcldec.ObjectSpec{name: &hcldec.AttrSpec{Name: name, Type: cty.String, Required: true}}
	}
	for _, c := range []struct {
		body       hcl.Body
		name, want string
	}{
		{j.Network.Config, "subnet", "10.42.0.0/24"},
		{j.Secrets[0].Config, "path", "/etc/secrets/db"},
		{j.Runtime.Config, "platform", "systrap"},
		{j.PluginHooks[0].Config, "endpoint", "unix:///run/audit.sock"},
	} {
		v, diags := hcldec.Decode(c.body, spec(c.name), j.EvalContext())
		if diags.HasErrors() || v.GetAttr(c.name).AsString() != c.want {
			t.Errorf("config %s = %#v, %v", c.name, v, diags)
		}
	}
	j.Network.Config, j.Secrets[0].Config, j.Runtime.Config, j.PluginHooks[0].Config = nil, nil, nil, nil

	where := map[string]string{}
	for path := range j.Ranges {
		where[path] = j.Where(path)
	}
	ranges := j.Ranges
	j.Ranges = nil
	got, err := json.MarshalIndent(map[string]any{"job": j, "where": where}, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	j.Ranges = ranges
	const golden = "testdata/full.golden"
	if *update {
		if err := os.WriteFile(golden, append(got, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if string(want) != string(got)+"\n" {
		t.Errorf("the job differs from %s; look at: go test ./core/job -run Full -update && git diff\n%s", golden, got)
	}
}

func TestSmallestHasTheDefaults(t *testing.T) {
	fromFile := mustParse(t, hello, Options{})
	fromArgs, diags := FromCommand("hello", []string{"/bin/echo", "hello from nucleus"}, "/home/me/web")
	if len(diags) > 0 {
		t.Fatal(diags)
	}
	for _, j := range []*Job{fromFile, fromArgs} {
		if j.Mode != ModeAgent || !j.Init || j.Stop != (Stop{"SIGTERM", 10 * time.Second}) || j.Hostname != "hello" ||
			j.Network.Backend != "none" || j.Namespaces.User != "auto" || j.Umask != nil || j.Workdir != "" ||
			j.Resources.Pids != nil || j.Rootfs != nil || j.Runtime != nil {
			t.Errorf("defaults: %+v", j)
		}
	}
	if fromFile.File != "job.hcl" || fromArgs.File != "" {
		t.Errorf("files %q and %q", fromFile.File, fromArgs.File)
	}
	a, b := *fromFile, *fromArgs
	a.File, a.Ranges, b.Ranges = "", nil, nil
	ja, _ := json.Marshal(a)
	jb, _ := json.Marshal(b)
	if string(ja) != string(jb) {
		t.Errorf("the job of a file and of arguments differ:\n%s\n%s", ja, jb)
	}
}

func TestFromCommand(t *testing.T) {
	for _, tc := range []struct {
		argv []string
		want string
	}{
		{[]string{"/usr/bin/Python3.11"}, "python3-11"},
		{[]string{"./_"}, "job"},
		{[]string{"/" + strings.Repeat("x", 70)}, strings.Repeat("x", 63)},
	} {
		j, diags := FromCommand("", tc.argv, "/w")
		if diags.HasErrors() || j.Name != tc.want {
			t.Errorf("FromCommand(%q) is called %v, want %q: %v", tc.argv, j, tc.want, diags)
		}
	}
	for name, bad := range map[string]struct {
		argv []string
		name string
		dir  string
	}{
		"no command":   {nil, "", "/w"},
		"empty":        {[]string{""}, "", "/w"},
		"NUL":          {[]string{"/bin/a\x00b"}, "", "/w"},
		"too long":     {[]string{"/bin/a", strings.Repeat("x", 1<<17)}, "", "/w"},
		"bad name":     {[]string{"/bin/a"}, "A b", "/w"},
		"relative dir": {[]string{"/bin/a"}, "", "w"},
	} {
		j, diags := FromCommand(bad.name, bad.argv, bad.dir)
		if j != nil || !diags.HasErrors() {
			t.Errorf("%s: %v, %v", name, j, diags)
		}
		for _, d := range diags {
			if d.Subject != nil {
				t.Errorf("%s: %q points to a line, there is none", name, d.Summary)
			}
		}
	}
}

func TestOverrides(t *testing.T) {
	j := mustParse(t, hello, Options{Command: []string{"/bin/true"}, Name: "other"})
	if j.Name != "other" || j.Hostname != "other" || len(j.Command) != 1 || j.Command[0] != "/bin/true" {
		t.Errorf("%+v", j)
	}
	for _, path := range []string{"command", "command[0]", "name"} {
		if w := j.Where(path); w != "command line" {
			t.Errorf("Where(%q) = %q", path, w)
		}
	}
	// A job without a command is completed by one; a bad name is replaced.
	j = mustParse(t, "job \"Bad Name\" {\n}\n", Options{Command: []string{"/bin/true"}, Name: "good"})
	if j.Name != "good" {
		t.Errorf("name %q", j.Name)
	}
}

func TestDefaultsOfTheHost(t *testing.T) {
	memory, pids := int64(64<<20), int64(77)
	o := Options{Defaults: Defaults{
		Mode: ModeStrictAgent, Memory: &memory, CPUs: 2, Pids: &pids,
		Ranges: map[string]hcl.Range{"resources.pids": {Filename: "/etc/n.hcl", Start: hcl.Pos{Line: 3, Column: 5}}},
	}}
	j := mustParse(t, hello, o)
	if j.Mode != ModeStrictAgent || *j.Resources.Memory != memory || j.Resources.CPUs != 2 || *j.Resources.Pids != pids {
		t.Errorf("%+v", j.Resources)
	}
	if w := j.Where("resources.pids"); w != "/etc/n.hcl:3,5" {
		t.Errorf("Where = %q", w)
	}
	j = mustParse(t, `job "x" {
  command = ["/bin/true"]
  mode    = "agent"
  resources {
    memory = "1GiB"
    pids   = 5
  }
}`, o)
	if j.Mode != ModeAgent || *j.Resources.Memory != 1<<30 || j.Resources.CPUs != 2 || *j.Resources.Pids != 5 {
		t.Errorf("the job's own values are not kept: %+v", j.Resources)
	}
	// What the host demands is checked like what the file says.
	_, diags := Parse("job.hcl", []byte(hello), Options{Dir: "/w", Defaults: Defaults{Mode: ModeProduction}})
	if !diags.HasErrors() {
		t.Error("production by default asks for nothing")
	}
}

func TestWhere(t *testing.T) {
	j := mustParse(t, `job "x" {
  command = ["/bin/true"]
  resources {
    memory = "64MiB"
  }
  volume "da-ta" {
    source = "/srv/data"
    target = "/data"
  }
}`, Options{})
	for path, want := range map[string]string{
		"name":                   "job.hcl:1,5",
		"command":                "job.hcl:2,3",
		"command[0]":             "job.hcl:2,14",
		"command[7]":             "job.hcl:2,3",
		"resources":              "job.hcl:3,3",
		"resources.memory":       "job.hcl:4,5",
		"resources.pids":         "job.hcl:3,3",
		`volume["da-ta"]`:        "job.hcl:6,3",
		`volume["da-ta"].source`: "job.hcl:7,5",
		`volume["da-ta"].create`: "job.hcl:6,3",
		`volume["a.b"].create`:   "job.hcl:1,1",
		"timeout":                "job.hcl:1,1",
	} {
		if got := j.Where(path); got != want {
			t.Errorf("Where(%q) = %q, want %q", path, got, want)
		}
	}
}

func TestNullMeansNotSaid(t *testing.T) {
	j := mustParse(t, `variable "m" {
  type    = string
  default = null
}
job "x" {
  command = ["/bin/true"]
  workdir = null
  env     = { A = null, B = "b" }
  resources {
    memory = var.m
  }
}`, Options{})
	if j.Workdir != "" || j.Resources.Memory != nil || len(j.Env) != 1 {
		t.Errorf("%+v", j)
	}
	if _, ok := j.Ranges["resources.memory"]; ok {
		t.Error("a null is recorded as given")
	}
}

func TestJobsThatAreInOrder(t *testing.T) {
	for name, src := range map[string]string{
		"a mount below another":    "volume \"a\" {\n source = \"/srv/a\"\n target = \"/a\"\n}\ntmpfs \"/a/cache\" {}\n",
		"a larger /dev/shm":        "tmpfs \"/dev/shm\" {\n size = \"1GiB\"\n}\n",
		"a tmpfs on /run":          "tmpfs \"/run\" {}\nsecret \"a\" {\n provider = \"file\"\n}\n",
		"network none by name":     "network \"none\" {}\n",
		"a resolver on host":       "network \"host\" {\n dns = [\"10.0.0.1\"]\n}\n",
		"egress that denies all":   "network \"netbridge\" {\n egress {}\n}\n",
		"same port tcp and udp":    "network \"n\" {\n publish {\n host = 53\n container = 5353\n}\n publish {\n host = 53\n container = 5353\n protocol = \"udp\"\n}\n}\n",
		"notify without init":      "init = false\nreadiness {\n notify = true\n}\n",
		"untrusted on gvisor":      "trust = \"untrusted\"\nruntime \"gvisor\" {}\n",
		"native by name":           "runtime \"native\" {}\n",
		"signal by number":         "stop {\n signal = 15\n}\n",
		"uid as a number":          "user = 1000\n",
		"hooks of one phase":       "hook \"poststop\" {\n command = [\"/a\"]\n}\nhook \"poststop\" {\n command = [\"/b\"]\n}\n",
		"degraded by name":         "allow_degraded = [\"landlock\", \"cgroup.memory\"]\n",
		"workspace with job above": "workspace {\n path = \"./sub\"\n}\n",
	} {
		_, diags := Parse("job.hcl", []byte("job \"x\" {\ncommand = [\"/bin/true\"]\n"+src+"}\n"), Options{Dir: "/home/me"})
		if len(diags) > 0 {
			t.Errorf("%s: %v", name, diags)
		}
	}
}

func TestSignals(t *testing.T) {
	for in, want := range map[string]string{
		"SIGTERM": "SIGTERM", "term": "SIGTERM", "SigUsr1": "SIGUSR1", "9": "SIGKILL", "SIGRTMIN+3": "SIGRTMIN+3", "rtmin": "SIGRTMIN",
		"0": "", "32": "", "SIGRTMIN+31": "", "SIGRTMIN-1": "", "SIGRTMIN+": "", "SIG": "", "": "",
	} {
		j, diags := Parse("job.hcl", []byte("job \"x\" {\ncommand = [\"/bin/true\"]\nstop {\nsignal = \""+in+"\"\n}\n}\n"), Options{Dir: "/"})
		if (want == "") != diags.HasErrors() || j != nil && j.Stop.Signal != want {
			t.Errorf("signal %q: %+v, %v", in, j, diags)
		}
	}
}

func TestRlimits(t *testing.T) {
	j := mustParse(t, `job "x" {
  command = ["/bin/true"]
  resources {
    rlimit "nofile" {
      soft = 10
    }
    rlimit "core" {
      hard = "1MiB"
    }
    rlimit "memlock" {
      soft = 0
      hard = "unlimited"
    }
  }
}`, Options{})
	want := []Rlimit{{"nofile", 10, 10}, {"core", 1 << 20, 1 << 20}, {"memlock", 0, 1<<64 - 1}}
	for i, w := range want {
		if j.Resources.Rlimits[i] != w {
			t.Errorf("rlimit %d = %v, want %v", i, j.Resources.Rlimits[i], w)
		}
	}
}
