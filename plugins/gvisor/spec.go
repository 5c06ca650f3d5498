package gvisor

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/nucleus-runtime/nucleus/sdk/errs"
	"github.com/nucleus-runtime/nucleus/sdk/runtime"
)

// bundle is a config.json that runsc does what it says of. runsc leaves out, with no
// more than a line in a log that nobody has asked for, what it does not know: so a
// new one is written of what it is known to do, and the rest is refused.
type bundle struct{ specs.Spec }

// own are the directories that are gVisor's own whatever the spec says, or that have
// nothing of the host below them.
var own = []string{"/proc", "/sys", "/dev/pts", "/dev/mqueue"}

// devices are in gVisor's /dev, and are its own.
var devices = []string{"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty", "/dev/ptmx", "/dev/console"}

func rewrite(raw []byte, stack string) (*bundle, error) {
	var in specs.Spec
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(&in); err != nil {
		return nil, errs.Preconditionf("the sandbox's specification is none that this plugin knows all of: %w", err)
	}
	if in.Process == nil || in.Root == nil {
		return nil, &errs.Error{Code: errs.Config, Text: "the sandbox's specification has no process, or no root"}
	}
	if in.Root.Path != runtime.RootPath {
		return nil, &errs.Error{Code: errs.Config, Text: fmt.Sprintf("the sandbox's root is %q, and is %s", in.Root.Path, runtime.RootPath)}
	}
	if err := cannot(&in); err != nil {
		return nil, err
	}
	out := &bundle{specs.Spec{
		Version: in.Version, Process: in.Process, Root: in.Root, Hostname: in.Hostname, Domainname: in.Domainname,
		// Those of others could change what runsc's flags say (dev.gvisor.*).
		Annotations: nil,
		// The core has made all namespaces and control groups, and runsc is in them.
		Linux: &specs.Linux{},
	}}
	if stack == stackSandbox {
		// It takes the interfaces of a namespace that the specification names, and else
		// those of a new one, which has none.
		out.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.NetworkNamespace, Path: "/proc/self/ns/net"}}
	}
	for _, m := range in.Mounts {
		keep, err := mount(m)
		if err != nil {
			return nil, err
		}
		if keep {
			out.Mounts = append(out.Mounts, m)
		}
	}
	return out, nil
}

// cannot refuses what gVisor does not do.
func cannot(s *specs.Spec) error {
	p := s.Process
	l := s.Linux
	if l == nil {
		l = &specs.Linux{}
	}
	for _, c := range []struct {
		has  bool
		what string
	}{
		// They would be run in the program's root, not in the workload's.
		{s.Hooks != nil, "hooks"},
		{s.Solaris != nil || s.Windows != nil || s.VM != nil || s.ZOS != nil || s.FreeBSD != nil, "another system's part"},
		{p.ApparmorProfile != "", "an AppArmor profile"},
		{p.SelinuxLabel != "" || l.MountLabel != "", "an SELinux label"},
		{p.Scheduler != nil, "a scheduling policy"},
		{p.IOPriority != nil, "an I/O priority"},
		{p.ExecCPUAffinity != nil, "a CPU affinity of commands"},
		{l.Seccomp != nil, "a seccomp filter (gVisor's own kernel is what system calls come to)"},
		{len(l.Sysctl) > 0, "sysctls"},
		{len(l.Devices) > 0, "devices"},
		{len(l.UIDMappings) > 0 || len(l.GIDMappings) > 0, "a user namespace inside"},
		{len(l.Namespaces) > 0, "namespaces of its own"},
		{l.CgroupsPath != "", "a control group of its own"},
		{l.IntelRdt != nil, "Intel RDT"},
		{l.Personality != nil, "a personality"},
		{len(l.TimeOffsets) > 0, "clock offsets"},
		{l.MemoryPolicy != nil, "a NUMA memory policy"},
		{len(l.NetDevices) > 0, "network devices"},
	} {
		if c.has {
			return errs.Preconditionf("gVisor has no %s: take it out of the job, or run the job natively", c.what)
		}
	}
	// What is below gVisor's own /proc and /sys is nothing of the host's.
	for _, hidden := range slices.Concat(l.MaskedPaths, l.ReadonlyPaths) {
		if !below(hidden, "/proc") && !below(hidden, "/sys") {
			return errs.Preconditionf("gVisor hides no paths in the sandbox's root, and %s is to be hidden", hidden)
		}
	}
	return nil
}

// mount tells whether runsc is to be told of a mount.
func mount(m specs.Mount) (bool, error) {
	to := path.Clean(m.Destination)
	if !path.IsAbs(to) || len(m.UIDMappings) > 0 || len(m.GIDMappings) > 0 {
		return false, errs.Preconditionf("gVisor makes no mount at %q with mapped ids, or at a path that is not absolute", m.Destination)
	}
	switch m.Type {
	case "proc", "sysfs", "devpts", "mqueue":
		if !slices.Contains(own, to) {
			return false, errs.Preconditionf("gVisor mounts no %s at %s: it has its own where it belongs", m.Type, to)
		}
		return m.Type == "proc" || m.Type == "sysfs", nil
	case "tmpfs":
		// runsc takes each mount at /dev for one of its own devices.
		return to != "/dev", nil
	case "bind", "none", "":
		if !slices.Contains(m.Options, "bind") && !slices.Contains(m.Options, "rbind") && m.Type != "bind" {
			break
		}
		if slices.Contains(devices, to) {
			return false, nil
		}
		for _, dir := range append([]string{"/dev"}, own...) {
			if below(to, dir) {
				return false, errs.Preconditionf("gVisor mounts nothing of the host's below %s, and there is to be %s", dir, to)
			}
		}
		if !below(path.Clean(m.Source), runtime.RootPath) || !path.IsAbs(m.Source) {
			return false, &errs.Error{Code: errs.Config, Text: fmt.Sprintf("the source of the mount at %s is %q, and not below %s", to, m.Source, runtime.RootPath)}
		}
		return true, nil
	}
	return false, errs.Preconditionf("gVisor mounts no %s, and there is to be one at %s", m.Type, to)
}

// below tells whether a path is a directory, or in it.
func below(p, dir string) bool { return p == dir || strings.HasPrefix(p, dir+"/") }

// notifies tells whether the workload is to write to a socket of the host's.
func (b *bundle) notifies() bool {
	return slices.ContainsFunc(b.Process.Env, func(v string) bool { return strings.HasPrefix(v, "NOTIFY_SOCKET=/") })
}

func (b *bundle) json() ([]byte, error) { return json.Marshal(b.Spec) }
