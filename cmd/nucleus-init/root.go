package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/initproto"
)

// opError says which operation failed, so that the supervisor can name the
// line of the job that it came from.
type opError struct {
	index int
	err   error
}

func (e *opError) Error() string { return e.err.Error() }
func (e *opError) Unwrap() error { return e.err }

// builder carries out the operations of the file system phase. Every path below
// the new root is resolved from the root's descriptor with openat2 and follows
// no symbolic link: whoever can write to a rootfs or a volume while the sandbox
// starts cannot redirect a mount (CVE-2021-30465, CVE-2025-52565).
type builder struct {
	root int   // O_PATH descriptor of the new root
	null int   // O_PATH descriptor of the sandbox's /dev/null, once it is needed
	fds  []int // descriptors that came with the setup
	// own holds the devices of the file systems that this builder made. Mount
	// points are created there and nowhere else, never on a host directory.
	own map[uint64]bool
	// stacked counts the roots that were stacked on the old one.
	stacked int
	// digests are those of the trees that were unpacked.
	digests []string
	// in is who hears from the supervisor, and later the files that are written at
	// OpConnect.
	in      *initProcess
	later   map[string]int
	sockets []int // what bindSocket has made
}

// buildRoot carries out all operations, then makes the new root the root.
// It gives the digests of the trees that were unpacked, and the socket that was bound.
func (in *initProcess) buildRoot(setup *initproto.Setup, fds []int) (digests []string, sockets []int, err error) {
	// Nothing that happens here may travel back to the host, or from it.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, nil, fmt.Errorf("making mounts private: %w", os.NewSyscallError("mount", err))
	}
	b := &builder{root: -1, null: -1, fds: fds, own: map[uint64]bool{}, in: in}
	for i := range setup.Ops {
		if err := b.do(&setup.Ops[i]); err != nil {
			return nil, nil, &opError{i, err}
		}
	}
	if err := in.receiveLate(fds); err != nil {
		return nil, nil, err
	}
	if setup.Hold {
		if err := in.holdRoot(b); err != nil {
			return nil, nil, err
		}
	}
	return b.digests, b.sockets, b.pivot()
}

func (b *builder) do(o *initproto.Op) error {
	if o.FD >= int32(len(b.fds)) {
		return fmt.Errorf("%w: descriptor %d of %d", initproto.ErrMessage, o.FD, len(b.fds))
	}
	if b.root < 0 && o.Code != initproto.OpRoot {
		return fmt.Errorf("%w: operation %d before the root", initproto.ErrMessage, o.Code)
	}
	switch o.Code {
	case initproto.OpRoot:
		return b.mountRoot(o)
	case initproto.OpMkdir:
		return b.mkdir(o)
	case initproto.OpFile:
		return b.file(o)
	case initproto.OpSymlink:
		return b.symlink(o)
	case initproto.OpBind:
		return b.bind(o)
	case initproto.OpMount:
		return b.mount(o)
	case initproto.OpAttr:
		return b.attr(o)
	case initproto.OpMask:
		return b.mask(o)
	case initproto.OpReadOnly:
		return b.readOnly(o)
	case initproto.OpUnpack:
		return b.unpack(o)
	case initproto.OpDetach:
		return b.detach(o)
	case initproto.OpOwner:
		return b.owner(o)
	case initproto.OpOverlay:
		return b.overlay(o)
	case initproto.OpRemove:
		return b.remove(o)
	case initproto.OpSecret:
		return b.secret(o)
	case initproto.OpSocket:
		return b.bindSocket(o)
	case initproto.OpConnect:
		return b.connect()
	case initproto.OpEnclose:
		return b.enclose(o)
	}
	return fmt.Errorf("%w: operation %d", initproto.ErrMessage, o.Code)
}

