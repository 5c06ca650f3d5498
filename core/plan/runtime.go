package plan

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/hashicorp/hcl/v2"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/nucleus-runtime/nucleus/core/host/fact"
	"github.com/nucleus-runtime/nucleus/internal/pathname"
)

// Runtime is the plugin that runs the sandbox in the native runtime's place. It names
// a program (gVisor's runsc), which init executes where it would execute the workload:
// in the sandbox's namespaces and its group, in a root of its own in which the
// workload's lies.
type Runtime struct {
	Plugin string `json:"plugin"`
	// Config is for the plugin alone.
	Config hcl.Body `json:"-"`
	// Eval holds what Config may refer to.
	Eval *hcl.EvalContext `json:"-"`
	// Capabilities of the program, in the sandbox's own user namespace. Those of the
	// workload are in Plan.Process.
	Capabilities []string            `json:"capabilities"`
	Rlimits      []specs.POSIXRlimit `json:"rlimits,omitempty"`
	// Libraries are what a program that is dynamically linked finds in its root.
	Libraries []Mount `json:"libraries,omitempty"`
	// Checkpoint: the sandbox's state can be saved and restored.
	Checkpoint bool `json:"checkpoint,omitempty"`
}

// RuntimeRoot is where the workload's root lies in that of a runtime plugin's program.
const RuntimeRoot = "/rootfs"

// runtimeCaps are what it takes to make a sandbox inside one, and to act for its
// users: they reach no further than the user namespace.
var runtimeCaps = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD", "CAP_NET_ADMIN",
	"CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_ADMIN", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE",
}

// runtime plans for a runtime plugin, and refuses what would not hold under one.
func (m *maker) runtime() {
	j := m.j
	if j.Runtime == nil {
		return
	}
	name := j.Runtime.Plugin
	r := &Runtime{Plugin: name, Config: j.Runtime.Config, Eval: j.EvalContext(), Capabilities: runtimeCaps, Checkpoint: j.Runtime.Checkpoint}
	r.Rlimits = []specs.POSIXRlimit{noCore}
	for _, t := range m.h.Toolchain {
		r.Libraries = append(r.Libraries, toolchainMount(t))
	}
	m.p.Runtime = r
	if m.p.IDs.Kind == "none" {
		m.fail("namespaces.user", `write: namespaces { user = "auto" }`, "runtime %q runs in a user namespace, which user = \"host\" takes away", name)
	} else if !m.rootMapped() {
		hint := `map id 0, too, in namespaces: uid_map and gid_map`
		if m.p.IDs.Kind != "map" {
			hint = "get a subordinate range (apt-get install uidmap; usermod --add-subuids 100000-165535 --add-subgids 100000-165535 " + m.h.UserName + "), or remove user"
		}
		m.fail("namespaces.user", hint, "runtime %q needs id 0 in the sandbox's user namespace, and only one other id is mapped", name)
	}
	if !j.Init {
		m.fail("init", "remove init = false", "runtime %q needs an init, which runs it", name)
	}
	if s := j.Security.Seccomp; s != nil {
		m.fail("security.seccomp", "remove the seccomp block", "with runtime %q the workload's system calls do not reach the kernel's filter: what is in front of the kernel then is the runtime, under a filter of its own", name)
	}
	if len(j.Security.Landlock) > 0 || j.Security.LandlockTCP != nil || j.Security.NoDefaultLandlock {
		m.fail("security.landlock", "remove the landlock block; read_only volumes, and egress of a network plugin, are enforced", "with runtime %q the workload's accesses do not reach the kernel's Landlock", name)
	}
	if j.SocketActivation {
		m.fail("socket_activation", "remove the line, or use publish of a network plugin", "runtime %q does not pass sockets of the host on", name)
	}
	for i, h := range j.Hooks {
		if h.Phase == HookStartContainer {
			m.fail(fmt.Sprintf("hook[%d]", i), "use createContainer, which runs in the sandbox's namespaces", "a startContainer hook runs as the workload does, and with runtime %q init cannot run it so", name)
		}
	}
	for _, x := range []struct {
		path string
		set  bool
	}{
		{"readiness.tcp", j.Readiness != nil && j.Readiness.TCP != 0},
		{"readiness.http", j.Readiness != nil && j.Readiness.HTTP != ""},
		{"health.tcp", j.Health != nil && j.Health.TCP != 0},
		{"health.http", j.Health != nil && j.Health.HTTP != ""},
	} {
		if x.set && j.Network.Backend == "none" {
			m.fail(x.path, `probe by exec = [...], or name a network plugin`, "with runtime %q and no network, ports are open inside its own network stack alone, where no connection can be made from outside", name)
		}
	}
}

