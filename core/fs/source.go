package fs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/initproto"
	"github.com/nucleus-runtime/nucleus/core/plan"
)

// refusedTrees may not be bound, nor anything below them: they are the
// kernel's interfaces, or what the host boots from.
var refusedTrees = []string{"/proc", "/sys", "/dev", "/boot"}

// source opens a host path that the job names. Symbolic links are followed
// here, once, as far as they can be trusted; what counts from then on is the
// inode that the descriptor refers to.
func (p *Prepared) source(path, origin string) (*os.File, string, error) {
	fail := func(hint string, err error) (*os.File, string, error) {
		return nil, "", &Error{Path: path, Origin: sourceOrigin(origin), Hint: hint, Err: err}
	}
	fd, err := p.open(path)
	if err != nil {
		hint := ""
		switch {
		case errors.Is(err, unix.ENOENT):
			hint = "create it, or correct the path"
		case errors.Is(err, errLeaves):
			hint = "if the link is yours, write the path that it leads to"
		case errors.Is(err, errForeign):
			hint = "if you trust where the link leads, write that path"
		}
		return fail(hint, fmt.Errorf("source %q: %w", path, err))
	}
	f := os.NewFile(uintptr(fd), path)
	real, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		_ = f.Close()
		return fail("", fmt.Errorf("source %q: %w", path, err))
	}
	if why := p.refused(real); why != "" {
		_ = f.Close()
		return fail("name a directory that holds only what the sandbox may have", fmt.Errorf("source %q is refused: %s", path, why))
	}
	return f, real, nil
}

// sourceOrigin names the attribute that a block names its source with.
func sourceOrigin(block string) string {
	switch block {
	case "", "rootfs.path", "runtime":
		return block
	case "workspace":
		return "workspace.path"
	}
	return block + ".source"
}

// bindOp compiles the binding of an opened source. A privileged supervisor
// clones the mount itself: the sandbox's root may have no right to open the
// path. Otherwise init opens it again and checks that it is the same inode,
// for a descriptor cannot be bound across mount namespaces.
func (p *Prepared) bindOp(f *os.File, real, target string, set uint64, idmap *idMapping) error {
	o := initproto.Op{Code: initproto.OpBind, Target: target, Source: real, Set: set, Flags: initproto.FlagRecursive | initproto.FlagVerify}
	if !p.opts.Privileged {
		o.FD = p.pass(f)
		p.op(o)
		return nil
	}
	defer f.Close()
	detached, err := detach(f, real, set, idmap)
	if err != nil {
		return err
	}
	o.Flags = initproto.FlagDetached
	o.FD = p.pass(detached)
	p.op(o)
	return nil
}

// detach clones the mount of an opened source.
func detach(f *os.File, real string, set uint64, idmap *idMapping) (*os.File, error) {
	tree, err := unix.OpenTree(int(f.Fd()), "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH|unix.AT_RECURSIVE)
	if err != nil {
		return nil, fmt.Errorf("cloning the mount of %q: %w", real, os.NewSyscallError("open_tree", err))
	}
	detached := os.NewFile(uintptr(tree), real)
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: set, Propagation: unix.MS_PRIVATE}); err != nil {
		_ = detached.Close()
		return nil, fmt.Errorf("setting mount attributes of %q: %w", real, os.NewSyscallError("mount_setattr", err))
	}
	if idmap != nil {
		err := idmap.apply(tree)
		var fe *Error
		if errors.As(err, &fe) && fe.unmappable && set&unix.MOUNT_ATTR_RDONLY != 0 {
			err = nil // it shows the overflow id as owner, and can be read all the same
		}
		if err != nil {
			_ = detached.Close()
			return nil, err
		}
	}
	return detached, nil
}

// bind compiles a volume or a workspace.
func (p *Prepared) bind(m plan.Mount) error {
	if m.Create {
		if err := p.create(m); err != nil {
			return err
		}
	}
	f, real, err := p.source(m.Source, m.Origin)
	if err != nil {
		return err
	}
	set, _ := attrs(m.Options)
	idmap, err := p.lentAs(m, f)
	if err != nil {
		_ = f.Close()
		return err
	}
	if err := p.bindOp(f, real, m.Destination, set, idmap); err != nil {
		var fe *Error
		if errors.As(err, &fe) {
			fe.Path, fe.Origin = real, m.Origin
			return fe
		}
		return &Error{Path: real, Origin: m.Origin, Err: err}
	}
	p.expectMount(m.Destination, "", set)
	return nil
}

// create makes a volume's source directory, owned by whoever the workload is
// outside, if it does not exist.
func (p *Prepared) create(m plan.Mount) error {
	if _, err := os.Lstat(m.Source); err == nil {
		return nil
	}
	fail := func(hint string, err error) error {
		return &Error{Path: m.Source, Origin: sourceOrigin(m.Origin), Hint: hint, Err: fmt.Errorf("creating source %q: %w", m.Source, err)}
	}
	if why := p.refused(filepath.Clean(m.Source)); why != "" {
		return fail("", fmt.Errorf("refused: %s", why))
	}
	parent, err := p.open(filepath.Dir(m.Source))
	if err != nil {
		return fail("create its parent directory", err)
	}
	defer unix.Close(parent)
	real, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", parent))
	if err != nil {
		return fail("", err)
	}
	if why := p.refused(filepath.Join(real, filepath.Base(m.Source))); why != "" {
		return fail("", fmt.Errorf("refused: %s", why))
	}
	if err := unix.Mkdirat(parent, filepath.Base(m.Source), 0o755); errors.Is(err, unix.EEXIST) {
		return nil // another sandbox that starts at the same time has made it
	} else if err != nil {
		return fail("", os.NewSyscallError("mkdirat", err))
	}
	p.Created = append(p.Created, m.Source)
	// Without a user namespace no mount makes the workload its owner.
	if u := p.plan.Process.User; p.opts.Privileged && p.plan.IDs.Kind == "none" {
		if err := unix.Fchownat(parent, filepath.Base(m.Source), int(u.UID), int(u.GID), unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fail("", os.NewSyscallError("fchownat", err))
		}
	}
	return nil
}

// workspaceOverlay lays a writable directory in memory over the workspace.
func (p *Prepared) workspaceOverlay(m plan.Mount) error {
	f, real, err := p.source(m.Source, m.Origin)
	if err != nil {
		return err
	}
	set, _ := attrs(m.Options)
	lower, upper, work := staging+"/workspace-lower", staging+"/workspace-upper", staging+"/workspace-work"
	var idmap *idMapping
	if p.opts.Privileged && p.plan.IDs.Kind != "none" {
		if idmap, err = p.ownerMapping(f); err != nil {
			_ = f.Close()
			return err
		}
	}
	if err := p.bindOp(f, real, lower, set|unix.MOUNT_ATTR_RDONLY, idmap); err != nil {
		return &Error{Path: real, Origin: m.Origin, Err: err}
	}
	for _, d := range []string{upper, work} {
		p.op(initproto.Op{Code: initproto.OpMkdir, Target: d, Mode: 0o755, UID: m.UID, GID: m.GID, FD: -1})
	}
	o := initproto.Op{Code: initproto.OpOverlay, Target: m.Destination, Data: lower + "\x00" + upper + "\x00" + work, Set: set, FD: -1}
	if p.plan.IDs.Kind != "none" {
		o.Flags |= initproto.FlagUserXattr
	}
	p.op(o)
	p.expectMount(lower, "", set|unix.MOUNT_ATTR_RDONLY)
	p.expectMount(m.Destination, "overlay", set)
	return nil
}
