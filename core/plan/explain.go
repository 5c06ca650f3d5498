package plan

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Line is one setting of a plan and what enforces it.
type Line struct {
	Phase     string `json:"phase"`
	Setting   string `json:"setting"`
	Value     string `json:"value"`
	Mechanism string `json:"mechanism"`
	// From is "file:line" of the job, or "default".
	From string `json:"from"`
}

// Explain prints, for each line of the job and for each default, the mechanism
// that enforces it on this host.
func Explain(w io.Writer, p *Plan) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintf(t, "job %q, mode %s\n\n", p.Name, p.Mode)
	fmt.Fprintln(t, "PHASE\tSETTING\tVALUE\tENFORCED BY\tFROM")
	for _, l := range p.Lines() {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", l.Phase, l.Setting, l.Value, l.Mechanism, l.From)
	}
	for _, d := range p.Degraded {
		fmt.Fprintf(t, "\nNOT ENFORCED\t%s\t%s\n", d.Name, d.Why)
		if d.Remedy != "" {
			fmt.Fprintf(t, "remedy\t\t%s\n", d.Remedy)
		}
	}
	return t.Flush()
}

// Lines explains the whole plan.
func (p *Plan) Lines() []Line {
	e := &explainer{p: p}
	e.namespaces()
	e.cgroups()
	e.fs()
	e.security()
	e.exec()
	return e.lines
}

type explainer struct {
	p     *Plan
	phase string
	lines []Line
}

func (e *explainer) add(setting, path, value, mechanism string) {
	from := e.p.Origins[path]
	if from == "" {
		from = "default"
	}
	e.lines = append(e.lines, Line{Phase: e.phase, Setting: setting, Value: value, Mechanism: mechanism, From: from})
}

var nsMechanism = map[specs.LinuxNamespaceType]string{
	specs.UserNamespace: "clone(CLONE_NEWUSER), id maps", specs.MountNamespace: "clone(CLONE_NEWNS), all private, pivot_root, old root unmounted",
	specs.PIDNamespace: "clone(CLONE_NEWPID), init is PID 1", specs.NetworkNamespace: "clone(CLONE_NEWNET), loopback only",
	specs.IPCNamespace: "clone(CLONE_NEWIPC)", specs.UTSNamespace: "clone(CLONE_NEWUTS)", specs.TimeNamespace: "clone(CLONE_NEWTIME)",
	specs.CgroupNamespace: "unshare(CLONE_NEWCGROUP) after the attach",
}

func (e *explainer) namespaces() {
	e.phase = "namespaces"
	for _, n := range e.p.Namespaces {
		path := "namespaces." + string(n.Type)
		if n.Type == specs.NetworkNamespace {
			path = "network"
		}
		e.add(string(n.Type), path, "own", nsMechanism[n.Type])
	}
	if e.p.Network.Backend == "host" {
		e.add("network", "network", "host", "none: the host's network is the sandbox's")
	}
	for _, m := range e.p.IDs.UIDs {
		e.add("uid map", "namespaces.user", mapText(m), e.mapMechanism())
	}
	for _, m := range e.p.IDs.GIDs {
		e.add("gid map", "namespaces.user", mapText(m), e.mapMechanism())
	}
	groups := "setgroups(2)"
	if !e.p.IDs.SetGroups {
		groups = "kept as the caller's: the kernel denies setgroups(2) in a map of one id; they show as overflow ids and give no more than the caller has"
	}
	e.add("supplementary groups", "groups", fmt.Sprint(e.p.Process.User.AdditionalGids), groups)
	e.add("hostname", "hostname", e.p.Hostname, "sethostname(2) in its UTS namespace")
}

func (e *explainer) mapMechanism() string {
	if e.p.IDs.Helpers {
		return "newuidmap(1), newgidmap(1)"
	}
	return "/proc/PID/{u,g}id_map"
}

func mapText(m specs.LinuxIDMapping) string {
	return fmt.Sprintf("%d-%d -> %d", m.ContainerID, uint64(m.ContainerID)+uint64(m.Size)-1, m.HostID)
}

func (e *explainer) cgroups() {
	e.phase = "cgroups"
	p := e.p
	if !p.Cgroup.Wanted {
		e.add("control group", "resources", "none", "this host gives none: see nucleus doctor")
	}
	r := p.Resources
	if r.Memory != nil {
		e.add("memory", "resources.memory", fmt.Sprint(*r.Memory.Limit), "memory.max (v1: memory.limit_in_bytes); the OOM killer ends the sandbox")
		e.add("swap", "resources.swap", fmt.Sprint(*r.Memory.Swap-*r.Memory.Limit), "memory.swap.max (v1: memory.memsw.limit_in_bytes)")
	}
	if v, ok := r.Unified["memory.high"]; ok {
		e.add("memory_high", "resources.memory_high", v, "memory.high")
	}
	if r.CPU != nil && r.CPU.Quota != nil {
		e.add("cpus", "resources.cpus", fmt.Sprintf("%.2f", float64(*r.CPU.Quota)/float64(*r.CPU.Period)), "cpu.max (v1: cpu.cfs_quota_us)")
	}
	if v, ok := r.Unified["cpu.weight"]; ok {
		e.add("cpu_weight", "resources.cpu_weight", v, "cpu.weight (v1: cpu.shares)")
	}
	if n := p.Pids(); n > 0 {
		e.add("pids", "resources.pids", fmt.Sprint(n), "pids.max")
	}
}

