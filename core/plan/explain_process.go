package plan

import (
	"fmt"
	"math"
	"strings"
)

func (e *explainer) security() {
	e.phase = "security"
	p := e.p
	u := p.Process.User
	e.add("user", fmt.Sprintf("%d:%d", u.UID, u.GID), e.by("setresgid(2), setresuid(2)"), "user")
	e.add("no_new_privs", "true", "prctl(PR_SET_NO_NEW_PRIVS) before any mount")
	caps := strings.Join(p.Process.Capabilities.Bounding, " ")
	if caps == "" {
		caps = "none"
	}
	e.add("capabilities", caps, e.by("bounding set, capset(2), ambient set"), "security.capabilities.keep")
	given := map[string]bool{}
	for _, r := range p.Process.Rlimits {
		given[r.Type] = true
		name := strings.ToLower(strings.TrimPrefix(r.Type, "RLIMIT_"))
		paths := []string{fmt.Sprintf("resources.rlimit[%q]", name)}
		if name == "nproc" && (p.Pids() == 0 || p.Runtime != nil) {
			paths = append(paths, "resources.pids")
		}
		e.add("rlimit "+name, fmt.Sprintf("%s:%s", LimitText(r.Soft), LimitText(r.Hard)), e.by("prlimit(2)"), paths...)
	}
	for _, l := range []struct{ name, value string }{ // security.Inherited has the figures
		{"msgqueue", "a quarter of the caller's"},
		{"nofile", "the caller's less 4096, or less a quarter"},
		{"sigpending", "a 64th of the caller's, 128 to 1024"},
	} {
		if p.Runtime == nil && !given["RLIMIT_"+strings.ToUpper(l.name)] {
			e.add("rlimit "+l.name, l.value, e.by("prlimit(2)"))
		}
	}
	e.add("session keyring", "its own", "keyctl(KEYCTL_JOIN_SESSION_KEYRING)")
	if p.SocketActivation {
		e.add("descriptors", "0 1 2, and from 3 on the sockets that were passed", "LISTEN_FDS, LISTEN_PID (sd_listen_fds(3)); close_range(2)", "socket_activation")
	} else {
		e.add("descriptors", "0 1 2", "close_range(2)")
	}
	e.landlock()
	e.seccomp()
	if p.Lockdown != "" {
		e.add("lockdown", p.Lockdown, "/sys/kernel/security/lockdown, checked", "security.lockdown")
	}
	e.add("posture", "verified", "read back from /proc before the workload runs")
}

func (e *explainer) landlock() {
	l := e.p.Landlock
	if l.ABI == 0 {
		return
	}
	abi := fmt.Sprintf("Landlock ABI %d", l.ABI)
	if e.p.Runtime != nil {
		abi += ", of the runtime's program"
	} else {
		defaults := "on"
		if l.NoDefaults {
			defaults = "off: only the job's own rules"
		}
		e.add("landlock defaults", defaults, abi, "security.no_default_landlock")
	}
	for _, r := range l.Rules {
		path := r.Path
		if r.Entries {
			path = "every entry of the rootfs"
		}
		var paths []string
		if r.Origin != "" {
			paths = []string{r.Origin}
		}
		e.add("landlock "+path, strings.Join(r.Access, ","), abi, paths...)
	}
	if l.HandledNet != 0 {
		e.add("landlock TCP connect", l.portText(llConnectTCP), abi, "security.landlock.tcp.connect")
		e.add("landlock TCP bind", l.portText(llBindTCP), abi, "security.landlock.tcp.bind")
	}
	if l.Scoped != 0 {
		e.add("landlock scope", "signals, abstract sockets", abi)
	}
}

func (l Landlock) portText(right uint64) string {
	var out []string
	for _, p := range l.Ports {
		if p.Rights&right != 0 {
			out = append(out, fmt.Sprint(p.Port))
		}
	}
	if len(out) == 0 {
		return "none"
	}
	return strings.Join(out, " ")
}

