package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/initproto"
)

// newFS mounts a new file system, attached nowhere yet. data holds the options
// as "k=v" or "flag", joined by NUL.
func newFS(fstype, data string, attrs uint64) (int, error) {
	fs, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("opening file system %q: %w", fstype, os.NewSyscallError("fsopen", err))
	}
	defer unix.Close(fs)
	if data != "" {
		for _, kv := range strings.Split(data, "\x00") {
			k, v, ok := strings.Cut(kv, "=")
			if ok {
				err = unix.FsconfigSetString(fs, k, v)
			} else {
				err = unix.FsconfigSetFlag(fs, k)
			}
			if err != nil {
				return -1, fmt.Errorf("option %q of file system %q: %w%s", kv, fstype, os.NewSyscallError("fsconfig", err), kernelSays(fs))
			}
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("making file system %q: %w%s", fstype, os.NewSyscallError("fsconfig", err), kernelSays(fs))
	}
	mnt, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, int(attrs))
	if err != nil {
		return -1, fmt.Errorf("mounting file system %q: %w%s", fstype, os.NewSyscallError("fsmount", err), kernelSays(fs))
	}
	return mnt, nil
}

// kernelSays reads the message that a failed mount leaves in its context.
func kernelSays(fs int) string {
	buf := make([]byte, 256)
	n, err := unix.Read(fs, buf)
	if err != nil || n <= 2 {
		return ""
	}
	return " (" + strings.TrimSpace(string(buf[2:n])) + ")"
}

func (b *builder) mountRoot(o *initproto.Op) error {
	if b.root >= 0 {
		return fmt.Errorf("%w: second root", initproto.ErrMessage)
	}
	mnt, err := newFS(o.FSType, o.Data, o.Set)
	if err != nil {
		return err
	}
	// Stacked on the old root: every host has that mount point, and lookups of
	// host paths, which start below it, do not see the stacked mount.
	if err := b.stack(mnt); err != nil {
		return err
	}
	return b.adopt(mnt)
}

func (b *builder) mount(o *initproto.Op) error {
	mnt, err := newFS(o.FSType, o.Data, o.Set)
	if err != nil {
		if o.Flags&initproto.FlagOptional != 0 && optionalMount(err) {
			return nil
		}
		return err
	}
	if err = b.attach(mnt, o, false); err == nil {
		err = b.adopt(mnt)
	}
	if err != nil {
		_ = unix.Close(mnt)
		return err
	}
	b.keep(directory{path: o.Target, fd: mnt, own: true}) // what comes next is often made in it
	return nil
}

// optionalMount reports whether a mount failed because this kernel or this
// user namespace does not give that file system at all.
func optionalMount(err error) bool {
	return errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EACCES)
}

// attach moves a detached mount to its target, which is created if it is missing.
func (b *builder) attach(mnt int, o *initproto.Op, file bool) error {
	d, name, err := b.spot(o.Target, true)
	if err != nil {
		return err
	}
	made := false
	if d.own {
		if made, err = d.make(name, o.Target, 0o755, file); err != nil {
			return err
		}
	}
	if made {
		return b.cover(mnt, d, name, o.Target)
	}
	target, err := d.open(name, o.Target)
	if err != nil {
		if errors.Is(err, unix.ENOENT) && !d.own {
			return d.mayCreate(o.Target)
		}
		return err
	}
	defer unix.Close(target)
	return b.cover(mnt, directory{fd: target}, "", o.Target)
}

// cover moves a detached mount to a name in a directory, or with no name to the
// directory. No link at the end is followed.
func (b *builder) cover(mnt int, d directory, name, target string) error {
	flags := unix.MOVE_MOUNT_F_EMPTY_PATH
	if name == "" {
		flags |= unix.MOVE_MOUNT_T_EMPTY_PATH
	}
	if err := unix.MoveMount(mnt, "", d.fd, name, flags); err != nil {
		return fmt.Errorf("mounting on %q: %w", target, os.NewSyscallError("move_mount", err))
	}
	b.forget(target)
	return nil
}

