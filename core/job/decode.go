package job

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/hcl/v2"

	"github.com/nucleus-runtime/nucleus/core/job/internal/grammar"
	"github.com/nucleus-runtime/nucleus/core/job/internal/hclread"
)

const (
	defaultGrace = 10 * time.Second
	// maxTime keeps sums of durations far from overflow.
	maxTime = 10 * 365 * 24 * time.Hour
)

// Setters for plain fields.

func boolean(dst *bool) func(hclread.Value) {
	return func(v hclread.Value) { *dst, _ = v.Bool() }
}

func enum(dst *string, options ...string) func(hclread.Value) {
	return func(v hclread.Value) { *dst, _ = v.Enum(options...) }
}

func duration(dst *time.Duration, low time.Duration) func(hclread.Value) {
	return func(v hclread.Value) { *dst, _ = v.Duration(low, maxTime) }
}

func size(dst **int64, low int64) func(hclread.Value) {
	return func(v hclread.Value) {
		if n, ok := v.Size(low); ok {
			*dst = &n
		}
	}
}

func octal(dst *uint32, highest uint32, example string) func(hclread.Value) {
	return func(v hclread.Value) {
		s, ok := v.Quoted(example)
		if !ok {
			return
		}
		n, err := strconv.ParseUint(s, 8, 32)
		if err != nil || len(s) < 3 || len(s) > 5 || uint32(n) > highest {
			v.Error("Not octal permissions", fmt.Sprintf("Write three or four octal digits in quotes, at most %04o, for instance %q.", highest, example))
			return
		}
		*dst = uint32(n)
	}
}

// job reads the job block.
func (d *decoder) job(b hclread.Block) {
	j := d.j
	b.Path = ""
	j.Ranges["job"], j.Ranges["name"] = b.DefRange, b.LabelRange
	j.Name = b.Label
	if d.o.Name == "" {
		d.checkName(j.Name, b.LabelRange)
	}
	command := `command = ["/bin/echo", "hello"]`
	if len(d.o.Command) > 0 {
		command = ""
	}
	var umask uint32
	d.r.Read(b, hclread.Schema{
		Attrs: []hclread.Attr{
			{Name: "command", Required: command, Read: d.command},
			{Name: "mode", Read: func(v hclread.Value) {
				s, _ := v.Enum(string(ModeAgent), string(ModeStrictAgent), string(ModeProduction))
				j.Mode = Mode(s)
			}},
			{Name: "allow_degraded", Read: d.allowDegraded},
			{Name: "trust", Read: enum(&j.Trust, "trusted", "untrusted")},
			{Name: "env", Read: d.env},
			{Name: "workdir", Read: d.sandboxPath(&j.Workdir)},
			{Name: "user", Read: d.user},
			{Name: "groups", Read: d.groups},
			{Name: "hostname", Read: d.hostname},
			{Name: "tty", Read: boolean(&j.TTY)},
			{Name: "init", Read: boolean(&j.Init)},
			{Name: "timeout", Read: duration(&j.Timeout, time.Millisecond)},
			{Name: "umask", Read: func(v hclread.Value) {
				before := len(d.r.Diags)
				if octal(&umask, 0o777, "0022")(v); len(d.r.Diags) == before {
					j.Umask = &umask
				}
			}},
			{Name: "sd_notify", Read: boolean(&j.SDNotify)},
			{Name: "socket_activation", Read: boolean(&j.SocketActivation)},
		},
		Blocks: []hclread.Nested{
			{Name: "stop", Read: d.stop},
			{Name: "rootfs", Read: d.rootfs},
			{Name: "namespaces", Read: d.namespaces},
			{Name: "resources", Read: d.resources},
			{Name: "context", Read: d.context},
			{Name: "workspace", Read: d.workspace},
			{Name: "volume", Label: "a name", Many: true, Unique: true, Read: d.volume},
			{Name: "tmpfs", Label: "its path in the sandbox", Many: true, Unique: true, Read: d.tmpfs},
			{Name: "network", Label: `"none", "host" or a network plugin`, Read: d.network},
			{Name: "secret", Label: "a name", Many: true, Unique: true, Read: d.secret},
			{Name: "runtime", Label: "a runtime plugin", Read: d.runtime},
			{Name: "security", Read: d.security},
			{Name: "readiness", Read: d.readiness},
			{Name: "health", Read: d.health},
			{Name: "restart", Read: d.restart},
			{Name: "depends_on", Many: true, Read: d.dependsOn},
			{Name: "hook", Label: "a phase", Many: true, Read: d.hook},
			{Name: "plugin_hook", Label: "a hooks plugin", Many: true, Unique: true, Read: d.pluginHook},
		},
		Hints: jobHints(),
	})
}

