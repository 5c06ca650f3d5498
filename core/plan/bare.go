package plan

import (
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Bare is what of a plan may be written down: what holds for its sandbox, and nothing that
// could be, or have in it, a secret of the job. Commands, and what files and annotations say, are left out;
// variables are their names. What it has is named here one by one: a new field of a plan
// is not in it unless somebody has thought about that.
func (p *Plan) Bare() *Plan {
	b := &Plan{
		Version: p.Version, Name: p.Name, File: p.File, Mode: p.Mode, AllowDegraded: p.AllowDegraded, Trust: p.Trust,
		Process: specs.Process{
			Terminal: p.Process.Terminal, User: p.Process.User, Cwd: p.Process.Cwd, Capabilities: p.Process.Capabilities,
			Rlimits: p.Process.Rlimits, NoNewPrivileges: p.Process.NoNewPrivileges,
		},
		Init: p.Init, Hostname: p.Hostname, Timeout: p.Timeout, Stop: p.Stop,
		Namespaces: p.Namespaces, IDs: p.IDs,
		Root: p.Root, Mounts: p.Mounts, MaskedPaths: p.MaskedPaths, ReadonlyPaths: p.ReadonlyPaths, Context: p.Context,
		Resources: p.Resources, Devices: p.Devices, Cgroup: p.Cgroup,
		Seccomp: p.Seccomp, Landlock: p.Landlock, Lockdown: p.Lockdown,
		Network: Network{
			Backend: p.Network.Backend, Plugin: p.Network.Plugin, Publish: p.Network.Publish, DNS: p.Network.DNS, Egress: p.Network.Egress, OnFailure: p.Network.OnFailure,
		},
		Restart: p.Restart, Notify: p.Notify, SocketActivation: p.SocketActivation,
		Degraded: p.Degraded, Origins: p.Origins,
	}
	if r := p.Runtime; r != nil {
		b.Runtime = &Runtime{Plugin: r.Plugin, Capabilities: r.Capabilities, Rlimits: r.Rlimits, Libraries: r.Libraries}
	}
	for _, kv := range p.Process.Env {
		name, _, _ := strings.Cut(kv, "=")
		b.Process.Env = append(b.Process.Env, name)
	}
	for _, f := range p.Files {
		b.Files = append(b.Files, File{Path: f.Path, Mode: f.Mode, Keep: f.Keep, Network: f.Network})
	}
	for _, s := range p.Secrets {
		b.Secrets = append(b.Secrets, Secret{Name: s.Name, Provider: s.Provider, Target: s.Target, Mode: s.Mode, UID: s.UID, GID: s.GID, Env: s.Env, Origin: s.Origin})
	}
	for _, h := range p.Hooks {
		b.Hooks = append(b.Hooks, Hook{Phase: h.Phase, Timeout: h.Timeout, Origin: h.Origin})
	}
	for _, h := range p.PluginHooks {
		b.PluginHooks = append(b.PluginHooks, PluginHook{Plugin: h.Plugin, Timeout: h.Timeout, Origin: h.Origin})
	}
	if r := p.Readiness; r != nil {
		b.Readiness = &Readiness{Probe: r.bare(), Notify: r.Notify, Interval: r.Interval, Timeout: r.Timeout}
	}
	if h := p.Health; h != nil {
		b.Health = &Health{Probe: h.bare(), Interval: h.Interval, Timeout: h.Timeout, StartPeriod: h.StartPeriod, Retries: h.Retries, OnFailure: h.OnFailure}
	}
	return b
}

// bare has where a probe goes, not what it says there.
func (p Probe) bare() Probe { return Probe{TCP: p.TCP, Addrs: p.Addrs} }