func (b *builder) bind(o *initproto.Op) error {
	tree, err := b.source(o)
	if err != nil {
		if o.Flags&initproto.FlagOptional != 0 && errors.Is(err, unix.ENOENT) {
			return nil
		}
		return err
	}
	if o.Flags&initproto.FlagDetached == 0 {
		defer unix.Close(tree)
	}
	if o.Flags&initproto.FlagDetached == 0 {
		if err := setAttr(tree, o); err != nil {
			return err
		}
	}
	kind, err := kindOf(tree, o.Source)
	if err != nil {
		return err
	}
	isDir := kind == unix.S_IFDIR
	if isDir && o.Flags&initproto.FlagFile != 0 {
		return fmt.Errorf("binding %q: %w", o.Source, unix.EISDIR)
	}
	if o.Flags&initproto.FlagInRoot != 0 && o.Source == o.Target {
		return b.attachThere(tree, o, !isDir)
	}
	return b.attach(tree, o, !isDir)
}

// attachThere is attach for a target that has just been cloned: it exists, and is no link.
func (b *builder) attachThere(tree int, o *initproto.Op, file bool) error {
	d, name, err := b.spot(o.Target, false)
	if err != nil {
		return err
	}
	if d.own {
		return b.cover(tree, d, name, o.Target)
	}
	return b.attach(tree, o, file)
}

// kindOf gives the file type of what a mount shows.
func kindOf(tree int, path string) (uint32, error) {
	var st unix.Stat_t
	if err := unix.Fstat(tree, &st); err != nil {
		return 0, os.NewSyscallError("fstat", err)
	}
	return noLink(st.Mode, path)
}

// overlay mounts a writable layer over a directory. Its layers are named by
// descriptors, so that no path is resolved twice.
func (b *builder) overlay(o *initproto.Op) error {
	dirs := strings.Split(o.Data, "\x00")
	if len(dirs) != 3 {
		return fmt.Errorf("%w: overlay", initproto.ErrMessage)
	}
	var opts []string
	var fds [3]int
	for i, name := range []string{"lowerdir", "upperdir", "workdir"} {
		fd, err := b.beneath(dirs[i], unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW)
		if err != nil {
			return err
		}
		fds[i] = fd
		opts = append(opts, name+"="+procFD(fd))
	}
	defer unix.Close(fds[2])
	b.layers = []int{fds[1], fds[0]}
	if o.Flags&initproto.FlagUserXattr != 0 {
		opts = append(opts, "userxattr")
	} else {
		// With user.* attributes the kernel does neither. What is changed is in the upper
		// directory whole, and under its name, whatever the host's defaults are.
		opts = append(opts, "redirect_dir=nofollow", "metacopy=off")
	}
	mnt, err := newFS("overlay", strings.Join(opts, "\x00"), o.Set)
	if err != nil {
		return err
	}
	if err := b.adopt(mnt); err != nil {
		return err
	}
	if o.Target != "/" {
		defer unix.Close(mnt)
		return b.attach(mnt, o, false)
	}
	return b.stack(mnt)
}

// enclose lays the root that was built into a new one: that of the program which
// runs the workload in the native runtime's place.
func (b *builder) enclose(o *initproto.Op) error {
	inner, err := unix.OpenTree(b.root, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH|unix.AT_RECURSIVE)
	if err != nil {
		return fmt.Errorf("cloning the root: %w", os.NewSyscallError("open_tree", err))
	}
	defer unix.Close(inner)
	mnt, err := newFS(o.FSType, o.Data, o.Set)
	if err != nil {
		return err
	}
	if err := b.stack(mnt); err != nil {
		_ = unix.Close(mnt)
		return err
	}
	if b.null >= 0 {
		_ = unix.Close(b.null)
		b.null = -1
	}
	if err := b.adopt(mnt); err != nil {
		return err
	}
	return b.attach(inner, o, false)
}

// stack attaches a new root on the one so far, which it takes the place of.
func (b *builder) stack(mnt int) error {
	if err := unix.MoveMount(mnt, "", unix.AT_FDCWD, "/", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("attaching the new root: %w", os.NewSyscallError("move_mount", err))
	}
	b.forget("/")
	if b.root >= 0 {
		_ = unix.Close(b.root)
	}
	b.root = mnt
	b.stacked++
	return nil
}