const volumeHint = `Write a volume "name" block with source = "/srv/data" and target = "/data".`

// jobHints are for the words of other tools.
func jobHints() map[string]string {
	return map[string]string{
		"depends_on":  `Write a block for each job: depends_on { job = "db" }.`,
		"args":        `Write program and arguments as one list: command = ["/bin/echo", "hello"].`,
		"cmd":         `Write command = ["/bin/echo", "hello"].`,
		"entrypoint":  `Write command = ["/bin/echo", "hello"].`,
		"image":       `Images are not pulled. Unpack it and write rootfs { path = "./rootfs" }.`,
		"environment": `Write env = { NAME = "value" }.`,
		"working_dir": `Write workdir = "/srv".`,
		"cwd":         `Write workdir = "/srv".`,
		"memory":      `Write resources { memory = "512MiB" }.`,
		"cpus":        "Write resources { cpus = 1.5 }.",
		"pids":        "Write resources { pids = 256 }.",
		"ports":       `Write a publish block in the network block, with host = "127.0.0.1:8080" and container = 8080.`,
		"dns":         `Write it in a network block: network "netbridge" { dns = ["10.0.0.1"] }.`,
		"egress":      `Write it in a network block, for instance in network "netuserspace" { ... }.`,
		"mount":       volumeHint,
		"mounts":      volumeHint,
		"bind":        volumeHint,
		"binds":       volumeHint,
		"privileged":  "Nothing makes a job that: keep the capabilities that it needs with security { capabilities { keep = [...] } }.",
		"cap_add":     `Write security { capabilities { keep = ["NET_BIND_SERVICE"] } }.`,
		"cap_drop":    "No capability is kept that security { capabilities { keep = [...] } } does not name.",
		"read_only":   `The root is. What is to be written goes to /tmp, a tmpfs, a workspace, a volume, or rootfs { writable = "overlay" }.`,
		"plugin":      "Plugins are set up in the host configuration: /etc/nucleus/nucleus.hcl.",
		"seccomp":     "Write it in the security block: security { ... }.",
		"landlock":    "Write it in the security block: security { ... }.",
	}
}

func (d *decoder) command(v hclread.Value) {
	es, ok := v.Elements()
	if !ok {
		return
	}
	argv, ok := v.Strings()
	if !ok || len(d.o.Command) > 0 {
		return
	}
	d.j.Command = argv
	if len(argv) == 0 {
		v.Error("Empty command", `Name a program to run: command = ["/bin/echo", "hello"].`)
		return
	}
	d.elements("command", es)
	d.checkCommand(argv, func(i int) hcl.Range { return es[i].Range() })
}

// elements records where each element of a list stands, for errors about one.
func (d *decoder) elements(path string, es []hclread.Value) {
	for i, e := range es {
		d.j.Ranges[path+"["+strconv.Itoa(i)+"]"] = e.Range()
	}
}

// checkName reports a name that is not one.
func (d *decoder) checkName(s string, at hcl.Range) bool {
	problem := grammar.NameProblem(s)
	if problem != "" {
		d.r.Error(at, "Not a valid name", problem)
	}
	return problem == ""
}

// checkEnvName reports a name that no environment variable may have.
func (d *decoder) checkEnvName(name string, at hcl.Range) bool {
	summary, detail := grammar.EnvProblem(name)
	if summary != "" {
		d.r.Error(at, summary, detail)
	}
	return summary == ""
}

func hasNUL(s string) bool { return strings.IndexByte(s, 0) >= 0 }

// maxArg is the kernel's MAX_ARG_STRLEN less its NUL: a longer argument or
// environment entry makes execve(2) fail.
const maxArg = 32*4096 - 1

func (d *decoder) checkCommand(argv []string, at func(int) hcl.Range) {
	for i, a := range argv {
		switch {
		case i == 0 && a == "":
			d.r.Error(at(i), "Empty command", `The first element is the program: command = ["/bin/echo", "hello"].`)
		case hasNUL(a):
			d.r.Error(at(i), "NUL byte in command", "A program can't receive a NUL byte in an argument: remove it.")
		case len(a) > maxArg:
			d.r.Error(at(i), "Argument too long", fmt.Sprintf("The kernel takes at most %d bytes in one argument. Pass the data in a file.", maxArg))
		}
	}
}

