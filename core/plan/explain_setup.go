package plan

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

var nsMechanism = map[specs.LinuxNamespaceType]string{
	specs.UserNamespace: "clone3(CLONE_NEWUSER), id maps", specs.MountNamespace: "unshare(CLONE_NEWNS), all private, pivot_root, old root unmounted",
	specs.PIDNamespace: "clone3(CLONE_NEWPID), init is PID 1", specs.NetworkNamespace: "unshare(CLONE_NEWNET), loopback only",
	specs.IPCNamespace: "unshare(CLONE_NEWIPC)", specs.UTSNamespace: "unshare(CLONE_NEWUTS)", specs.TimeNamespace: "clone3(CLONE_NEWTIME)",
	specs.CgroupNamespace: "unshare(CLONE_NEWCGROUP) after the attach",
}

func (e *explainer) namespaces() {
	e.phase = "namespaces"
	p := e.p
	for _, n := range p.Namespaces {
		switch n.Type {
		case specs.NetworkNamespace:
			mechanism := nsMechanism[n.Type]
			if p.Network.Plugin {
				mechanism = "unshare(CLONE_NEWNET), connected by nucleus-plugin-" + p.Network.Backend
			}
			e.add(string(n.Type), "own", mechanism, "network")
		case specs.UserNamespace:
			e.add(string(n.Type), "own", nsMechanism[n.Type], "namespaces.user")
		case specs.TimeNamespace:
			e.add(string(n.Type), "own", nsMechanism[n.Type], "namespaces.time")
		default:
			e.add(string(n.Type), "own", nsMechanism[n.Type])
		}
	}
	if !p.Namespace(specs.UserNamespace) {
		e.add("user", "host", "none: ids inside are the host's", "namespaces.user")
	}
	if !p.Namespace(specs.NetworkNamespace) {
		e.add("network", "host", "none: the host's network is the sandbox's", "network")
	}
	e.connection()
	if !p.Namespace(specs.TimeNamespace) {
		e.add("time", "host", "none: clocks are the host's, and cannot be set", "namespaces.time")
	}
	for _, m := range p.IDs.UIDs {
		e.add("uid map", mapText(m), e.mapMechanism(), "namespaces.uid_map")
	}
	for _, m := range p.IDs.GIDs {
		e.add("gid map", mapText(m), e.mapMechanism(), "namespaces.gid_map")
	}
	groups := "setgroups(2)"
	if !p.IDs.SetGroups {
		groups = "kept as the caller's: the kernel denies setgroups(2) in a map of one id; they show as overflow ids and give no more than the caller has"
	}
	e.add("supplementary groups", fmt.Sprint(p.Process.User.AdditionalGids), groups, "groups")
	e.add("hostname", p.Hostname, "sethostname(2) in its UTS namespace, /etc/hostname", "hostname")
}

// connection is what a network plugin is told to enforce, before it answers.
func (e *explainer) connection() {
	n := e.p.Network
	if !n.Plugin {
		return
	}
	by := "nucleus-plugin-" + n.Backend + ", before the workload runs"
	e.add("egress", map[string]string{EgressDeny: "nothing but what a rule allows", EgressPublic: "public addresses"}[n.Egress.Default], by, "network.egress")
	for i, r := range n.Egress.Allow {
		to := append(slices.Clone(r.Names), r.CIDRs...)
		for _, j := range r.Jobs {
			to = append(to, "job "+j)
		}
		on := "every port"
		if len(r.Ports) > 0 {
			var ports []string
			for _, p := range r.Ports {
				ports = append(ports, fmt.Sprintf("%d/%s", p.Port, p.Protocol))
			}
			on = strings.Join(ports, " ")
		}
		e.add("egress", strings.Join(to, " ")+" on "+on, by, fmt.Sprintf("network.egress.allow[%d]", i))
	}
	if len(n.DNS) > 0 {
		e.add("dns", strings.Join(n.DNS, " "), "asked by nucleus-plugin-"+n.Backend+"; the sandbox asks that", "network.dns")
	}
	for i, p := range n.Publish {
		host := netip.AddrPortFrom(netip.MustParseAddr(p.HostIP), p.HostPort)
		e.add("publish", fmt.Sprintf("%s to %d/%s", host, p.Container, p.Protocol), "nucleus-plugin-"+n.Backend, fmt.Sprintf("network.publish[%d]", i))
	}
	e.add("network ends", n.OnFailure, map[string]string{"stop": "the run ends with an error", "closed": "the sandbox goes on without a network"}[n.OnFailure], "network.on_failure")
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
		e.add("control group", "none", "this host gives none: see nucleus doctor")
	}
	if p.Cgroup.Parent != "" {
		e.add("control group", "below "+p.Cgroup.Parent, "mkdir, cgroup.procs")
	}
	r := p.Resources
	if r.Memory != nil {
		e.add("memory", fmt.Sprint(*r.Memory.Limit), "memory.max (v1: memory.limit_in_bytes); the OOM killer ends the sandbox", "resources.memory")
		if r.Memory.Swap != nil {
			e.add("swap", fmt.Sprint(*r.Memory.Swap-*r.Memory.Limit), "memory.swap.max (v1: memory.memsw.limit_in_bytes)", "resources.swap")
		} else if p.lacks("cgroup.swap") {
			e.add("swap", "not limited", "nothing: this kernel does not account for swap")
		} else {
			e.add("swap", "0", "this kernel has no swap")
		}
	}
	if v, ok := r.Unified["memory.high"]; ok {
		e.add("memory_high", v, "memory.high", "resources.memory_high")
	}
	if r.CPU != nil && r.CPU.Quota != nil {
		e.add("cpus", fmt.Sprintf("%.2f", float64(*r.CPU.Quota)/float64(*r.CPU.Period)), "cpu.max (v1: cpu.cfs_quota_us)", "resources.cpus")
	}
	if v, ok := r.Unified["cpu.weight"]; ok {
		e.add("cpu_weight", v, "cpu.weight (v1: cpu.shares)", "resources.cpu_weight")
	}
	if n := p.Pids(); n > 0 && p.Runtime != nil {
		e.add("threads of the runtime", fmt.Sprint(n), "pids.max, with room for the runtime's own", "resources.pids")
	} else if n > 0 {
		e.add("pids", fmt.Sprint(n), "pids.max", "resources.pids")
	}
	if b := r.BlockIO; b != nil {
		e.io("read_bps", b.ThrottleReadBpsDevice, "rbps", "read_bps_device")
		e.io("write_bps", b.ThrottleWriteBpsDevice, "wbps", "write_bps_device")
		e.io("read_iops", b.ThrottleReadIOPSDevice, "riops", "read_iops_device")
		e.io("write_iops", b.ThrottleWriteIOPSDevice, "wiops", "write_iops_device")
	}
}

