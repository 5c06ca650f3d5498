package plan

import (
	"fmt"
	"slices"
	"sort"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/nucleus-runtime/nucleus/core/host/fact"
	"github.com/nucleus-runtime/nucleus/core/job"
	"github.com/nucleus-runtime/nucleus/internal/pathname"
)

const (
	gib = 1 << 30
	// minScratch is the least size of what a sandbox may write to its own memory.
	minScratch = gib
	// devSize is room for the mount points of /dev, nothing more.
	devSize = 64 << 10
)

// root decides what / is made of and how much may be written to memory.
func (m *maker) root() {
	r := &m.p.Root
	r.Kind = RootToolchain
	if rf := m.j.Rootfs; rf != nil {
		r.Kind, r.Path, r.Digest = RootRootfs, rf.Path, rf.Digest
		if rf.Writable == "overlay" {
			r.Kind = RootOverlay
			if m.j.Mode == job.ModeProduction {
				m.fail("rootfs.writable", `write writable = "none", and tmpfs or volume blocks for what must be written`,
					"a root that is writable and executable is refused in mode production")
			}
		}
	} else if m.j.Mode == job.ModeProduction {
		m.fail("mode", "add a rootfs block with path and digest (nucleus rootfs digest PATH)", "mode production needs a rootfs: the host's toolchain is not attested")
	}
	switch {
	case m.j.Resources.RootfsSize != nil:
		r.Size = *m.j.Resources.RootfsSize
	case m.j.Resources.Memory != nil:
		r.Size = max(*m.j.Resources.Memory/2, minScratch)
	default:
		r.Size = minScratch
	}
}

func (m *maker) mounts(id identity) {
	add := func(x Mount) { m.p.Mounts = append(m.p.Mounts, x) }
	if m.p.Root.Kind == RootToolchain {
		for _, t := range m.h.Toolchain {
			add(toolchainMount(t))
		}
	}
	m.devMounts(add, id)
	add(m.procMount())
	add(Mount{Mount: specs.Mount{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"ro", "nosuid", "nodev", "noexec"}}, Kind: MountFS, Optional: true})
	m.maskedPaths()
	m.scratchMounts(add, id)
	m.jobMounts(id)
}

// toolchainSource is what to bind for an entry of the toolchain: itself, or
// where a link ends that leaves the toolchain.
func toolchainSource(t fact.HostPath) string {
	if t.Source != "" {
		return t.Source
	}
	return t.Path
}

// DeviceMount is a device of the host, where it has it.
func DeviceMount(path string) Mount {
	return Mount{Mount: specs.Mount{Destination: path, Type: "bind", Source: path, Options: []string{"bind", "ro", "nosuid", "noexec"}}, Kind: MountDevice}
}

// maxTerminals bounds the terminals of a sandbox. The kernel counts those of all together, and
// has no more than kernel.pty.max less kernel.pty.reserve for them, 3072 where nobody has
// changed that.
const maxTerminals = 256

func (m *maker) devMounts(add func(Mount), id identity) {
	add(Mount{Mount: specs.Mount{Destination: "/dev", Type: "tmpfs", Source: "dev", Options: []string{"nosuid", "noexec", "mode=0755", fmt.Sprintf("size=%d", devSize)}}, Kind: MountFS})
	// Read-only, which does not hinder reading and writing a device: it keeps a
	// workload that owns the host's node (user = "host", as root) from changing
	// its mode and owner.
	for _, d := range []string{"null", "zero", "full", "random", "urandom", "tty"} {
		add(DeviceMount("/dev/" + d))
	}
	pts := []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", fmt.Sprintf("max=%d", maxTerminals)}
	add(Mount{Mount: specs.Mount{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: pts}, Kind: MountFS})
	add(Mount{Mount: specs.Mount{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "nodev", "noexec", "mode=1777", fmt.Sprintf("size=%d", m.p.Root.Size)}}, Kind: MountFS})
	add(Mount{Mount: specs.Mount{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "nodev", "noexec"}}, Kind: MountFS, Optional: true})
	for _, l := range [][2]string{{"/dev/fd", "/proc/self/fd"}, {"/dev/stdin", "/proc/self/fd/0"}, {"/dev/stdout", "/proc/self/fd/1"}, {"/dev/stderr", "/proc/self/fd/2"}, {"/dev/ptmx", "pts/ptmx"}} {
		add(Mount{Mount: specs.Mount{Destination: l[0], Source: l[1]}, Kind: MountLink})
	}
}

func (m *maker) procMount() Mount {
	opts := []string{"nosuid", "nodev", "noexec"}
	if m.j.Mode == job.ModeProduction {
		opts = append(opts, "hidepid=invisible")
	}
	return Mount{Mount: specs.Mount{Destination: "/proc", Type: "proc", Source: "proc", Options: opts}, Kind: MountFS}
}