func (d *decoder) allowDegraded(v hclread.Value) {
	es, ok := v.Elements()
	if !ok {
		return
	}
	names, ok := v.Strings()
	if !ok {
		return
	}
	d.j.AllowDegraded = names
	d.elements("allow_degraded", es)
	seen := map[string]bool{}
	for i, n := range names {
		switch {
		case !grammar.IsFeatureName(n):
			es[i].Error("Not a feature name", fmt.Sprintf("%s is no name of a protection. Use the names that nucleus doctor prints, for instance \"landlock\" or \"cgroup.memory\".", hclread.Quote(n)))
		case !slices.Contains(grammar.Features(), n):
			remedy := " Use the names that nucleus doctor prints."
			if s := hclread.Suggest(n, grammar.Features()); s != "" {
				remedy = fmt.Sprintf(" Did you mean %q?", s)
			}
			es[i].Error("Unknown protection", fmt.Sprintf("There is no protection %s.%s", hclread.Quote(n), remedy))
		case seen[n]:
			es[i].Error("Name given twice", fmt.Sprintf("%s is in the list already: remove one.", hclread.Quote(n)))
		}
		seen[n] = true
	}
}

func (d *decoder) env(v hclread.Value) { d.j.Env = d.environment(v) }

// environment reads the variables of a program.
func (d *decoder) environment(v hclread.Value) map[string]string {
	entries, ok := v.Entries()
	if !ok {
		return nil
	}
	env := make(map[string]string, len(entries))
	for _, e := range entries {
		if !d.checkEnvName(e.Key, e.KeyRange) || e.Value.Cty.IsNull() {
			continue // null leaves a variable out, as with attributes
		}
		s, ok := e.Value.String()
		switch {
		case !ok:
		case hasNUL(s):
			e.Value.Error("NUL byte in environment", "A program can't receive a NUL byte in its environment: remove it.")
		case len(e.Key)+1+len(s) > maxArg:
			e.Value.Error("Value too long", fmt.Sprintf("The kernel takes at most %d bytes in one variable. Pass the data in a file.", maxArg))
		default:
			env[e.Key] = s
		}
	}
	return env
}

func (d *decoder) user(v hclread.Value) {
	s, ok := v.String()
	if !ok {
		return
	}
	if !grammar.IsUser(s) {
		v.Error("Not a user", fmt.Sprintf("%s is no user: write a name or a number, with a group if need be: \"app\", \"1000\", \"1000:1000\" or \"app:staff\".", hclread.Quote(s)))
		return
	}
	d.j.User = s
}

func (d *decoder) groups(v hclread.Value) {
	es, ok := v.Elements()
	if !ok {
		return
	}
	groups, ok := v.Strings()
	if !ok {
		return
	}
	for i, g := range groups {
		if !grammar.IsAccount(g) {
			es[i].Error("Not a group", fmt.Sprintf("%s is no group: write a name or a number, for instance groups = [2000].", hclread.Quote(g)))
		}
	}
	d.j.Groups = groups
	d.elements("groups", es)
}

func (d *decoder) hostname(v hclread.Value) {
	s, ok := v.String()
	if !ok {
		return
	}
	if !grammar.IsHostname(s) {
		v.Error("Not a host name", fmt.Sprintf("%s is no host name: write letters, digits and hyphens in labels of at most 63, at most 64 in all (RFC 1123).", hclread.Quote(s)))
		return
	}
	d.j.Hostname = s
}

func (d *decoder) stop(b hclread.Block) {
	s := &d.j.Stop
	d.r.Read(b, hclread.Schema{Attrs: []hclread.Attr{
		{Name: "signal", Read: func(v hclread.Value) { s.Signal = d.signal(v) }},
		{Name: "grace", Read: duration(&s.Grace, 0)},
	}, Hints: map[string]string{"timeout": `Write grace = "10s".`}})
}

func (d *decoder) signal(v hclread.Value) string {
	s, ok := v.String()
	if !ok {
		return ""
	}
	name, ok := grammar.CanonicalSignal(s)
	switch {
	case !ok:
		v.Error("Unknown signal", fmt.Sprintf("There is no signal %s.%s", hclread.Quote(s), hclread.SuggestOr(name, grammar.SignalNames())))
	case name == "SIGSTOP":
		v.Error("Signal can't end a program", `SIGSTOP freezes a program and never ends it: write signal = "SIGTERM".`)
	default:
		return name
	}
	return ""
}

func (d *decoder) namespaces(b hclread.Block) {
	n := &d.j.Namespaces
	d.r.Read(b, hclread.Schema{Attrs: []hclread.Attr{
		{Name: "user", Read: enum(&n.User, "auto", "host", "keep-id", "map")},
		{Name: "uid_map", Read: func(v hclread.Value) { n.UIDMap = d.idMap(v); d.uidMap = true }},
		{Name: "gid_map", Read: func(v hclread.Value) { n.GIDMap = d.idMap(v); d.gidMap = true }},
		{Name: "time", Read: boolean(&n.Time)},
	}})
}
