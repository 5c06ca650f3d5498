package plan

import (
	"cmp"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/nucleus-runtime/nucleus/core/host/fact"
)

const (
	gvisor = `runtime "gvisor" {}`
	saves  = `runtime "gvisor" { checkpoint = true }`
)

// What would not hold under a runtime plugin is refused at its line, and nothing else is.
func TestRuntimeRefusals(t *testing.T) {
	user := func(h *fact.Host) { asUser(h) }
	for _, c := range []struct {
		name, line, at, want string
		runtime              string // "" for one without checkpoints
		host                 func(*fact.Host)
	}{
		{name: "plain"},
		{name: "volumes and limits", line: "resources {\n memory = \"64MiB\"\n}\nvolume \"v\" {\n source = \"/v\"\n target = \"/v\"\n}"},
		{name: "exec probes", line: `health { exec = ["/bin/true"] }`},
		{name: "user in a range", line: `user = "1000"`},
		{name: "no user namespace", line: `namespaces { user = "host" }`, at: "job.hcl:4", want: "runs in a user namespace"},
		{name: "one id that is not 0", line: `user = "1000"`, host: user, at: "job.hcl", want: "needs id 0"},
		{name: "no init", line: "init = false", at: "job.hcl:4", want: "needs an init"},
		{name: "a seccomp profile", line: "security {\n seccomp {\n allow = [\"bpf\"]\n }\n}", at: "job.hcl:5", want: "do not reach the kernel's filter"},
		{name: "Landlock rules", line: "security {\n landlock {\n rule {\n paths = [\"/x\"]\n access = [\"read\"]\n }\n }\n}", at: "job.hcl:5", want: "do not reach the kernel's Landlock"},
		{name: "Landlock for TCP", line: "security {\n landlock {\n tcp {\n connect = [80]\n }\n }\n}", at: "job.hcl:5", want: "do not reach the kernel's Landlock"},
		{name: "sockets of the host", line: "socket_activation = true", at: "job.hcl:4", want: "does not pass sockets"},
		{name: "a startContainer hook", line: "hook \"startContainer\" {\n command = [\"/bin/true\"]\n}", at: "job.hcl:4", want: "init cannot run it so"},
		{name: "a hook on the host", line: "hook \"poststart\" {\n command = [\"/bin/true\"]\n}"},
		{name: "no room for streams", line: "resources {\n rlimit \"nofile\" {\n soft = 2\n hard = 9\n }\n}", at: "job.hcl:5", want: "standard streams under this limit"},
		{name: "room for streams", line: "resources {\n rlimit \"nofile\" { soft = 3 }\n}"},
		{name: "checkpoints", runtime: saves},
		{name: "checkpoints with a workspace", runtime: saves, line: "workspace { path = \"/w\" }\ntmpfs \"/t\" {}"},
		{name: "checkpoints and a secret", runtime: saves, line: "secret \"s\" {\n provider = \"env\"\n env = \"S\"\n}", at: "job.hcl:4", want: "this secret's value too"},
		{name: "checkpoints of a writable root", runtime: saves, line: "rootfs {\n path = \"/r\"\n writable = \"overlay\"\n}", at: "job.hcl:6", want: "writes to its root"},
		{name: "checkpoints of an overlay", runtime: saves, line: "workspace {\n path = \"/w\"\n mode = \"overlay\"\n}", at: "job.hcl:6", want: "an overlay of its workspace"},
		{name: "checkpoints of what notifies", runtime: saves, line: "readiness { notify = true }", at: "job.hcl:4", want: "has notified somebody else"},
		{name: "a TCP probe without a network", line: `readiness { tcp = 80 }`, at: "job.hcl:4", want: "no connection can be made from outside"},
		{name: "an HTTP probe without a network", line: `health { http = "http://127.0.0.1/" }`, at: "job.hcl:4", want: "no connection can be made from outside"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := rootV2()
			if c.host != nil {
				c.host(&h)
			}
			in := inputs(h)
			in.Secrets = true
			_, err := Make(jobOf(t, cmp.Or(c.runtime, gvisor), c.line), in)
			if c.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			var errs Errors
			if !errors.As(err, &errs) || !slices.ContainsFunc(errs, func(e *Error) bool {
				return strings.Contains(e.Msg, c.want) && strings.HasPrefix(e.Where, c.at) && e.Hint != ""
			}) {
				t.Errorf("%v, want %q at %s with a hint", err, c.want, c.at)
			}
		})
	}
}