func (e *explainer) io(name string, ds []specs.LinuxThrottleDevice, v2, v1 string) {
	for _, d := range ds {
		numbers := fmt.Sprintf("%d:%d", d.Major, d.Minor)
		e.add(fmt.Sprintf("io %s %s", numbers, name), fmt.Sprint(d.Rate), fmt.Sprintf("io.max %s (v1: blkio.throttle.%s)", v2, v1),
			fmt.Sprintf("resources.io[%q].%s", e.p.device(numbers), name))
	}
}

func (e *explainer) fs() {
	e.phase = "fs"
	p := e.p
	what := map[string]string{RootToolchain: "the host's toolchain, read-only, on a private tmpfs", RootRootfs: p.Root.Path + ", read-only", RootOverlay: p.Root.Path + ", writable in memory, discarded"}[p.Root.Kind]
	e.add("/", what, "tmpfs, binds, mount_setattr(AT_RECURSIVE), pivot_root", "rootfs.path", "rootfs.writable")
	if p.Root.Digest != "" {
		e.add("rootfs digest", p.Root.Digest, "the tree is hashed before the start", "rootfs.digest")
	}
	e.add("writable memory", fmt.Sprint(p.Root.Size), "size= of the root tmpfs", "resources.rootfs_size")
	for _, m := range p.Mounts {
		e.mount(m)
	}
	e.secrets()
	for _, f := range p.Files {
		paths := map[string][]string{"/etc/hostname": {"hostname"}, "/etc/hosts": {"hostname"}, "/etc/resolv.conf": {"network"}, "/etc/passwd": {"user"}, "/etc/group": {"user"}}[f.Path]
		text := fmt.Sprintf("%d bytes", len(f.Content))
		if f.Keep {
			text += ", unless the rootfs has it"
		}
		e.add(f.Path, text, "file of the sandbox's own", paths...)
	}
	e.add("masked", strings.Join(p.MaskedPaths, " "), e.by("/dev/null or an empty tmpfs over it"))
	e.add("read-only", strings.Join(p.ReadonlyPaths, " "), e.by("bind, mount_setattr(RDONLY)"))
}

func (e *explainer) mount(m Mount) {
	options := func(o []string) string { return " (" + strings.Join(o, ",") + ")" }
	var paths []string
	if m.Origin != "" {
		paths = []string{m.Origin}
	}
	if m.Inside {
		value := "the runtime's own"
		if m.Optional {
			value += ", if it has one"
		}
		e.add(m.Destination, value, e.by(""), paths...)
		return
	}
	switch m.Kind {
	case MountLink:
		e.add(m.Destination, "-> "+m.Source, "symbolic link", paths...)
	case MountContext:
		c := e.p.Context
		v, how := "copy of "+c.Source, "packed outside, unpacked by init, then read-only"
		if c.Method == "bind" {
			v, how = c.Source, "bind, mount_setattr(AT_RECURSIVE), read back"
		}
		if c.Verify {
			how += "; its digest compared inside"
		}
		if len(c.Exclude) > 0 {
			v += " without " + strings.Join(c.Exclude, " ")
		}
		e.add(m.Destination, v+options(m.Options[1:]), how, paths...)
	case MountToolchain, MountBind:
		v := m.Source + options(m.Options[1:])
		if m.Create {
			v += ", made if it is missing"
		}
		e.add(m.Destination, v, "bind, mount_setattr(AT_RECURSIVE), read back", paths...)
	case MountOverlay:
		e.add(m.Destination, m.Source+options(m.Options[1:])+", changes discarded", "overlayfs, upper layer in memory, read back", paths...)
	case MountScratch:
		how := "directory of the root tmpfs, bind, read back"
		if e.p.Root.Kind == RootOverlay {
			how = "directory of the overlay"
		}
		e.add(m.Destination, m.Kind+options(m.Options), how, paths...)
	case MountDevice:
		e.add(m.Destination, "the host's"+options(m.Options[1:]), "bind of the node, read back", paths...)
	default:
		e.add(m.Destination, m.Kind+options(m.Options), "mount, read back", paths...)
	}
}
