package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"

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
	root int // O_PATH descriptor of the new root
	null int // O_PATH descriptor of the sandbox's /dev/null, once it is needed
	// empty is a mount that covers a directory, once there is one: more of it are clones.
	empty int
	fds   []int // descriptors that came with the setup
	// own holds the devices of the file systems that this builder made. Mount
	// points are created there and nowhere else, never on a host directory.
	own map[uint64]bool
	// held are the directories that are open, each as its path leads to it now.
	held []directory
	// host is the directory of the host's that a device was last taken from.
	host directory
	// uid and gid are whom what this process makes belongs to.
	uid, gid uint32
	// stacked counts the roots that were stacked on the old one.
	stacked int
	// digests are those of the trees that were unpacked.
	digests []string
	// in is who hears from the supervisor, and later the files that are written at
	// OpConnect.
	in      *initProcess
	later   map[string]int
	sockets []int // what bindSocket has made
	layers  []int // the upper and the lower directory of the overlay
}

// buildRoot carries out all operations, then makes the new root the root.
// It gives the digests of the trees that were unpacked, and what KindFSDone passes on.
func (in *initProcess) buildRoot(setup *initproto.Setup, fds []int) (digests []string, pass []int, err error) {
	// Nothing that happens here may travel back to the host, or from it.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, nil, fmt.Errorf("making mounts private: %w", os.NewSyscallError("mount", err))
	}
	b := &builder{root: -1, null: -1, empty: -1, fds: fds, own: map[uint64]bool{}, in: in, uid: uint32(unix.Geteuid()), gid: uint32(unix.Getegid())}
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
	return b.digests, append(b.sockets, b.layers...), b.pivot()
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
	d, name, err := b.spot(o.Target, true)
	if err != nil {
		return err
	}
	made, err := d.make(name, o.Target, o.Mode, false)
	if err != nil || made && b.owns(d, o, unix.S_ISVTX) {
		return err
	}
	fd, err := openIn(d.fd, name, o.Target, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return setOwner(fd, o)
}

// owns reports whether what this process makes in a directory has owner and mode as
// they are wanted, from its creation on. The umask of the supervisor has no say in
// that, for it was given up. more are bits of the mode beside the permissions.
func (b *builder) owns(d directory, o *initproto.Op, more uint32) bool {
	return o.UID == b.uid && o.GID == b.gid && !d.group && o.Mode&^(0o777|more) == 0
}

// setOwner gives owner and exact mode to what fd refers to.
func setOwner(fd int, o *initproto.Op) error {
	if err := unix.Fchownat(fd, "", int(o.UID), int(o.GID), unix.AT_EMPTY_PATH); err != nil {
		return fmt.Errorf("changing the owner of %q to %d:%d: %w", o.Target, o.UID, o.GID, os.NewSyscallError("fchownat", err))
	}
	// fchmod does not take O_PATH descriptors; the link in /proc leads to the
	// same inode whatever happens to the path meanwhile.
	if err := unix.Fchmodat(unix.AT_FDCWD, procFD(fd), o.Mode, 0); err != nil {
		return fmt.Errorf("changing the mode of %q: %w", o.Target, os.NewSyscallError("fchmodat", err))
	}
	return nil
}

// procFD is the link that leads to what a descriptor of this process refers to.
func procFD(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

func (b *builder) owner(o *initproto.Op) error {
	fd, err := b.beneath(o.Target, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return setOwner(fd, o)
}

func (b *builder) file(o *initproto.Op) error {
	d, name, err := b.place(o.Target)
	if err != nil {
		return err
	}
	if o.Flags&initproto.FlagReplace != 0 {
		if err := unix.Unlinkat(d.fd, name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("replacing %q: %w", o.Target, os.NewSyscallError("unlinkat", err))
		}
	}
	fd, err := unix.Openat(d.fd, name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, o.Mode&0o777)
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
	if err := writeAll(fd, o.Target, o.Data); err != nil || b.owns(d, o, 0) {
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
	d, name, err := b.place(o.Target)
	if err != nil {
		return err
	}
	if err := unix.Symlinkat(o.Source, d.fd, name); err != nil {
		return fmt.Errorf("creating symbolic link %q: %w", o.Target, os.NewSyscallError("symlinkat", err))
	}
	return nil
}

func (b *builder) remove(o *initproto.Op) error {
	d, name, err := b.place(o.Target)
	if err != nil {
		return err
	}
	flags := 0
	if o.Flags&initproto.FlagDir != 0 {
		b.forget(o.Target)
		flags = unix.AT_REMOVEDIR
	}
	return os.NewSyscallError("unlinkat", unix.Unlinkat(d.fd, name, flags))
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
	b.forget("/")
	b.leaveHost()
	_ = unix.Close(b.root)
	for _, fd := range []int{b.null, b.empty} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
	return os.NewSyscallError("chdir", unix.Chdir("/"))
}