// maskedPaths are the OCI default lists of the field, with the write gadgets of
// the attack classes added. The file systems that a host mounts below /sys
// (debugfs, tracefs, securityfs, bpf, pstore) need no mask: the sandbox's sysfs
// is a new mount, which does not bring them along.
func (m *maker) maskedPaths() {
	m.p.MaskedPaths = []string{
		"/proc/acpi", "/proc/asound", "/proc/config.gz", "/proc/interrupts", "/proc/kallsyms", "/proc/kcore", "/proc/keys", "/proc/key-users",
		"/proc/kmsg", "/proc/kpagecgroup", "/proc/kpagecount", "/proc/kpageflags", "/proc/latency_stats", "/proc/sched_debug", "/proc/scsi",
		"/proc/slabinfo", "/proc/sysrq-trigger", "/proc/timer_list", "/proc/timer_stats", "/proc/vmallocinfo",
		"/sys/firmware", "/sys/devices/virtual/powercap",
	}
	// Pressure triggers are memory that no group counts, as many as there are descriptors
	// (kernel commit d82caa273565 lets everybody set them).
	m.p.ReadonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/pressure", "/proc/sys"}
}

// scratchMounts are the places that are writable by default. They are
// directories of the root tmpfs, so that one size bounds them together.
func (m *maker) scratchMounts(add func(Mount), id identity) {
	exec := m.j.Mode != job.ModeProduction // W^X: what can be written cannot be executed
	opts := func(x ...string) []string {
		o := append([]string{"rbind", "rw", "nosuid", "nodev"}, x...)
		if !exec {
			o = append(o, "noexec")
		}
		return o
	}
	scratch := func(dest string, mode, uid, gid uint32) {
		add(Mount{Mount: specs.Mount{Destination: dest, Type: "bind", Source: "tmpfs", Options: opts()}, Kind: MountScratch, UID: uid, GID: gid, Mode: mode})
	}
	for _, s := range []struct {
		path     string
		mode     uint32
		uid, gid uint32
	}{{"/tmp", 0o1777, 0, 0}, {"/var/tmp", 0o1777, 0, 0}, {"/run", 0o755, id.uid, id.gid}, {id.home, 0o700, id.uid, id.gid}} {
		if !m.covered(s.path) {
			scratch(s.path, s.mode, m.owner(s.uid, id.uid, m.p.IDs.UIDs), m.owner(s.gid, id.gid, m.p.IDs.GIDs))
		}
	}
	if m.p.Root.Kind == RootToolchain {
		add(Mount{Mount: specs.Mount{Destination: "/var/run", Source: "/run"}, Kind: MountLink})
		add(Mount{Mount: specs.Mount{Destination: "/var/lock", Source: "/run/lock"}, Kind: MountLink})
	}
}

// owner gives an owner that exists inside: where the maps have no 0, the
// workload's own id owns what would be root's.
func (m *maker) owner(want, own uint32, maps []specs.LinuxIDMapping) uint32 {
	if m.p.IDs.Kind == "none" {
		return want
	}
	if _, ok := HostID(maps, want); ok {
		return want
	}
	return own
}

// covered reports whether the job mounts something on a path, or above it: a
// directory of ours there would be hidden, or made in what the host lends.
func (m *maker) covered(path string) bool {
	return slices.ContainsFunc(targets(m.j), func(t target) bool { return pathname.Within(path, t.path) })
}

// jobMounts adds what the job names, parents before what lies below them.
func (m *maker) jobMounts(id identity) {
	j := m.j
	var ms []Mount
	if c := j.Context; c != nil {
		if c.Method == "bind" {
			ms = append(ms, Mount{Mount: specs.Mount{Destination: c.Target, Type: "bind", Source: c.Source, Options: []string{"rbind", "ro", "nosuid", "nodev", "noexec"}}, Kind: MountContext, Origin: "context", Idmap: true})
		} else {
			ms = append(ms, Mount{Mount: specs.Mount{Destination: c.Target, Type: "bind", Source: "tmpfs", Options: []string{"rbind", "ro", "nosuid", "nodev", "noexec"}}, Kind: MountContext, Origin: "context", UID: id.uid, GID: id.gid, Mode: 0o755})
		}
		m.p.Context = &Context{Source: c.Source, Target: c.Target, Method: c.Method, Verify: c.Verify, Exclude: c.Exclude}
	}
	if w := j.Workspace; w != nil {
		ms = append(ms, m.workspace(w, id))
	}
	for _, v := range j.Volumes {
		o := []string{"rbind", "rw", "nosuid", "nodev"}
		if v.ReadOnly {
			o[1] = "ro"
		}
		if !v.Exec {
			o = append(o, "noexec")
		} else if m.j.Mode == job.ModeProduction && !v.ReadOnly {
			m.fail(fmt.Sprintf("volume[%q].exec", v.Name), "write exec = false, or read_only = true", "volume %q is writable and executable, which mode production refuses", v.Name)
		}
		ms = append(ms, Mount{Mount: specs.Mount{Destination: v.Target, Type: "bind", Source: v.Source, Options: o}, Kind: MountBind, Origin: fmt.Sprintf("volume[%q]", v.Name), Create: v.Create, Idmap: true})
	}
	for _, t := range j.Tmpfs {
		size := int64(64 << 20)
		if t.Size != nil {
			size = *t.Size
		}
		o := []string{"rw", "nosuid", "nodev"}
		if !m.tmpfsExec(t) {
			o = append(o, "noexec")
		}
		ms = append(ms, Mount{
			Mount: specs.Mount{Destination: t.Target, Type: "tmpfs", Source: "tmpfs", Options: append(o, fmt.Sprintf("mode=%04o", t.Mode), fmt.Sprintf("size=%d", size))},
			Kind:  MountTmpfs, Origin: fmt.Sprintf("tmpfs[%q]", t.Target), UID: id.uid, GID: id.gid, Mode: t.Mode,
		})
	}
	sort.SliceStable(ms, func(a, b int) bool {
		return strings.Count(ms[a].Destination, "/") < strings.Count(ms[b].Destination, "/")
	})
	m.p.Mounts = append(m.p.Mounts, ms...)
	m.nested()
	m.ownFile()
}

