package plan

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/nucleus-runtime/nucleus/core/host/fact"
)

const gvisor = `runtime "gvisor" {}`

// What would not hold under a runtime plugin is refused at its line, and nothing else is.
func TestRuntimeRefusals(t *testing.T) {
	user := func(h *fact.Host) { asUser(h) }
	for _, c := range []struct {
		name, line, at, want string
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
		{name: "a TCP probe without a network", line: `readiness { tcp = 80 }`, at: "job.hcl:4", want: "no connection can be made from outside"},
		{name: "an HTTP probe without a network", line: `health { http = "http://127.0.0.1/" }`, at: "job.hcl:4", want: "no connection can be made from outside"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := rootV2()
			if c.host != nil {
				c.host(&h)
			}
			_, err := Make(jobOf(t, gvisor, c.line), inputs(h))
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
