package fs

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/plan"
)

// own is a path of the host that is Nucleus's, and no job's.
type own struct {
	real string // by no link, however it was written
	// hidden: it may not even be seen.
	hidden bool
	// at identifies it, then what it lies in, up to the root: another mount can show the
	// same directory below another name.
	at []inode
}

// owned gives all of them, the first time that somebody asks.
func (p *Prepared) owned() []own {
	if p.owns != nil {
		return p.owns
	}
	for i, path := range append([]string{p.opts.Programs}, p.opts.Refused...) {
		if path == "" {
			continue
		}
		real, err := filepath.EvalSymlinks(path)
		if err != nil {
			real = filepath.Clean(path) // it is not there yet
		}
		p.owns = append(p.owns, own{real: real, hidden: i > 0, at: upwards(real)})
	}
	return p.owns
}

// identify identifies a path. What does not exist is nothing's equal.
func identify(path string) inode {
	var st unix.Stat_t
	if unix.Lstat(path, &st) != nil {
		return inode{}
	}
	return inode{st.Dev, st.Ino}
}

// upwards identifies a real path, and all that it lies in.
func upwards(real string) []inode {
	var ids []inode
	for dir := real; ; dir = filepath.Dir(dir) {
		ids = append(ids, identify(dir))
		if dir == "/" || dir == "." {
			return ids
		}
	}
}

// same reports an inode among others.
func same(x inode, of ...inode) bool { return x != inode{} && slices.Contains(of, x) }

// below reports a path that is dir, or lies in it.
func below(path, dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }

// refused says why a real path may not be bound, "" if it may.
func (p *Prepared) refused(real string) string {
	if real == "/" {
		return "it is the host's root"
	}
	for _, t := range refusedTrees {
		if below(real, t) {
			return "it is below " + t
		}
	}
	here := upwards(real)
	for _, o := range p.owned() {
		if below(real, o.real) || same(o.at[0], here...) {
			return "it belongs to Nucleus (" + o.real + ")"
		}
		if (below(o.real, real) || same(here[0], o.at...)) && (o.hidden || real != "/usr" && real != "/usr/local") {
			return "it contains files of Nucleus (" + o.real + ")"
		}
	}
	return ""
}

// showable refuses a directory that every sandbox sees of the host and that holds what none
// may: a read-only mount keeps nobody from connecting to the control sockets of other
// sandboxes, which serve whoever has their owner's id.
func (p *Prepared) showable(m plan.Mount) error {
	shown := identify(m.Source)
	for _, o := range p.owned() {
		if o.hidden && (below(o.real, m.Source) || same(shown, o.at...)) {
			return &Error{
				Path: o.real, Hint: "name another directory (-state-root, NUCLEUS_STATE_ROOT, state_root of the host configuration, TMPDIR), or give the job a rootfs",
				Err: fmt.Errorf("%q is Nucleus's own and lies in %q of the host, which the sandbox would see", o.real, m.Source),
			}
		}
	}
	return nil
}
