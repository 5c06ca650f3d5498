package plan

import (
	"fmt"
	"maps"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/hcl/v2"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/nucleus-runtime/nucleus/core/host/fact"
	"github.com/nucleus-runtime/nucleus/core/job"
)

// MaxHookTimeout is the longest that a job may let a sandbox wait for one call to a
// hooks plugin.
const MaxHookTimeout = 5 * time.Minute

// DefaultPids is the limit of processes and threads of a job that names none.
const DefaultPids = 512

// Error is a reason why a job cannot be run on this host.
type Error struct {
	// Where is "file:line" of the part of the job that asked for it, "" for a default.
	Where string
	Msg   string
	Hint  string
}

func (e *Error) Error() string {
	if e.Where != "" {
		return e.Where + ": " + e.Msg
	}
	return e.Msg
}

// Errors collects all reasons, so that they are mended in one go.
type Errors []*Error

func (e Errors) Error() string {
	s := make([]string, len(e))
	for i, x := range e {
		s[i] = x.Error()
	}
	return strings.Join(s, "\n")
}

// maker builds one plan.
type maker struct {
	j    *job.Job
	in   Inputs
	h    fact.Host
	p    *Plan
	errs Errors
}

// Make resolves a job. The error is of type Errors.
func Make(j *job.Job, in Inputs) (*Plan, error) {
	m := &maker{j: j, in: in, h: in.Host, p: &Plan{
		Version: SchemaVersion, Name: j.Name, File: j.File, Mode: j.Mode, AllowDegraded: j.AllowDegraded, Trust: j.Trust, Init: j.Init, Timeout: j.Timeout, Stop: j.Stop, SocketActivation: j.SocketActivation,
	}}
	m.origins()
	m.unsupported()
	id := m.identity()
	m.idMaps(id)
	m.namespaces()
	m.runtime()
	m.process(id)
	m.root()
	m.mounts(id)
	m.notify(id)
	m.secrets(id)
	m.inside()
	m.files(id)
	m.resources()
	if m.p.Runtime != nil {
		m.runtimeLimits()
		m.runtimeText()
	}
	m.seccomp()
	m.network()
	if m.p.Runtime != nil {
		m.runtimePolicy()
	} else {
		m.landlock()
	}
	m.probes()
	m.lockdown()
	m.hooks()
	m.degraded()
	if len(m.errs) > 0 {
		return nil, m.errs
	}
	return m.p, nil
}

// fail adds a reason.
func (m *maker) fail(path, hint, format string, args ...any) {
	m.errs = append(m.errs, ErrorAt(m.j, path, hint, fmt.Sprintf(format, args...)))
}

// ErrorAt is a reason that points at the part of the job with this path, or at
// the block that it would stand in.
func ErrorAt(j *job.Job, path, hint, msg string) *Error {
	e := &Error{Msg: msg, Hint: hint}
	if r, ok := j.Range(path); ok && r.Start.Line > 0 {
		e.Where = origin(r)
	}
	return e
}

func (m *maker) origins() {
	m.p.Origins = make(map[string]string, len(m.j.Ranges))
	for path, r := range m.j.Ranges {
		m.p.Origins[path] = origin(r)
	}
}

// origin gives "file:line", or the file alone for what has no lines.
func origin(r hcl.Range) string {
	if r.Start.Line == 0 {
		return r.Filename
	}
	return fmt.Sprintf("%s:%d", r.Filename, r.Start.Line)
}