// source gives a detached copy of the mount tree at the source.
func (b *builder) source(o *initproto.Op) (int, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if o.Flags&initproto.FlagRecursive != 0 {
		flags |= unix.AT_RECURSIVE
	}
	if o.Flags&initproto.FlagDetached != 0 {
		if o.FD < 0 {
			return -1, fmt.Errorf("%w: no descriptor", initproto.ErrMessage)
		}
		return b.fds[o.FD], nil
	}
	if o.Flags&initproto.FlagInRoot != 0 {
		d, name, err := b.spot(o.Source, false)
		if err != nil {
			return -1, err
		}
		// A link is cloned as such: the callers refuse what it shows.
		return clone(d.fd, name, flags|unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, o.Source)
	}
	if o.Flags&(initproto.FlagFollow|initproto.FlagVerify) == 0 {
		return b.fromHost(o.Source, flags)
	}
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC | unix.O_NOFOLLOW, Resolve: unix.RESOLVE_NO_MAGICLINKS}
	switch {
	case o.Flags&initproto.FlagFollow != 0:
		how.Flags &^= unix.O_NOFOLLOW
	default:
		how.Resolve |= unix.RESOLVE_NO_SYMLINKS
	}
	src, err := openHost(o.Source, how)
	if err != nil {
		return -1, err
	}
	defer unix.Close(src)
	if o.Flags&initproto.FlagVerify != 0 {
		if err := b.sameInode(src, o); err != nil {
			return -1, err
		}
	}
	return clone(src, "", flags|unix.AT_EMPTY_PATH, o.Source)
}

// fromHost clones what of the host there is no doubt of: devices, of which one after
// the other is in the same directory. No link is followed.
func (b *builder) fromHost(path string, flags uint) (int, error) {
	i := strings.LastIndexByte(path, '/')
	if i < 0 || path[i+1:] == "" || path[i+1:] == ".." {
		return -1, fmt.Errorf("%w: source %q", initproto.ErrMessage, path)
	}
	if dir := path[:max(i, 1)]; b.host.path != dir {
		fd, err := openHost(dir, unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC | unix.O_DIRECTORY, Resolve: unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_SYMLINKS})
		if err != nil {
			return -1, err
		}
		b.leaveHost()
		b.host = directory{path: dir, fd: fd}
	}
	return clone(b.host.fd, path[i+1:], flags|unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, path)
}

// leaveHost closes the directory of the host's that is held.
func (b *builder) leaveHost() {
	if b.host.path != "" {
		b.host.close()
		b.host = directory{}
	}
}

func openHost(path string, how unix.OpenHow) (int, error) {
	fd, err := unix.Openat2(unix.AT_FDCWD, path, &how)
	if err != nil {
		return -1, fmt.Errorf("opening %q: %w", path, os.NewSyscallError("openat2", err))
	}
	return fd, nil
}

// clone gives a detached copy of the mount tree at a path.
func clone(dir int, path string, flags uint, source string) (int, error) {
	tree, err := unix.OpenTree(dir, path, flags)
	if err != nil {
		return -1, fmt.Errorf("cloning %q: %w", source, os.NewSyscallError("open_tree", err))
	}
	return tree, nil
}

// sameInode compares what a path leads to here, in the sandbox's mount
// namespace, with what the supervisor opened and checked: a descriptor cannot
// be bound across mount namespaces, so the path is opened again, and must not
// have been swapped meanwhile.
func (b *builder) sameInode(src int, o *initproto.Op) error {
	if o.FD < 0 {
		return fmt.Errorf("%w: no descriptor", initproto.ErrMessage)
	}
	var got, want unix.Stat_t
	if err := unix.Fstat(src, &got); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	if err := unix.Fstat(b.fds[o.FD], &want); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	if got.Dev != want.Dev || got.Ino != want.Ino {
		return fmt.Errorf("%q is no longer the file that was checked: %w", o.Source, unix.ESTALE)
	}
	return nil
}

// setAttr changes the attributes of a detached tree and cuts its propagation.
func setAttr(tree int, o *initproto.Op) error {
	a := unix.MountAttr{Attr_set: o.Set, Attr_clr: o.Clear, Propagation: unix.MS_PRIVATE}
	flags := uint(unix.AT_EMPTY_PATH)
	if o.Flags&initproto.FlagRecursive != 0 {
		flags |= unix.AT_RECURSIVE
	}
	if err := unix.MountSetattr(tree, "", flags, &a); err != nil {
		return fmt.Errorf("setting mount attributes of %q: %w", o.Target, os.NewSyscallError("mount_setattr", err))
	}
	return nil
}