func (e *explainer) seccomp() {
	s := e.p.Seccomp
	v := s.Source
	if s.Profile != "" {
		v = s.Profile
	}
	if len(s.Allow) > 0 {
		v += " + " + strings.Join(s.Allow, " ")
	}
	how := "compiled filter, loaded last; always admits read, execve, exit_group"
	if e.p.Runtime != nil {
		how = "compiled filter of the runtime's program, which puts one of its own on top"
	}
	if s.Mode == "trace" {
		v, how = "trace: "+v, "each call is answered from outside (seccomp user notification): what no allow can open is refused, the rest goes through; all are counted"
	}
	e.add("seccomp", v, how, "security.seccomp.profile", "security.seccomp.allow", "security.seccomp.mode")
	if s.Record != "" {
		e.add("seccomp record", s.Record, "a profile of what was called, written at the end", "security.seccomp.record")
	}
	if s.SHA256 != "" {
		e.add("seccomp sha256", s.SHA256, "the profile is hashed as it is read", "security.seccomp.sha256")
	}
	if s.PlainTCP {
		e.add("other ways to TCP", "refused", "a filter of its own: MSG_FASTOPEN, MPTCP, SMC, TCP_ULP, io_uring, which Landlock does not see", "security.landlock.tcp")
	}
	if s.NoSetID {
		e.add("set-ID bits", "refused", "second filter: EPERM for modes with set-user-ID or set-group-ID, ENOSYS for openat2; a directory of the host is writable (keep CAP_FSETID to lift it)")
	}
}

// LimitText is a resource limit as job files write it.
func LimitText(v uint64) string {
	if v == math.MaxUint64 {
		return "unlimited"
	}
	return fmt.Sprint(v)
}

func (e *explainer) exec() {
	e.phase = "exec"
	p := e.p
	e.runtime()
	e.add("command", fmt.Sprintf("%q", p.Process.Args), e.by("execve(2)"), "command")
	// Names only: a value may be a secret.
	names := make([]string, len(p.Process.Env))
	for i, kv := range p.Process.Env {
		names[i], _, _ = strings.Cut(kv, "=")
	}
	e.add("environment", strings.Join(names, " "), e.by("execve(2): these and no others"), "env")
	e.add("workdir", p.Process.Cwd, e.by("chdir(2) as the workload's user"), "workdir")
	if p.Process.User.Umask != nil {
		e.add("umask", fmt.Sprintf("%04o", *p.Process.User.Umask), e.by("umask(2)"), "umask")
	}
	initDoes := "nucleus-init is PID 1: it reaps, and passes signals on"
	if p.Runtime != nil {
		initDoes = "nucleus-init is PID 1 of the namespaces; the workload is PID 1 of its own kernel"
	}
	if !p.Init {
		initDoes = "the workload is PID 1 itself"
	}
	e.add("init", fmt.Sprint(p.Init), initDoes, "init")
	e.add("terminal", fmt.Sprint(p.Process.Terminal), "pty of the sandbox's own devpts", "tty")
	if p.Timeout > 0 {
		e.add("timeout", p.Timeout.String(), "supervisor's timer: stop signal, grace, kill", "timeout")
	}
	for _, h := range p.Hooks {
		e.add("hook "+h.Phase, fmt.Sprintf("%q", h.Command), hookRuns[h.Phase]+", at most "+h.Timeout.String(), h.Origin)
	}
	for _, h := range p.PluginHooks {
		e.add("plugin_hook "+h.Plugin, "called at the boundaries that it wants to hear of", "a process of its own, gRPC; each call at most "+h.Timeout.String(), h.Origin)
	}
	e.notify()
	e.probes()
	e.add("stop", p.Stop.Signal+", grace "+p.Stop.Grace.String(), "init, then SIGKILL of PID 1", "stop.signal", "stop.grace")
}

// hookRuns says where the hooks of a phase run, and what becomes of their failure.
var hookRuns = map[string]string{
	HookCreateRuntime:   "on the host, before the new root is entered; its failure ends the start",
	HookCreateContainer: "the host's program in the sandbox's namespaces, before the new root is entered; its failure ends the start",
	HookStartContainer:  "in the sandbox, restricted as the workload, before it; its failure ends the start",
	HookPoststart:       "on the host, once the workload runs; its failure ends the sandbox",
	HookPoststop:        "on the host, once the sandbox is gone; its failure is a warning",
}
