package fs

import (
	"fmt"
	"io"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// expectation is a mount that must be found when init is done.
type expectation struct {
	target   string
	fstype   string // "" for any
	set      uint64
	optional bool
	origin   string // the job's path of what asks for it, "" for a default
	unknown  bool   // what is bound was not looked at when the operation was compiled
}

func (p *Prepared) expectMount(target, fstype string, set uint64) {
	p.expect = append(p.expect, expectation{target: target, fstype: fstype, set: set, origin: p.origin})
}

// expected is what Audit compares with.
type expected struct {
	known  map[string]expectation
	masked map[string]bool
}

// Expect gets Audit ready, for which a start waits.
func (p *Prepared) Expect() {
	p.want = expected{make(map[string]expectation, len(p.expect)+len(p.plan.ReadonlyPaths)), make(map[string]bool, len(p.plan.MaskedPaths))}
	for _, e := range p.expect {
		p.want.known[e.target] = e
	}
	if p.plan.Runtime != nil {
		return // the others are of a /proc that the plugin's program makes
	}
	for _, m := range p.plan.MaskedPaths {
		p.want.masked[m] = true
	}
	for _, m := range p.plan.ReadonlyPaths {
		p.want.known[m] = expectation{target: m, set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC}
	}
}

// Audit compares the mounts of a running sandbox, as the host's kernel tells
// them (/proc/PID/mountinfo), with what was asked for. It gives every
// difference: a mount that is missing, one that lacks a flag, one that nobody
// asked for, and anything of the old root.
func (p *Prepared) Audit(r io.Reader) ([]string, error) {
	infos, err := mountinfo.GetMountsFromReader(r, nil)
	if err != nil {
		return nil, fmt.Errorf("reading mountinfo: %w", err)
	}
	if p.want.known == nil {
		p.Expect()
	}
	// The topmost mount on a path is the one that counts.
	top := make(map[string]*mountinfo.Info, len(infos))
	for _, i := range infos {
		top[i.Mountpoint] = i
	}
	var bad []string
	for _, e := range p.expect {
		i := top[e.target]
		if i == nil {
			if !e.optional {
				bad = append(bad, fmt.Sprintf("%s: no mount", e.target))
			}
			continue
		}
		if e.fstype != "" && i.FSType != e.fstype {
			bad = append(bad, fmt.Sprintf("%s: file system %s, want %s", e.target, i.FSType, e.fstype))
		}
	}
	var brought []submount
	for path, i := range top {
		if p.want.masked[path] {
			if !hasAttrs(i.Options, unix.MOUNT_ATTR_RDONLY) {
				bad = append(bad, path+": mask is writable")
			}
			continue
		}
		e, ok := governing(p.want.known, path)
		if !ok {
			bad = append(bad, fmt.Sprintf("%s: a mount that nobody asked for (%s)", path, i.FSType))
			continue
		}
		if !hasAttrs(i.Options, e.set) {
			bad = append(bad, fmt.Sprintf("%s: mounted %s, want %s", path, i.Options, attrNames(e.set)))
		}
		if e.fstype == "" && (e.unknown || path != e.target) {
			brought = append(brought, submount{i, e})
		}
	}
	return bad, p.hides(brought)
}

// governing finds the expectation for a path: its own, or that of the bind
// whose recursive clone brought it along. The root has no such submounts.
func governing(known map[string]expectation, path string) (expectation, bool) {
	for at := path; at != ""; at = at[:strings.LastIndexByte(at, '/')] {
		if e, ok := known[at]; ok {
			return e, at == path || e.fstype == ""
		}
	}
	e, ok := known["/"]
	return e, ok && path == "/"
}

var attrBits = []struct {
	bit  uint64
	name string
}{
	{unix.MOUNT_ATTR_RDONLY, "ro"},
	{unix.MOUNT_ATTR_NOSUID, "nosuid"},
	{unix.MOUNT_ATTR_NODEV, "nodev"},
	{unix.MOUNT_ATTR_NOEXEC, "noexec"},
}

func hasAttrs(options string, want uint64) bool {
	for _, a := range attrBits {
		if want&a.bit != 0 && !has(options, a.name) {
			return false
		}
	}
	return true
}

func has(options, name string) bool {
	for o := range strings.SplitSeq(options, ",") {
		if o == name {
			return true
		}
	}
	return false
}

func attrNames(set uint64) string {
	var out []string
	for _, a := range attrBits {
		if set&a.bit != 0 {
			out = append(out, a.name)
		}
	}
	return strings.Join(out, ",")
}
