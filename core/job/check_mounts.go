package job

import (
	"fmt"
	"slices"

	"github.com/nucleus-runtime/nucleus/core/job/internal/hclread"
	"github.com/nucleus-runtime/nucleus/internal/pathname"
)

// target is a place in the sandbox where the job mounts something.
type target struct {
	path string
	kind string // context, workspace, volume, tmpfs, secret
	at   string // the field's path
}

func (d *decoder) targets() []target {
	j := d.j
	var ts []target
	if j.Context != nil {
		ts = append(ts, target{j.Context.Target, "context", "context.target"})
	}
	if j.Workspace != nil {
		ts = append(ts, target{"/workspace", "workspace", "workspace"})
	}
	for _, v := range j.Volumes {
		ts = append(ts, target{v.Target, "volume", fmt.Sprintf("volume[%q].target", v.Name)})
	}
	for _, t := range j.Tmpfs {
		ts = append(ts, target{t.Target, "tmpfs", fmt.Sprintf("tmpfs[%q]", t.Target)})
	}
	for _, s := range j.Secrets {
		if s.Env == "" {
			ts = append(ts, target{s.Target, "secret", fmt.Sprintf("secret[%q].target", s.Name)})
		}
	}
	return slices.DeleteFunc(ts, func(t target) bool { return t.path == "" })
}

// checkMounts looks at where mounts stand. One below another is in order, the
// upper one is made first; two on one target are not, nor anything on what
// Nucleus itself mounts.
func (d *decoder) checkMounts() {
	first := map[string]target{}
	for _, t := range d.targets() {
		if why := misplaced(t); why != "" {
			d.r.Error(d.at(t.at), "Mount target refused", fmt.Sprintf("%s %s", hclread.Quote(t.path), why))
			continue
		}
		if o, dup := first[t.path]; dup {
			d.r.Error(d.at(t.at), "Two mounts on one target", fmt.Sprintf("The %s at %s is mounted on %s already: choose another target.", o.kind, d.j.Where(o.at), hclread.Quote(t.path)))
			continue
		}
		first[t.path] = t
	}
	// A secret is a file: nothing can be mounted below it.
	for _, s := range d.j.Secrets {
		for p, t := range first {
			if s.Target != "" && s.Env == "" && p != s.Target && pathname.Within(p, s.Target) {
				d.r.Error(d.at(t.at), "Mount below a file", fmt.Sprintf("%s is below %s, which is the file of the secret %s: choose another target.", hclread.Quote(p), hclread.Quote(s.Target), hclread.Quote(s.Name)))
			}
		}
	}
}

// misplaced says why nothing of this kind is mounted there.
func misplaced(t target) string {
	if t.kind == "secret" {
		if t.path == secretDir || !pathname.Within(t.path, secretDir) {
			return fmt.Sprintf("is not below %s: secrets are files there, on a private tmpfs. Write target = %q and let the program read it there.", secretDir, secretDir+"/NAME")
		}
		return ""
	}
	switch {
	case t.path == "/":
		return `is the root itself: write rootfs { path = "./rootfs" } to replace it.`
	case t.kind == "tmpfs" && t.path == "/dev/shm":
		return "" // made for it: programs need it larger than the default
	case pathname.Within(t.path, "/proc"), pathname.Within(t.path, "/sys"), pathname.Within(t.path, "/dev"):
		return "is in a file system that Nucleus makes for the sandbox. Choose a path outside of /proc, /sys and /dev."
	case pathname.Within(t.path, secretDir):
		return `is where secrets are. Write secret "name" { ... }, or choose another path.`
	case slices.Contains([]string{"/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/etc/passwd", "/etc/group"}, t.path):
		return "is written by Nucleus. Use hostname, user, or dns in the network block."
	case slices.Contains([]string{"/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/usr", "/etc"}, t.path):
		return "belongs to the root file system: write rootfs { ... } to replace it, or choose a path below it."
	case t.path == "/run" && t.kind != "tmpfs":
		return "holds what Nucleus makes at start. Choose a path below it, or a tmpfs."
	}
	return ""
}
