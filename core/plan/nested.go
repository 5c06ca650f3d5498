package plan

import (
	"fmt"
	"strings"

	"github.com/nucleus-runtime/nucleus/core/host/fact"
	"github.com/nucleus-runtime/nucleus/core/job"
	"github.com/nucleus-runtime/nucleus/internal/pathname"
)

// NestedMount is a mount of the job that lies in a directory of the host's. Its
// mount point must be there: to make it would change the host.
type NestedMount struct {
	Target string // inside the sandbox
	Source string // the host's directory
	Rel    string // the mount point, below Source
	origin string
	outer  string
}

// NestedMounts finds the mounts whose mount points somebody must look at before
// a plan is made.
func NestedMounts(j *job.Job, h fact.Host) []NestedMount {
	type outer struct{ target, source string }
	var outers []outer
	if j.Rootfs == nil {
		for _, t := range h.Toolchain {
			if t.Dir && t.Link == "" {
				outers = append(outers, outer{t.Path, toolchainSource(t)})
			}
		}
	}
	if c := j.Context; c != nil {
		outers = append(outers, outer{c.Target, c.Source})
	}
	if w := j.Workspace; w != nil {
		source := w.Path
		if w.Mode == "overlay" {
			source = "" // made in its writable layer
		}
		outers = append(outers, outer{"/workspace", source})
	}
	for _, v := range j.Volumes {
		outers = append(outers, outer{v.Target, v.Source})
	}
	for _, t := range j.Tmpfs {
		outers = append(outers, outer{t.Target, ""})
	}
	var out []NestedMount
	for _, in := range targets(j) {
		var best outer
		for _, o := range outers {
			if o.target != in.path && pathname.Within(in.path, o.target) && len(o.target) > len(best.target) {
				best = o
			}
		}
		if best.source != "" {
			out = append(out, NestedMount{Target: in.path, Source: best.source, Rel: strings.TrimPrefix(in.path, best.target+"/"), origin: in.origin, outer: best.target})
		}
	}
	return out
}

// nested refuses mounts without a mount point.
func (m *maker) nested() {
	for _, n := range NestedMounts(m.j, m.h) {
		if m.in.Missing[n.Target] {
			m.fail(n.origin, fmt.Sprintf("mkdir -p %s/%s", n.Source, n.Rel),
				"there is no mount point for %q: %q, which is mounted on %q, has no directory %q, and a sandbox makes none on the host", n.Target, n.Source, n.outer, n.Rel)
		}
	}
}

// MountAt gives the mount that a clean absolute path of the sandbox lies on, nil
// for the root: the innermost, and of two at one place the later.
func (p *Plan) MountAt(path string) *Mount {
	var on *Mount
	for i := range p.Mounts {
		m := &p.Mounts[i]
		if pathname.Within(path, m.Destination) && (on == nil || len(m.Destination) >= len(on.Destination)) {
			on = m
		}
	}
	return on
}

// target is where the job mounts something, and which block says so.
type target struct{ path, origin string }

func targets(j *job.Job) []target {
	var t []target
	if j.Context != nil {
		t = append(t, target{j.Context.Target, "context"})
	}
	if j.Workspace != nil {
		t = append(t, target{"/workspace", "workspace"})
	}
	for _, v := range j.Volumes {
		t = append(t, target{v.Target, fmt.Sprintf("volume[%q]", v.Name)})
	}
	for _, x := range j.Tmpfs {
		t = append(t, target{x.Target, fmt.Sprintf("tmpfs[%q]", x.Target)})
	}
	return t
}