// The program has the system calls, and no file rights that would keep it from mounting;
// the workload's are its own.
func TestRuntimePolicy(t *testing.T) {
	p := mustPlan(t, jobOf(t, gvisor, "security {\n capabilities {\n keep = [\"CAP_NET_BIND_SERVICE\"]\n }\n}"), rootV2())
	if p.Seccomp.Source != "runtime" || p.Landlock.HandledFS != 0 || p.Landlock.HandledNet != 0 || p.Landlock.Scoped == 0 || len(p.Landlock.Ports) != 0 {
		t.Errorf("seccomp %+v, landlock %+v", p.Seccomp, p.Landlock)
	}
	if !slices.Equal(p.Process.Capabilities.Bounding, []string{"CAP_NET_BIND_SERVICE"}) || slices.Contains(p.Runtime.Capabilities, "CAP_SYS_MODULE") {
		t.Errorf("capabilities %v of the workload, %v of the program", p.Process.Capabilities.Bounding, p.Runtime.Capabilities)
	}
}

// What a sandbox writes to memory is in an image if it is the program's kernel's memory,
// with the owner, the mode and the bound that it would have had.
func TestWhatIsSavedIsThePrograms(t *testing.T) {
	lines := "user = \"1000\"\nresources {\n rootfs_size = \"4GiB\"\n}\ntmpfs \"/t\" { size = \"1MiB\" }\nvolume \"v\" {\n source = \"/host\"\n target = \"/data\"\n}"
	p := mustPlan(t, jobOf(t, saves, lines), rootV2())
	want := map[string][]string{
		"/tmp": {"mode=1777", "size=4294967296", "uid=0", "gid=0", "nosuid", "nodev"}, "/run": {"mode=0755", "uid=1000", "gid=1000"},
		"/t": {"size=1048576", "uid=1000", "noexec"}, "/data": nil,
	}
	for _, m := range p.Bundle().Mounts {
		options, ok := want[m.Destination]
		delete(want, m.Destination)
		if !ok {
			continue
		}
		if own := m.Type == "tmpfs" && !strings.HasPrefix(m.Source, "/"); own != (options != nil) {
			t.Errorf("%s is of type %s, from %s", m.Destination, m.Type, m.Source)
		}
		for _, o := range options {
			if !slices.Contains(m.Options, o) {
				t.Errorf("%s has %v, and not %s", m.Destination, m.Options, o)
			}
		}
	}
	if len(want) > 0 {
		t.Errorf("there is no %v", want)
	}
	// It gets a directory of the host's to write to, when it saves.
	if !p.Seccomp.NoSetID {
		t.Error("set-ID bits are not refused")
	}
}

// The bundle's sources all lie in the workload's root; nothing of it names the host.
func TestBundle(t *testing.T) {
	for _, writable := range []string{"none", "overlay"} {
		p := mustPlan(t, jobOf(t, gvisor, "rootfs {\n path = \"/r\"\n writable = \""+writable+"\"\n}", "volume \"v\" {\n source = \"/host\"\n target = \"/data\"\n read_only = true\n}", "hook \"poststart\" {\n command = [\"/bin/true\"]\n}"), rootV2())
		s := p.Bundle()
		if s.Root.Path != RuntimeRoot || s.Root.Readonly != (writable == "none") || s.Hooks != nil || len(s.Linux.Namespaces) != 0 || len(s.Linux.UIDMappings) != 0 || s.Linux.CgroupsPath != "" {
			t.Errorf("%s: root %+v, hooks %v, linux %+v", writable, s.Root, s.Hooks, s.Linux)
		}
		var dests []string
		for _, m := range s.Mounts {
			dests = append(dests, m.Destination)
			if m.Type == "bind" && m.Source != RuntimeRoot+m.Destination {
				t.Errorf("%s: %s comes from %s", writable, m.Destination, m.Source)
			}
			if m.Destination == "/data" && !slices.Contains(m.Options, "ro") {
				t.Errorf("%s: /data has %v", writable, m.Options)
			}
		}
		if !slices.Contains(dests, "/data") || !slices.Contains(dests, "/proc") || slices.Contains(dests, "/tmp") != (writable == "none") {
			t.Errorf("%s: mounts %v", writable, dests)
		}
	}
}