// rootMapped tells whether the sandbox's user namespace has a user and a group 0.
func (m *maker) rootMapped() bool {
	_, uid := HostID(m.p.IDs.UIDs, 0)
	_, gid := HostID(m.p.IDs.GIDs, 0)
	return uid && gid
}

// inside marks the mounts that the runtime's program makes itself: its kernel's own
// file systems and devices.
func (m *maker) inside() {
	if m.p.Runtime == nil {
		return
	}
	m.checkpoint()
	for i := range m.p.Mounts {
		x := &m.p.Mounts[i]
		if m.p.Runtime.Checkpoint {
			own(x, m.p.Root.Size)
		}
		x.Inside = x.Inside || x.Kind == MountFS || x.Kind == MountDevice || x.Kind == MountLink && pathname.Within(x.Destination, "/dev")
	}
}

// runtimePolicy is what init puts on the program: it is the wall behind the wall.
func (m *maker) runtimePolicy() {
	// A program that saves gets a directory of the host's to write to.
	saves := m.p.Runtime.Checkpoint && !slices.Contains(m.p.Seccomp.Caps, "CAP_FSETID")
	m.p.Seccomp = Seccomp{Source: "runtime", Mode: "enforce", NoSetID: m.p.Seccomp.NoSetID || saves}
	l := &m.p.Landlock
	*l = Landlock{ABI: m.h.LandlockABI}
	// No rights of files: a domain that handles them may not mount (landlock(7)), which
	// is how the program makes its own root.
	if l.ABI >= 6 {
		l.Scoped = llScopeAbstractUnix | llScopeSignal
	}
}

// hostThreads is the limit of the host's threads under which a runtime's program can
// run n processes: its own, and those that stand for the workload's. gVisor takes about
// 28 and 2.1 for each, and dies where it cannot have one more.
func hostThreads(n int64) int64 { return 64 + 4*n }

// MinRuntimeMemory is the least limit of memory under which a program comes up.
const MinRuntimeMemory = 32 << 20

// runtimeLimits has the runtime's kernel count the workload's processes, as the job means
// it, and leaves its program room beside them.
func (m *maker) runtimeLimits() {
	if n := m.p.Pids(); n > 0 {
		limit := uint64(n)
		at := slices.IndexFunc(m.p.Process.Rlimits, func(r specs.POSIXRlimit) bool { return r.Type == "RLIMIT_NPROC" })
		if at < 0 {
			m.p.Process.Rlimits = append(m.p.Process.Rlimits, specs.POSIXRlimit{Type: "RLIMIT_NPROC", Soft: limit, Hard: limit})
		} else {
			r := &m.p.Process.Rlimits[at]
			r.Soft, r.Hard = min(r.Soft, limit), min(r.Hard, limit)
		}
		*m.p.Resources.Pids.Limit = hostThreads(n)
	}
	if v := m.j.Resources.Memory; v != nil && *v >= MinMemory && *v < MinRuntimeMemory {
		m.fail("resources.memory", `write at least memory = "32MiB"`, "memory = %d bytes is less than runtime %q needs for its own kernel (%d)", *v, m.p.Runtime.Plugin, int64(MinRuntimeMemory))
	}
	for _, r := range m.j.Resources.Rlimits {
		if r.Type == "nofile" && r.Soft < standardStreams {
			m.fail(fmt.Sprintf("resources.rlimit[%q]", r.Type), fmt.Sprintf("write at least soft = %d", standardStreams), "rlimit %q, soft %d: runtime %q gives the workload its standard streams under this limit", r.Type, r.Soft, m.p.Runtime.Plugin)
		}
	}
}