func (b *builder) attr(o *initproto.Op) error {
	d, err := b.directory(o.Target, false)
	if err != nil {
		return err
	}
	return setAttr(d.fd, o)
}

// mask hides a path that the kernel offers. What does not exist needs no mask.
func (b *builder) mask(o *initproto.Op) error {
	d, name, err := b.spot(o.Target, false)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	kind, err := d.kind(name, o.Target)
	if err != nil || kind == 0 {
		return err
	}
	if !d.own { // what it was just now, it need not be any more
		fd, err := d.open(name, o.Target)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if kind, err = kindOf(fd, o.Target); err != nil {
			return err
		}
		d, name = directory{fd: fd}, ""
	}
	var over int
	if kind == unix.S_IFDIR {
		over, err = b.emptyCover()
	} else {
		over, err = b.nullCover()
	}
	if err != nil {
		return err
	}
	if over != b.empty {
		defer unix.Close(over)
	}
	return b.cover(over, d, name, o.Target)
}

// emptyCover gives a detached directory that nothing is in, and nothing can be made in.
// The first one is a file system, which is then attached; the others are clones of it,
// for a clone cannot be made of what is not attached (Linux before 6.15).
func (b *builder) emptyCover() (int, error) {
	if b.empty >= 0 {
		return clone(b.empty, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH, "an empty directory")
	}
	var err error
	b.empty, err = newFS("tmpfs", "size=0\x00nr_inodes=1\x00mode=000", unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	return b.empty, err
}

// nullCover gives another detached copy of our own /dev/null, which was bound
// from the host, read-only, before anything untrusted was mounted, and is
// checked to be the null device (CVE-2025-31133 swapped it).
func (b *builder) nullCover() (int, error) {
	if b.null < 0 {
		fd, err := b.beneath("/dev/null", unix.O_PATH|unix.O_NOFOLLOW)
		if err != nil {
			return -1, err
		}
		if err := isNullDevice(fd); err != nil {
			return -1, err
		}
		b.null = fd
	}
	return clone(b.null, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH, "/dev/null")
}

func isNullDevice(fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != unix.Mkdev(1, 3) {
		return fmt.Errorf("/dev/null of the host is not the null device: %w", unix.ENODEV)
	}
	return nil
}

func (b *builder) readOnly(o *initproto.Op) error {
	p := *o
	p.Source, p.FD = o.Target, -1
	p.Flags |= initproto.FlagInRoot | initproto.FlagRecursive
	p.Set |= unix.MOUNT_ATTR_RDONLY
	tree, err := b.source(&p)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	if err := setAttr(tree, &p); err != nil {
		return err
	}
	kind, err := kindOf(tree, o.Target)
	if err != nil {
		return err
	}
	return b.attachThere(tree, &p, kind != unix.S_IFDIR)
}

// aside is a directory of the old root that procfs always has, and nobody needs before
// the new root is entered, unless hooks run.
const aside = "/proc/fs"

// detach takes a staging mount away: to the old root, which takes it along when it goes,
// for each unmounting waits until no processor looks at what was mounted
// (namespace_unlock() in fs/namespace.c), 60 us at best. With hooks, which see the old
// root, or where there is no such place, it goes by itself.
func (b *builder) detach(o *initproto.Op) error {
	fd, err := b.beneath(o.Target, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	b.forget(o.Target)
	if b.in.setup.Hold || unix.MoveMount(fd, "", unix.AT_FDCWD, aside, unix.MOVE_MOUNT_F_EMPTY_PATH) != nil {
		if err := unix.Unmount(procFD(fd), unix.MNT_DETACH); err != nil {
			return fmt.Errorf("detaching %q: %w", o.Target, os.NewSyscallError("umount2", err))
		}
	}
	d, name, err := b.spot(o.Target, false)
	if err != nil {
		return err
	}
	return os.NewSyscallError("unlinkat", unix.Unlinkat(d.fd, name, unix.AT_REMOVEDIR))
}
