package plan

import (
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// OCI gives the plan as an OCI runtime configuration. What OCI has no word for
// (Landlock, attestation, timeout, degraded protections) is not in it; the
// seccomp filter is compiled elsewhere and not repeated.
func (p *Plan) OCI() *specs.Spec {
	s := &specs.Spec{
		Version:  specs.Version,
		Process:  &p.Process,
		Root:     &specs.Root{Path: p.Root.Path, Readonly: p.Root.Kind != RootOverlay},
		Hostname: p.Hostname, Annotations: p.Annotations,
		Linux: &specs.Linux{
			UIDMappings: p.IDs.UIDs, GIDMappings: p.IDs.GIDs, Resources: p.Resources, Namespaces: p.Namespaces,
			MaskedPaths: p.MaskedPaths, ReadonlyPaths: p.ReadonlyPaths, RootfsPropagation: "rprivate",
		},
	}
	if len(p.Hooks) > 0 {
		s.Hooks = &specs.Hooks{
			CreateRuntime: p.ociHooks(HookCreateRuntime), CreateContainer: p.ociHooks(HookCreateContainer), StartContainer: p.ociHooks(HookStartContainer),
			Poststart: p.ociHooks(HookPoststart), Poststop: p.ociHooks(HookPoststop),
		}
	}
	for _, m := range p.Mounts {
		switch m.Kind {
		case MountLink, MountDevice, MountNotify:
			continue // every OCI runtime makes these itself; nobody would read the socket
		case MountScratch:
			s.Mounts = append(s.Mounts, specs.Mount{Destination: m.Destination, Type: "tmpfs", Source: "tmpfs", Options: withoutBind(m.Options)})
			continue
		}
		s.Mounts = append(s.Mounts, m.Mount)
	}
	return s
}

// ociHooks gives the hooks of a phase. OCI counts their time in whole seconds.
func (p *Plan) ociHooks(phase string) []specs.Hook {
	var out []specs.Hook
	for _, h := range p.HooksOf(phase) {
		seconds := int((h.Timeout + time.Second - 1) / time.Second)
		out = append(out, specs.Hook{Path: h.Command[0], Args: h.Command, Env: h.Env, Timeout: &seconds})
	}
	return out
}

func withoutBind(options []string) []string {
	var out []string
	for _, o := range options {
		if o != "bind" && o != "rbind" {
			out = append(out, o)
		}
	}
	return out
}
