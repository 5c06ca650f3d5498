package fs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/initproto"
	"github.com/nucleus-runtime/nucleus/core/plan"
	"github.com/nucleus-runtime/nucleus/core/tree"
)

// lowerDir is where the rootfs is attached while the root is built from it.
const lowerDir = staging + "/rootfs"

// maxEntries bounds the entries of one rootfs directory that is taken apart.
const maxEntries = 4096

// rootfs compiles a root that is made from a directory of the host. It gives
// the files of the plan that are still to be made.
//
// A read-only rootfs is never mounted as / itself, for its mount points would
// have to be made in it, on the host. Instead / is the sandbox's own tmpfs and
// each entry of the rootfs is bound into it; a directory that lacks a mount
// point, or a file of ours, is taken apart in the same way.
func (p *Prepared) rootfs(ctx context.Context) ([]plan.File, error) {
	f, real, err := p.source(p.plan.Root.Path, "rootfs.path")
	if err != nil {
		return nil, err
	}
	dir, err := openDir(int(f.Fd()), ".")
	if err != nil {
		_ = f.Close()
		return nil, &Error{Path: real, Origin: "rootfs.path", Hint: "name a directory", Err: fmt.Errorf("rootfs %q: %w", p.plan.Root.Path, err)}
	}
	defer dir.Close()
	// By the handle that is mounted, so that what is attested is what is used.
	if want := p.plan.Root.Digest; want != "" {
		if err := tree.Verify(ctx, dir, want, 0); err != nil {
			_ = f.Close()
			return nil, &Error{Path: real, Origin: "rootfs.digest", Hint: "nucleus rootfs digest " + p.plan.Root.Path, Err: fmt.Errorf("rootfs: %w", err)}
		}
	}
	set := uint64(unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV)
	var idmap *idMapping
	if p.opts.Privileged && p.plan.IDs.Kind != "none" {
		idmap = p.shifted()
	}
	if err := p.bindOp(f, real, lowerDir, set, idmap); err != nil {
		return nil, &Error{Path: real, Origin: "rootfs.path", Err: err}
	}
	names, err := dir.Readdirnames(maxEntries + 1)
	if err != nil && len(names) == 0 {
		names = nil // an empty directory
	}
	slices.Sort(names)
	for _, n := range names {
		// Not through links: a rule for one would be a rule for wherever it leads,
		// a writable place or what init has open.
		if t, err := typeOf(int(dir.Fd()), "/"+n); err == nil && !slices.Contains(kernelDirs, n) && (t == unix.S_IFDIR || t == unix.S_IFREG) {
			p.Entries = append(p.Entries, "/"+n)
		}
	}
	files, err := p.filesToMake(int(dir.Fd()))
	if err != nil {
		return nil, err
	}
	if err := p.links(int(dir.Fd()), files); err != nil {
		return nil, err
	}
	if p.plan.Root.Kind == plan.RootOverlay {
		return files, p.overlayRoot()
	}
	c := composer{p: p, root: int(dir.Fd()), set: set, targets: map[string]bool{}, made: map[string]bool{}}
	for _, m := range p.plan.Mounts {
		c.targets[m.Destination] = true
		c.made[m.Destination] = m.Kind == plan.MountScratch || m.Kind == plan.MountContext && m.Source == "tmpfs"
	}
	for i, x := range files {
		c.targets[x.Path] = true
		files[i] = x
	}
	if err := c.dir("/", names); err != nil {
		return nil, err
	}
	// Files whose place exists are bound over it, all others are simply made.
	return c.placeFiles(files), nil
}

// kernelDirs are entries of a rootfs that the sandbox has its own of.
var kernelDirs = []string{"dev", "proc", "sys", "run", "tmp"}

// filesToMake leaves out the files that the rootfs may keep, where it has them, and
// refuses a rootfs that has a directory in the place of one.
func (p *Prepared) filesToMake(root int) ([]plan.File, error) {
	var out []plan.File
	for _, f := range p.plan.Files {
		t, err := typeOf(root, f.Path)
		if err == nil && t == unix.S_IFDIR {
			at := filepath.Join(p.plan.Root.Path, f.Path)
			return nil, &Error{
				Path: at, Origin: "rootfs.path", Hint: fmt.Sprintf("remove the directory %q, or put a file in its place", at),
				Err: fmt.Errorf("rootfs entry %q is a directory, where the sandbox has a file of its own", f.Path),
			}
		}
		if f.Keep && err == nil && t == unix.S_IFREG {
			continue
		}
		out = append(out, f)
	}
	return out, nil
}