// beneath opens a path below the new root without following any link.
func (b *builder) beneath(path string, flags uint64, mode uint64) (int, error) {
	rel := strings.TrimPrefix(path, "/")
	if rel == "" {
		rel = "."
	}
	fd, err := unix.Openat2(b.root, rel, &unix.OpenHow{
		Flags: flags | unix.O_CLOEXEC, Mode: mode,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return -1, fmt.Errorf("opening %q in the sandbox: %w", path, os.NewSyscallError("openat2", err))
	}
	return fd, nil
}

// parent opens the directory that holds path, making missing directories on the
// way where that is allowed, and gives the last element.
func (b *builder) parent(path string) (int, string, error) {
	rel := strings.Trim(path, "/")
	i := strings.LastIndexByte(rel, '/')
	dir, name := "/", rel
	if i >= 0 {
		dir, name = rel[:i], rel[i+1:]
	}
	if name == "" || name == "." || name == ".." {
		return -1, "", fmt.Errorf("%w: target %q", initproto.ErrMessage, path)
	}
	fd, err := b.beneath(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if errors.Is(err, unix.ENOENT) && i >= 0 {
		if err := b.make(dir, 0o755, false); err != nil {
			return -1, "", err
		}
		fd, err = b.beneath(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	}
	return fd, name, err
}

// make creates a directory or an empty file for something to be mounted on.
func (b *builder) make(path string, mode uint32, file bool) error {
	dir, name, err := b.place(path)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	if file {
		fd, err := unix.Openat(dir, name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, mode)
		if err != nil {
			return fmt.Errorf("creating mount point %q: %w", path, os.NewSyscallError("openat", err))
		}
		return unix.Close(fd)
	}
	if err := unix.Mkdirat(dir, name, mode); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("creating mount point %q: %w", path, os.NewSyscallError("mkdirat", err))
	}
	return nil
}

// mayCreate refuses to create anything on a file system that is not ours.
func (b *builder) mayCreate(dir int, path string) error {
	var st unix.Stat_t
	if err := unix.Fstat(dir, &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	if !b.own[st.Dev] {
		return fmt.Errorf("mount point %q does not exist, and is not created because it would appear on the host: %w", path, unix.ENOENT)
	}
	return nil
}

// adopt notes a file system that we made.
func (b *builder) adopt(fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	b.own[st.Dev] = true
	return nil
}

func (b *builder) mkdir(o *initproto.Op) error {
	if err := b.make(o.Target, o.Mode, false); err != nil {
		return err
	}
	fd, err := b.beneath(o.Target, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return setOwner(fd, o)
}

// setOwner gives owner and exact mode to what fd refers to; the umask of the
// supervisor has no say in it.
func setOwner(fd int, o *initproto.Op) error {
	if err := unix.Fchownat(fd, "", int(o.UID), int(o.GID), unix.AT_EMPTY_PATH); err != nil {
		return fmt.Errorf("changing the owner of %q to %d:%d: %w", o.Target, o.UID, o.GID, os.NewSyscallError("fchownat", err))
	}
	// fchmod does not take O_PATH descriptors; the link in /proc leads to the
	// same inode whatever happens to the path meanwhile.
	if err := unix.Fchmodat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), o.Mode, 0); err != nil {
		return fmt.Errorf("changing the mode of %q: %w", o.Target, os.NewSyscallError("fchmodat", err))
	}
	return nil
}

func (b *builder) owner(o *initproto.Op) error {
	fd, err := b.beneath(o.Target, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return setOwner(fd, o)
}

// place is parent for a name that is going to be made, or removed.
func (b *builder) place(target string) (dir int, name string, err error) {
	if dir, name, err = b.parent(target); err != nil {
		return -1, "", err
	}
	if err = b.mayCreate(dir, target); err != nil {
		_ = unix.Close(dir)
		return -1, "", err
	}
	return dir, name, nil
}

func (b *builder) file(o *initproto.Op) error {
	dir, name, err := b.place(o.Target)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	if o.Flags&initproto.FlagReplace != 0 {
		if err := unix.Unlinkat(dir, name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("replacing %q: %w", o.Target, os.NewSyscallError("unlinkat", err))
		}
	}
	fd, err := unix.Openat(dir, name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("creating %q: %w", o.Target, os.NewSyscallError("openat", err))
	}
	if o.Flags&initproto.FlagNetwork != 0 {
		if b.later == nil {
			b.later = map[string]int{}
		}
		b.later[o.Source] = fd
	} else {
		defer unix.Close(fd)
	}
	if err := writeAll(fd, o.Target, o.Data); err != nil {
		return err
	}
	return setOwner(fd, o)
}

func writeAll(fd int, path, content string) error {
	for data := []byte(content); len(data) > 0; {
		n, err := unix.Write(fd, data)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("writing %q: %w", path, os.NewSyscallError("write", err))
		}
		data = data[n:]
	}
	return nil
}

func (b *builder) symlink(o *initproto.Op) error {
	dir, name, err := b.place(o.Target)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	if err := unix.Symlinkat(o.Source, dir, name); err != nil {
		return fmt.Errorf("creating symbolic link %q: %w", o.Target, os.NewSyscallError("symlinkat", err))
	}
	return nil
}

func (b *builder) remove(o *initproto.Op) error {
	dir, name, err := b.place(o.Target)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	flags := 0
	if o.Flags&initproto.FlagDir != 0 {
		flags = unix.AT_REMOVEDIR
	}
	return os.NewSyscallError("unlinkat", unix.Unlinkat(dir, name, flags))
}

// pivot makes the new root the root of this mount namespace and lets the old
// one go. There is no fallback to chroot: a process that keeps a descriptor
// outside walks out of a chroot.
func (b *builder) pivot() error {
	if b.root < 0 {
		return fmt.Errorf("%w: no root", initproto.ErrMessage)
	}
	if err := unix.Fchdir(b.root); err != nil {
		return os.NewSyscallError("fchdir", err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("entering the new root: %w", os.NewSyscallError("pivot_root", err))
	}
	// The old root now lies on the new one, and on it the bases that the new one
	// was stacked on. A lookup of "." finds the topmost.
	for range b.stacked {
		if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
			return fmt.Errorf("leaving the old root: %w", os.NewSyscallError("umount2", err))
		}
	}
	_ = unix.Close(b.root)
	if b.null >= 0 {
		_ = unix.Close(b.null)
	}
	return os.NewSyscallError("chdir", unix.Chdir("/"))
}
