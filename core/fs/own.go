package fs

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/plan"
	"github.com/nucleus-runtime/nucleus/internal/pathname"
	"github.com/nucleus-runtime/nucleus/internal/plainfile"
	"github.com/nucleus-runtime/nucleus/sdk/runtime"
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

// refused says why a real path may not be bound, "" if it may.
func (p *Prepared) refused(real string) string {
	if real == "/" {
		return "it is the host's root"
	}
	for _, t := range refusedTrees {
		if pathname.Within(real, t) {
			return "it is below " + t
		}
	}
	here := upwards(real)
	for _, o := range p.owned() {
		if pathname.Within(real, o.real) || same(o.at[0], here...) {
			return "it belongs to Nucleus (" + o.real + ")"
		}
		if (pathname.Within(o.real, real) || same(here[0], o.at...)) && (o.hidden || real != "/usr" && real != "/usr/local") {
			return "it contains files of Nucleus (" + o.real + ")"
		}
	}
	return ""
}

// elsewhere is what to do about a path of Nucleus's that is where it must not be.
const elsewhere = "name another directory (-state-root, NUCLEUS_STATE_ROOT, state_root of the host configuration, TMPDIR)"

// showable refuses a directory that every sandbox sees of the host and that holds what none
// may: a read-only mount keeps nobody from connecting to the control sockets of other
// sandboxes, which serve whoever has their owner's id.
func (p *Prepared) showable(m plan.Mount) error {
	shown := identify(m.Source)
	for _, o := range p.owned() {
		if o.hidden && (pathname.Within(o.real, m.Source) || same(shown, o.at...)) {
			return &Error{
				Path: o.real, Hint: elsewhere + ", or give the job a rootfs",
				Err: fmt.Errorf("%q is Nucleus's own and lies in %q of the host, which the sandbox would see", o.real, m.Source),
			}
		}
	}
	return nil
}

// submount is a mount of a sandbox that came along with what was bound.
type submount struct {
	*mountinfo.Info
	of expectation
}

// hides refuses those that show what no sandbox may have: the same file system, from a
// directory on that it lies in, or that lies in it. Names and inodes on the way to a source
// tell nothing of mounts below it.
func (p *Prepared) hides(brought []submount) error {
	if len(brought) == 0 {
		return nil
	}
	table, err := plainfile.Read("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	ours, err := mountinfo.GetMountsFromReader(bytes.NewReader(table), nil)
	if err != nil {
		return fmt.Errorf("reading mountinfo: %w", err)
	}
	for _, o := range p.owned() {
		if !o.hidden {
			continue
		}
		on, at, err := locate(o.real, ours)
		if err != nil {
			return fmt.Errorf("finding the mount of %q: %w", o.real, err)
		}
		for _, m := range brought {
			if on == nil || m.Major != on.Major || m.Minor != on.Minor || !pathname.Within(at, m.Root) && !pathname.Within(m.Root, at) {
				continue
			}
			hint := "unmount it, or name a directory that holds only what the sandbox may have"
			if m.of.origin == "" {
				hint = "unmount it, or " + elsewhere + ", or give the job a rootfs"
			}
			return &Error{
				Path: o.real, Origin: sourceOrigin(m.of.origin), Hint: hint,
				Err: fmt.Errorf("%q is Nucleus's own, and the sandbox would see it: what is lent as %q has a mount of it, or of what it lies in, at %q",
					o.real, p.inSandbox(m.of.target), p.inSandbox(m.Mountpoint)),
			}
		}
	}
	return nil
}

// locate finds the mount that a real path is on, and where in its file system it lies.
func locate(real string, table []*mountinfo.Info) (*mountinfo.Info, string, error) {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, real, unix.AT_SYMLINK_NOFOLLOW|unix.AT_STATX_DONT_SYNC, unix.STATX_MNT_ID, &st)
	if err == unix.ENOENT {
		return nil, "", nil // nobody can see it
	}
	if err != nil {
		return nil, "", os.NewSyscallError("statx", err)
	}
	for _, i := range table {
		if uint64(i.ID) != st.Mnt_id {
			continue
		}
		rest, err := filepath.Rel(i.Mountpoint, real)
		return i, filepath.Join(i.Root, rest), err
	}
	return nil, "", unix.ENOENT
}

// inSandbox gives the path as the workload has it, which a runtime plugin's program has
// below its own root.
func (p *Prepared) inSandbox(path string) string {
	if p.plan.Runtime == nil {
		return path
	}
	return strings.TrimPrefix(path, runtime.RootPath)
}