// links refuses a rootfs with a symbolic link on the way to what the sandbox puts into it,
// for init follows none. In an overlay a link in the place of a mount point is in the way as
// well: elsewhere what is mounted there is made anew.
func (p *Prepared) links(root int, files []plan.File) error {
	overlay := p.plan.Root.Kind == plan.RootOverlay
	ours := map[string]bool{} // below these is nothing of the rootfs
	for _, m := range p.plan.Mounts {
		ours[m.Destination] = !overlay || m.Kind != plan.MountScratch
	}
	directory := map[string]bool{} // what was looked at: most lies in /etc
	check := func(path, origin string, last bool) error {
		for end := 1; end <= len(path); end++ {
			at := path[:end]
			switch {
			case end < len(path) && path[end] != '/':
				continue
			case end == len(path) && !last, end < len(path) && ours[at]:
				return nil
			}
			is, known := directory[at]
			if !known {
				t, err := typeOf(root, at)
				if errors.Is(err, unix.ELOOP) {
					return p.linkInTheWay(at, path, origin)
				}
				is = err == nil && t == unix.S_IFDIR
				directory[at] = is
			}
			if !is {
				return nil
			}
		}
		return nil
	}
	for _, f := range files {
		if err := check(f.Path, "", false); err != nil {
			return err
		}
	}
	for _, m := range p.plan.Mounts {
		if m.Inside {
			continue
		}
		if err := check(m.Destination, m.Origin, overlay); err != nil {
			return err
		}
	}
	return nil
}

// linkInTheWay is the error of a path, which the job has named if it has an origin.
func (p *Prepared) linkInTheWay(link, path, origin string) error {
	at := filepath.Join(p.plan.Root.Path, link)
	e := &Error{
		Path: at, Origin: "rootfs.path", Hint: fmt.Sprintf("put a directory in the place of the link %q", at),
		Err: fmt.Errorf("rootfs entry %q is a symbolic link, and the sandbox's own %q is not made behind one", link, path),
	}
	if origin != "" {
		e.Origin, e.Hint = origin, fmt.Sprintf("name the path that %q leads to, or put a directory in its place", at)
		e.Err = fmt.Errorf("rootfs entry %q is a symbolic link, by which %q is not reached", link, path)
	}
	if path == link {
		e.Err = fmt.Errorf("rootfs entry %q is a symbolic link, where the sandbox has a mount point", link)
	}
	return e
}

// overlayRoot lays a writable layer in memory over the whole rootfs.
func (p *Prepared) overlayRoot() error {
	upper, work := staging+"/upper", staging+"/work"
	for _, d := range []string{upper, work} {
		p.op(initproto.Op{Code: initproto.OpMkdir, Target: d, Mode: 0o755, UID: p.rootUID(), GID: p.rootGID(), FD: -1})
	}
	set := uint64(unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV)
	o := initproto.Op{Code: initproto.OpOverlay, Target: "/", Data: lowerDir + "\x00" + upper + "\x00" + work, Set: set, FD: -1}
	if p.plan.IDs.Kind != "none" {
		o.Flags |= initproto.FlagUserXattr
	}
	p.op(o)
	p.expectMount("/", "overlay", set)
	return nil
}

// composer takes directories of a rootfs apart.
type composer struct {
	p       *Prepared
	root    int
	set     uint64
	targets map[string]bool
	made    map[string]bool // targets that are directories of the root tmpfs
	bound   []string        // entries that were bound whole
}

// dir compiles the entries of one directory that is taken apart.
func (c *composer) dir(path string, names []string) error {
	if len(names) > maxEntries {
		return &Error{
			Path: path, Origin: "rootfs.path", Hint: "create the missing mount point in the rootfs",
			Err: fmt.Errorf("%q of the rootfs lacks a mount point and has more than %d entries", path, maxEntries),
		}
	}
	for _, n := range names {
		if err := c.entry(join(path, n)); err != nil {
			return err
		}
	}
	return nil
}