// unsupported refuses what this version decodes but does not carry out, so that
// no block of a job is ever silently ignored.
func (m *maker) unsupported() {
	later := func(path, what string) {
		m.fail(path, "remove it, or wait for the release that has it", "%s not available in this version of Nucleus", what)
	}
	j := m.j
	if j.Network.Plugin() && !m.in.Networks {
		later("network", fmt.Sprintf("network plugin %q: network plugins are", j.Network.Backend))
	}
	if j.Runtime != nil && !m.in.Runtimes {
		later("runtime", fmt.Sprintf("runtime plugin %q: runtime plugins are", j.Runtime.Plugin))
	}
	for _, s := range j.Secrets {
		if m.in.Secrets {
			break
		}
		later(fmt.Sprintf("secret[%q]", s.Name), fmt.Sprintf("secret %q: secrets providers are", s.Name))
	}
	for _, h := range j.PluginHooks {
		if m.in.HooksPlugins {
			break
		}
		later(fmt.Sprintf("plugin_hook[%q]", h.Plugin), fmt.Sprintf("plugin_hook %q: hooks plugins are", h.Plugin))
	}
	if j.Trust == "untrusted" && j.Runtime == nil {
		m.fail("trust", `write: runtime "gvisor" {}`, "trust = \"untrusted\" refuses the native runtime")
	}
}

// Namespaces gives the types of those that a job's sandbox has, which nothing else has a
// say in.
func Namespaces(j *job.Job) []specs.LinuxNamespaceType {
	types := []specs.LinuxNamespaceType{specs.MountNamespace, specs.PIDNamespace, specs.IPCNamespace, specs.UTSNamespace, specs.CgroupNamespace}
	if j.Namespaces.User != "host" {
		types = append([]specs.LinuxNamespaceType{specs.UserNamespace}, types...)
	}
	if j.Network.Backend != "host" {
		types = append(types, specs.NetworkNamespace)
	}
	if j.Namespaces.Time {
		types = append(types, specs.TimeNamespace)
	}
	return types
}

func (m *maker) namespaces() {
	if m.j.Namespaces.Time {
		if f := m.h.Feature("timens"); f.State == fact.Unavailable || !m.h.KernelAtLeast(5, 6) {
			m.fail("namespaces.time", "remove the line, or use a kernel with CONFIG_TIME_NS (Linux 5.6)", "this kernel has no time namespaces")
		}
	}
	for _, t := range Namespaces(m.j) {
		m.p.Namespaces = append(m.p.Namespaces, specs.LinuxNamespace{Type: t})
	}
	if !m.h.Privileged && m.p.IDs.Kind == "none" {
		m.fail("namespaces.user", `remove the line, or write: namespaces { user = "auto" }`, "user = \"host\" needs root: without a user namespace an ordinary user cannot make the others")
	}
}

// basePath is the search path of a workload whose job sets none.
var basePath = []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"}