func (e *explainer) fs() {
	e.phase = "fs"
	p := e.p
	what := map[string]string{RootToolchain: "the host's toolchain, read-only, on a private tmpfs", RootRootfs: p.Root.Path + ", read-only", RootOverlay: p.Root.Path + ", writable in memory, discarded"}[p.Root.Kind]
	e.add("/", "rootfs", what, "tmpfs, binds, mount_setattr(AT_RECURSIVE), pivot_root")
	if p.Root.Digest != "" {
		e.add("rootfs digest", "rootfs.digest", p.Root.Digest, "the tree is hashed before the start")
	}
	e.add("writable memory", "resources.rootfs_size", fmt.Sprint(p.Root.Size), "size= of the root tmpfs")
	for _, m := range p.Mounts {
		switch m.Kind {
		case MountLink:
			e.add(m.Destination, m.Origin, "-> "+m.Source, "symbolic link")
		case MountToolchain, MountBind:
			v := m.Source + " (" + strings.Join(m.Options[1:], ",") + ")"
			e.add(m.Destination, m.Origin, v, "bind, mount_setattr(AT_RECURSIVE), read back")
		default:
			e.add(m.Destination, m.Origin, m.Kind+" ("+strings.Join(m.Options, ",")+")", "mount, read back")
		}
	}
	for _, f := range p.Files {
		e.add(f.Path, "", fmt.Sprintf("%d bytes", len(f.Content)), "file of the sandbox's own")
	}
	e.add("masked", "", strings.Join(p.MaskedPaths, " "), "/dev/null or an empty tmpfs over it")
	e.add("read-only", "", strings.Join(p.ReadonlyPaths, " "), "bind, mount_setattr(RDONLY)")
}

func (e *explainer) security() {
	e.phase = "security"
	p := e.p
	u := p.Process.User
	e.add("user", "user", fmt.Sprintf("%d:%d", u.UID, u.GID), "setresgid(2), setresuid(2)")
	e.add("no_new_privs", "", "true", "prctl(PR_SET_NO_NEW_PRIVS) before any mount")
	caps := strings.Join(p.Process.Capabilities.Bounding, " ")
	if caps == "" {
		caps = "none"
	}
	e.add("capabilities", "security.capabilities.keep", caps, "bounding set, capset(2), ambient set")
	for _, r := range p.Process.Rlimits {
		name := strings.ToLower(strings.TrimPrefix(r.Type, "RLIMIT_"))
		e.add("rlimit "+name, fmt.Sprintf("resources.rlimit[%q]", name), fmt.Sprintf("%s:%s", limitText(r.Soft), limitText(r.Hard)), "prlimit(2)")
	}
	e.add("session keyring", "", "its own", "keyctl(KEYCTL_JOIN_SESSION_KEYRING)")
	e.add("descriptors", "", "0 1 2", "close_range(2)")
	if l := p.Landlock; l.ABI > 0 {
		for _, r := range l.Rules {
			path := r.Path
			if r.Entries {
				path = "every entry of the rootfs"
			}
			e.add("landlock "+path, r.Origin, strings.Join(r.Access, ","), fmt.Sprintf("Landlock ABI %d", l.ABI))
		}
		if l.Scoped != 0 {
			e.add("landlock scope", "", "signals, abstract sockets", fmt.Sprintf("Landlock ABI %d", l.ABI))
		}
	}
	s := p.Seccomp
	v := s.Source
	if s.Profile != "" {
		v = s.Profile
	}
	if len(s.Allow) > 0 {
		v += " + " + strings.Join(s.Allow, " ")
	}
	e.add("seccomp", "security.seccomp", v, "compiled filter, loaded last; always admits read, execve, exit_group")
	if p.Lockdown != "" {
		e.add("lockdown", "security.lockdown", p.Lockdown, "/sys/kernel/security/lockdown, checked")
	}
	e.add("posture", "", "verified", "read back from /proc before the workload runs")
}

func limitText(v uint64) string {
	if v == ^uint64(0) {
		return "unlimited"
	}
	return fmt.Sprint(v)
}

func (e *explainer) exec() {
	e.phase = "exec"
	p := e.p
	e.add("command", "command", fmt.Sprintf("%q", p.Process.Args), "execve(2)")
	e.add("workdir", "workdir", p.Process.Cwd, "chdir(2) as the workload's user")
	if p.Process.User.Umask != nil {
		e.add("umask", "umask", fmt.Sprintf("%04o", *p.Process.User.Umask), "umask(2)")
	}
	e.add("terminal", "tty", fmt.Sprint(p.Process.Terminal), "pty of the sandbox's own devpts")
	if p.Timeout > 0 {
		e.add("timeout", "timeout", p.Timeout.String(), "supervisor's timer: stop signal, grace, kill")
	}
	e.add("stop", "stop.signal", p.Stop.Signal+", grace "+p.Stop.Grace.String(), "init, then SIGKILL of PID 1")
}