// tmpfsExec: who writes a block for a larger /tmp, or /var/tmp, wants what was there before,
// and build tools run what they have just written there.
func (m *maker) tmpfsExec(t job.Tmpfs) bool {
	production := m.j.Mode == job.ModeProduction
	if t.Exec == nil {
		return !production && (t.Target == "/tmp" || t.Target == "/var/tmp")
	}
	if *t.Exec && production {
		m.fail(fmt.Sprintf("tmpfs[%q].exec", t.Target), "write exec = false", "tmpfs %q is writable and executable, which mode production refuses", t.Target)
	}
	return *t.Exec
}

func (m *maker) workspace(w *job.Workspace, id identity) Mount {
	o := []string{"rbind", "rw", "nosuid", "nodev"}
	if w.Mode == "bind-ro" {
		o[1] = "ro"
	}
	if !w.Exec {
		o = append(o, "noexec")
	} else if m.j.Mode == job.ModeProduction && w.Mode != "bind-ro" {
		m.fail("workspace.exec", "write exec = false, or mode = \"bind-ro\"", "a workspace that is writable and executable is refused in mode production")
	}
	x := Mount{Mount: specs.Mount{Destination: "/workspace", Type: "bind", Source: w.Path, Options: o}, Kind: MountBind, Origin: "workspace", Idmap: w.Mode != "overlay", UID: id.uid, GID: id.gid}
	if w.Mode == "overlay" {
		x.Kind, x.Type = MountOverlay, "overlay"
		if m.p.Root.Kind == RootOverlay {
			m.fail("workspace.mode", `write mode = "bind-rw" or "bind-ro", or rootfs { writable = "none" }`, "a workspace overlay inside a writable rootfs overlay is not supported")
		}
	}
	return x
}

// files are the small files of /etc that every sandbox gets of its own.
func (m *maker) files(id identity) {
	add := func(path, content string, keep bool) {
		m.p.Files = append(m.p.Files, File{Path: path, Content: content, Mode: 0o644, Keep: keep})
	}
	add("/etc/hostname", m.p.Hostname+"\n", false)
	plugin := m.j.Network.Plugin() // it completes them
	add("/etc/hosts", "127.0.0.1\tlocalhost "+m.p.Hostname+"\n::1\tlocalhost ip6-localhost ip6-loopback\n", false)
	resolv := "# network \"none\": there is no resolver\n"
	if m.j.Network.Backend == "host" {
		resolv = string(m.in.HostResolv)
	}
	if plugin {
		resolv = ""
	} else if len(m.j.Network.DNS) > 0 {
		resolv = "nameserver " + strings.Join(m.j.Network.DNS, "\nnameserver ") + "\n"
	}
	add("/etc/resolv.conf", resolv, false)
	for i := range m.p.Files {
		m.p.Files[i].Network = plugin && (m.p.Files[i].Path == "/etc/hosts" || m.p.Files[i].Path == "/etc/resolv.conf")
	}
	rootfs := m.j.Rootfs != nil
	var pw, gr strings.Builder
	pw.WriteString(ownRoot)
	gr.WriteString(groupRoot)
	if id.uid != 0 && id.uid != 65534 {
		fmt.Fprintf(&pw, "%s:x:%d:%d:%s:%s:/bin/sh\n", id.name, id.uid, id.gid, id.name, id.home)
	}
	if id.gid != 0 && id.gid != 65534 {
		fmt.Fprintf(&gr, "%s:x:%d:\n", id.name, id.gid)
	}
	gr.WriteString(groupTTY)
	pw.WriteString(ownNobody)
	gr.WriteString(groupNogroup)
	add("/etc/passwd", pw.String(), rootfs)
	add("/etc/group", gr.String(), rootfs)
}