func (m *maker) process(id identity) {
	j, p := m.j, m.p
	env := map[string]string{
		"PATH": strings.Join(basePath, ":"), "HOME": id.home, "USER": id.name, "LOGNAME": id.name,
		"LANG": "C.UTF-8", "container": "nucleus",
	}
	if j.TTY {
		env["TERM"] = "xterm"
		if m.in.Term != "" {
			env["TERM"] = m.in.Term
		}
	}
	m.notifyEnv(env)
	m.secretNames(env)
	for k, v := range j.Env {
		env[k] = v
	}
	keys := make([]string, 0, len(env))
	for k := range env {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	for _, k := range keys {
		p.Process.Env = append(p.Process.Env, k+"="+env[k])
	}
	p.Process.Args = j.Command
	p.Process.Terminal = j.TTY
	p.Process.NoNewPrivileges = true
	p.Process.Cwd = j.Workdir
	if p.Process.Cwd == "" {
		p.Process.Cwd = "/"
		if j.Workspace != nil {
			p.Process.Cwd = "/workspace"
		}
	}
	umask := uint32(0o022)
	if j.Umask != nil {
		umask = *j.Umask
	}
	p.Process.User = specs.User{UID: id.uid, GID: id.gid, AdditionalGids: id.groups, Umask: &umask}
	m.capabilities()
	m.rlimits()
	if len(j.Command) > 0 {
		p.ExecPaths = ExecPaths(j.Command[0], env["PATH"], p.Process.Cwd)
	}
	p.Hostname = j.Hostname
	if p.Hostname == "" {
		p.Hostname = j.Name
	}
}

// ExecPaths gives the candidates that execvp(3) would try: a name with a slash
// is a path, any other is looked for along PATH.
func ExecPaths(arg0, path, cwd string) []string {
	if strings.Contains(arg0, "/") {
		return []string{arg0}
	}
	var out []string
	for _, dir := range strings.Split(path, ":") {
		if dir == "" {
			dir = cwd // an empty element means the working directory
		}
		out = append(out, strings.TrimSuffix(dir, "/")+"/"+arg0)
	}
	return out
}

// dangerous capabilities are refused in production: each of them is, or leads
// to, control over other users' files, the kernel or the host.
var dangerous = []string{
	"CAP_SYS_ADMIN", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_SYS_BOOT",
	"CAP_MAC_ADMIN", "CAP_MAC_OVERRIDE", "CAP_SYS_PACCT", "CAP_LINUX_IMMUTABLE", "CAP_BPF", "CAP_PERFMON", "CAP_NET_RAW", "CAP_SETUID",
	"CAP_SETGID", "CAP_FOWNER", "CAP_SETFCAP", "CAP_SYSLOG", "CAP_CHECKPOINT_RESTORE",
}

func (m *maker) capabilities() {
	keep := append([]string(nil), m.j.Security.Keep...)
	sort.Strings(keep)
	if keep == nil {
		keep = []string{}
	}
	if m.j.Mode == job.ModeProduction {
		for _, c := range keep {
			for _, d := range dangerous {
				if c == d {
					m.fail("security.capabilities.keep", "remove "+c+", or use mode = \"strict-agent\"", "capability %s is on production's danger list", c)
				}
			}
		}
	}
	// All five sets are the same: for uid 0 exec gives the bounding set
	// (capabilities(7)), for others the ambient set, so both must say it.
	m.p.Process.Capabilities = &specs.LinuxCapabilities{Bounding: keep, Effective: keep, Permitted: keep, Inheritable: keep, Ambient: keep}
}

func (m *maker) rlimits() {
	given := map[string]bool{}
	for _, r := range m.j.Resources.Rlimits {
		given[r.Type] = true
		m.p.Process.Rlimits = append(m.p.Process.Rlimits, specs.POSIXRlimit{Type: "RLIMIT_" + strings.ToUpper(r.Type), Soft: r.Soft, Hard: r.Hard})
	}
	if !given["core"] {
		m.p.Process.Rlimits = append(m.p.Process.Rlimits, noCore)
	}
}

// NoCore is the limit with which there are no core dumps: one that is written is a page at
// least, and for one that is piped to a program of the host's, which runs outside the
// sandbox as root, no limit counts but this: with 0 the program runs (do_coredump() in the
// kernel's fs/coredump.c).
const NoCore = 1

var noCore = specs.POSIXRlimit{Type: "RLIMIT_CORE", Soft: NoCore, Hard: NoCore}

// Pids gives the limit of processes and threads, 0 for none.
func (p *Plan) Pids() int64 {
	if p.Resources == nil || p.Resources.Pids == nil || p.Resources.Pids.Limit == nil {
		return 0
	}
	return *p.Resources.Pids.Limit
}

func (m *maker) lockdown() {
	want := m.j.Security.Lockdown
	m.p.Lockdown = want
	if want == "" {
		return
	}
	rank := map[string]int{"none": 0, "integrity": 1, "confidentiality": 2}
	got, known := rank[m.h.Lockdown]
	if !known || got < rank[want] {
		found := m.h.Lockdown
		if found == "" {
			found = "unknown (no /sys/kernel/security/lockdown)"
		}
		m.fail("security.lockdown", "boot the kernel with lockdown="+want, "kernel lockdown %q is required, this host's is %s", want, found)
	}
}

func (m *maker) hooks() {
	for i, h := range m.j.Hooks {
		at := fmt.Sprintf("hook[%d]", i)
		if h.Phase == HookStartContainer && !m.j.Init {
			m.fail(at, "remove init = false: init runs the hooks of this phase", "a startContainer hook needs an init")
		}
		env := make([]string, 0, len(h.Env))
		for _, k := range slices.Sorted(maps.Keys(h.Env)) {
			env = append(env, k+"="+h.Env[k])
		}
		m.p.Hooks = append(m.p.Hooks, Hook{Phase: h.Phase, Command: h.Command, Env: env, Timeout: h.Timeout, Origin: at})
	}
	for _, h := range m.j.PluginHooks {
		if h.Timeout > MaxHookTimeout {
			m.fail(fmt.Sprintf("plugin_hook[%q].timeout", h.Plugin), fmt.Sprintf("write timeout = %q, or less", MaxHookTimeout), "plugin_hook %q: one call takes %s at most", h.Plugin, MaxHookTimeout)
		}
		m.p.PluginHooks = append(m.p.PluginHooks, PluginHook{
			Plugin: h.Plugin, Config: h.Config, Eval: m.j.EvalContext(), Timeout: h.Timeout, Origin: fmt.Sprintf("plugin_hook[%q]", h.Plugin),
		})
	}
}

func (m *maker) network() {
	m.p.Network.Backend = m.j.Network.Backend
	if m.j.Network.Plugin() {
		m.networkPlugin()
	}
	if m.j.Network.Backend != "host" {
		return
	}
	if m.j.Mode.Strict() {
		m.fail("network", `write: network "none" {}`, "network \"host\" is refused in mode %s", m.j.Mode)
	}
	if len(m.j.Network.Publish) > 0 {
		m.fail("network", "remove the publish blocks: every port is the host's already", "publish has no meaning for network \"host\"")
	}
	if m.j.Network.Egress != nil {
		m.fail("network", "remove the egress block, or use a network plugin",
			"egress on network \"host\" cannot be enforced: Landlock can limit TCP ports there, but nothing else")
	}
}

// networkPlugin takes over what is asked of a plugin. A job that says nothing of
// egress reaches what is public in mode agent, and nothing else.
func (m *maker) networkPlugin() {
	j, n := m.j.Network, &m.p.Network
	n.Plugin, n.Config, n.Eval, n.DNS, n.OnFailure = true, j.Config, m.j.EvalContext(), j.DNS, j.OnFailure
	for _, p := range j.Publish {
		n.Publish = append(n.Publish, Publish{p.HostIP, p.HostPort, p.Container, p.Protocol})
	}
	// A pair of links leads to the host's network namespace by a number (rtnetlink(7),
	// IFLA_TARGET_NETNSID), and who has these in the host's user namespace may follow it.
	if m.p.IDs.Kind == "none" {
		for _, c := range []string{"CAP_NET_ADMIN", "CAP_SYS_ADMIN"} {
			if slices.Contains(m.p.Process.Capabilities.Bounding, c) {
				m.fail("security.capabilities", `write: namespaces { user = "auto" }`, "%s in the host's user namespace rules the host's network, past any policy: it cannot be kept beside user = \"host\" and a network plugin", c)
			}
		}
	}
	n.Egress.Default = EgressDeny
	if j.Egress == nil {
		if !m.j.Mode.Strict() {
			n.Egress.Default = EgressPublic
		}
		return
	}
	for _, r := range j.Egress.Allow {
		to := EgressRule{Names: r.Names, CIDRs: r.CIDRs, Jobs: r.Jobs, WithoutInit: r.WithoutInit}
		for _, p := range r.Ports {
			number, protocol, _ := strings.Cut(p, "/")
			port, err := strconv.ParseUint(number, 10, 16)
			if err != nil {
				m.fail("network.egress", "", "port %q: %v", p, err) // the decoder has checked it
			}
			to.Ports = append(to.Ports, EgressPort{protocol, uint16(port)})
		}
		n.Egress.Allow = append(n.Egress.Allow, to)
	}
}