func (c *composer) entry(path string) error {
	if c.targets[path] {
		return nil // something of ours is mounted there
	}
	var st unix.Stat_t
	if err := fstatat(c.root, path, &st); err != nil {
		return c.fail(path, err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		target, err := readlinkat(c.root, path)
		if err != nil {
			return c.fail(path, err)
		}
		c.p.op(initproto.Op{Code: initproto.OpSymlink, Target: path, Source: target, FD: -1})
		return nil
	case unix.S_IFDIR:
		whole := true
		for t := range c.targets {
			if strings.HasPrefix(t, path+"/") {
				// A directory that is ours cannot lie in one that is bound from the host.
				if _, err := typeOf(c.root, t); err != nil || c.made[t] {
					whole = false
				}
			}
		}
		if whole {
			c.bind(path, 0)
			return nil
		}
		c.p.op(initproto.Op{Code: initproto.OpMkdir, Target: path, Mode: st.Mode & 0o7777, UID: c.p.rootUID(), GID: c.p.rootGID(), FD: -1})
		d, err := openDir(c.root, path)
		if err != nil {
			return c.fail(path, err)
		}
		defer d.Close()
		names, err := d.Readdirnames(-1)
		if err != nil {
			return c.fail(path, err)
		}
		slices.Sort(names)
		return c.dir(path, names)
	case unix.S_IFREG:
		c.bind(path, initproto.FlagFile)
		return nil
	}
	return nil // devices, pipes and sockets of a rootfs mean nothing inside
}

func (c *composer) bind(path string, flags uint32) {
	c.p.op(initproto.Op{Code: initproto.OpBind, Target: path, Source: lowerDir + path, Set: c.set, Flags: flags | initproto.FlagInRoot | initproto.FlagRecursive, FD: -1})
	c.p.expect = append(c.p.expect, expectation{target: path, set: c.set, origin: "rootfs.path", unknown: true})
	c.bound = append(c.bound, path)
}

func (c *composer) fail(path string, err error) error {
	return &Error{Path: path, Origin: "rootfs.path", Err: fmt.Errorf("rootfs entry %q: %w", path, err)}
}

// placeFiles binds the files whose directory was bound whole, and gives the rest.
func (c *composer) placeFiles(files []plan.File) []plan.File {
	var rest []plan.File
	for i, f := range files {
		covered := slices.ContainsFunc(c.bound, func(b string) bool { return strings.HasPrefix(f.Path, b+"/") })
		if !covered {
			rest = append(rest, f)
			continue
		}
		tmp := fmt.Sprintf("%s/file%d", staging, i)
		set := uint64(unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC)
		c.p.op(later(initproto.Op{Code: initproto.OpFile, Target: tmp, Data: f.Content, Mode: f.Mode, UID: c.p.rootUID(), GID: c.p.rootGID(), FD: -1}, f))
		c.p.op(initproto.Op{Code: initproto.OpBind, Target: f.Path, Source: tmp, Set: set, Flags: initproto.FlagInRoot | initproto.FlagFile, FD: -1})
		c.p.op(initproto.Op{Code: initproto.OpRemove, Target: tmp, FD: -1})
		c.p.expectMount(f.Path, "tmpfs", set)
	}
	return rest
}

// How a path of a rootfs is resolved: below its root, through no link. What is
// found here is only used to choose operations; init resolves everything again
// in the same way.
const beneathRoot = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS

func openat(root int, path string, flags uint64) (int, error) {
	rel := strings.TrimPrefix(path, "/")
	if rel == "" {
		rel = "."
	}
	fd, err := unix.Openat2(root, rel, &unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: beneathRoot})
	return fd, os.NewSyscallError("openat2", err)
}

func openDir(root int, path string) (*os.File, error) {
	fd, err := openat(root, path, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

func fstatat(root int, path string, st *unix.Stat_t) error {
	if name := strings.TrimPrefix(path, "/"); name != "" && name != ".." && !strings.Contains(name, "/") {
		// Of one element nothing is resolved.
		return os.NewSyscallError("fstatat", unix.Fstatat(root, name, st, unix.AT_SYMLINK_NOFOLLOW))
	}
	fd, err := openat(root, path, unix.O_PATH|unix.O_NOFOLLOW)
	if errors.Is(err, unix.ELOOP) {
		// RESOLVE_NO_SYMLINKS refuses a link at the end as well; the parent is
		// resolved without links, the last element is only looked at.
		i := strings.LastIndexByte(path, '/')
		if fd, err = openat(root, path[:i], unix.O_PATH|unix.O_DIRECTORY); err != nil {
			return err
		}
		defer unix.Close(fd)
		return os.NewSyscallError("fstatat", unix.Fstatat(fd, path[i+1:], st, unix.AT_SYMLINK_NOFOLLOW))
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return os.NewSyscallError("fstat", unix.Fstat(fd, st))
}

func typeOf(root int, path string) (uint32, error) {
	var st unix.Stat_t
	if err := fstatat(root, path, &st); err != nil {
		return 0, err
	}
	if t := st.Mode & unix.S_IFMT; t != unix.S_IFLNK {
		return t, nil
	}
	return 0, unix.ELOOP // a link is no mount point
}

func readlinkat(root int, path string) (string, error) {
	i := strings.LastIndexByte(path, '/')
	fd, err := openat(root, path[:i], unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fd, path[i+1:], buf)
	if err != nil {
		return "", os.NewSyscallError("readlinkat", err)
	}
	return string(buf[:n]), nil
}

func join(dir, name string) string {
	if dir == "/" {
		return "/" + name
	}
	return dir + "/" + name
}