const standardStreams = 3

// runtimeText refuses what config.json, which is UTF-8, would have as something else.
func (m *maker) runtimeText() {
	for _, a := range m.p.Process.Args {
		if !utf8.ValidString(a) {
			m.fail("command", `have a shell make it: printf "\\377"`, "argument %q is not UTF-8, which those of runtime %q are to be", a, m.p.Runtime.Plugin)
		}
	}
	for _, kv := range m.p.Process.Env {
		if name, _, _ := strings.Cut(kv, "="); !utf8.ValidString(kv) {
			m.fail("env", "", "the value of variable %q is not UTF-8, which those of runtime %q are to be", name, m.p.Runtime.Plugin)
		}
	}
}

// Bundle gives the OCI runtime configuration that a runtime plugin's program runs: the
// file system is made already, and lies below RuntimeRoot; the namespaces and the group
// are those that the program is in.
func (p *Plan) Bundle() *specs.Spec {
	process := p.Process
	s := &specs.Spec{
		Version: specs.Version, Process: &process, Hostname: p.Hostname,
		Root:  &specs.Root{Path: RuntimeRoot, Readonly: p.Root.Kind != RootOverlay},
		Linux: &specs.Linux{Resources: p.Resources, MaskedPaths: p.MaskedPaths, ReadonlyPaths: p.ReadonlyPaths},
	}
	for _, m := range p.Mounts {
		switch {
		case m.Kind == MountLink, m.Kind == MountDevice, m.Kind == MountToolchain:
			// Links and the toolchain lie in the root; devices every runtime makes.
		case m.Inside:
			s.Mounts = append(s.Mounts, m.Mount)
		case m.Kind == MountScratch && p.Root.Kind == RootOverlay:
			// A directory of the root, which is writable itself.
		default:
			o := withoutBind(m.Options)
			o = slices.DeleteFunc(o, func(s string) bool { return s != "ro" && s != "rw" && s != "nosuid" && s != "nodev" && s != "noexec" })
			s.Mounts = append(s.Mounts, specs.Mount{
				Destination: m.Destination, Type: "bind", Source: path.Join(RuntimeRoot, m.Destination), Options: append([]string{"rbind"}, o...),
			})
		}
	}
	return s
}

func toolchainMount(t fact.HostPath) Mount {
	if t.Link != "" {
		return Mount{Mount: specs.Mount{Destination: t.Path, Source: t.Link}, Kind: MountLink}
	}
	return Mount{Mount: specs.Mount{Destination: t.Path, Type: "bind", Source: toolchainSource(t), Options: []string{"rbind", "ro", "nosuid", "nodev"}}, Kind: MountToolchain}
}

func (e *explainer) runtime() {
	r := e.p.Runtime
	if r == nil {
		return
	}
	e.add("runtime", r.Plugin, "the program that nucleus-plugin-"+r.Plugin+" names, executed by init in the namespaces and the group above; the workload's kernel is its own", "runtime")
	if r.Checkpoint {
		e.add("checkpoint", "the state can be saved and restored: nucleus checkpoint, nucleus run -restore", "what is written in the sandbox's own memory is the program's, which saves it", "runtime.checkpoint")
	}
	e.add("runtime capabilities", strings.Join(r.Capabilities, " "), "of the program, in the sandbox's user namespace: bounding set, capset(2)")
	for _, l := range r.Rlimits {
		e.add("runtime rlimit "+strings.ToLower(strings.TrimPrefix(l.Type, "RLIMIT_")), fmt.Sprintf("%s:%s", LimitText(l.Soft), LimitText(l.Hard)), "of the program: prlimit(2)", "resources.pids")
	}
}

// by is what enforces something of the workload's process: the host's kernel, or the
// runtime plugin's program, which reads it in its config.json.
func (e *explainer) by(native string) string {
	if e.p.Runtime == nil {
		return native
	}
	return "config.json of the runtime"
}
