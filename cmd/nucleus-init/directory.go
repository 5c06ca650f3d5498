package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/initproto"
)

// directory is one that is held open, for one operation after the other names
// something in it: most of a start's lookups lead to /dev, /proc or /etc.
type directory struct {
	path string
	fd   int
	lent bool // fd is closed by somebody else
	// own: it is on a file system that the builder made, and nothing is created anywhere
	// else. Nobody else makes or moves anything there, but what is below an overlay: no
	// operation on a name may follow a link.
	own bool
	// group: what is made in it belongs to its group (S_ISGID).
	group bool
}

// maxHeld bounds the descriptors that directories take of the process's limit.
const maxHeld = 32

// directory gives the directory of the sandbox at a path. If it is missing, create
// makes it. The descriptor is valid until the next call, or the next mount.
func (b *builder) directory(path string, create bool) (directory, error) {
	for i := range b.held {
		if b.held[i].path == path {
			return b.held[i], nil
		}
	}
	if path == "/" {
		return b.hold(directory{path: path, fd: b.root, lent: true})
	}
	fd, err := b.beneath(path, unix.O_PATH|unix.O_DIRECTORY)
	if create && errors.Is(err, unix.ENOENT) {
		dir, name, perr := b.spot(path, true)
		if perr != nil {
			return directory{}, perr
		}
		if _, err := dir.make(name, path, 0o755, false); err != nil {
			return directory{}, err
		}
		fd, err = b.beneath(path, unix.O_PATH|unix.O_DIRECTORY)
	}
	if err != nil {
		return directory{}, err
	}
	return b.hold(directory{path: path, fd: fd})
}

// hold keeps a directory that is open for those who ask for its path.
func (b *builder) hold(d directory) (directory, error) {
	var st unix.Stat_t
	if err := unix.Fstat(d.fd, &st); err != nil {
		d.close()
		return directory{}, os.NewSyscallError("fstat", err)
	}
	d.own, d.group = b.own[st.Dev], st.Mode&unix.S_ISGID != 0
	b.keep(d)
	return d, nil
}

func (b *builder) keep(d directory) {
	if len(b.held) == maxHeld {
		b.forget("/")
	}
	b.held = append(b.held, d)
}

// forget closes what is held at a path and below: the path leads elsewhere from now on.
func (b *builder) forget(path string) {
	kept := b.held[:0]
	for _, d := range b.held {
		if d.path == path || path == "/" || strings.HasPrefix(d.path, path) && d.path[len(path)] == '/' {
			d.close()
			continue
		}
		kept = append(kept, d)
	}
	b.held = kept
}

func (d directory) close() {
	if !d.lent {
		_ = unix.Close(d.fd)
	}
}

// spot gives the directory that a path lies in, and its name there.
func (b *builder) spot(path string, create bool) (directory, string, error) {
	i := strings.LastIndexByte(path, '/')
	if i < 0 {
		return directory{}, "", fmt.Errorf("%w: target %q", initproto.ErrMessage, path)
	}
	dir, name := path[:max(i, 1)], path[i+1:]
	if name == "" || name == "." || name == ".." {
		return directory{}, "", fmt.Errorf("%w: target %q", initproto.ErrMessage, path)
	}
	d, err := b.directory(dir, create)
	return d, name, err
}

// place is spot for a name that is going to be made, or removed.
func (b *builder) place(path string) (directory, string, error) {
	d, name, err := b.spot(path, true)
	if err == nil {
		err = d.mayCreate(path)
	}
	return d, name, err
}

// mayCreate refuses to create anything on a file system that is not ours.
func (d directory) mayCreate(path string) error {
	if !d.own {
		return fmt.Errorf("mount point %q does not exist, and is not created because it would appear on the host: %w", path, unix.ENOENT)
	}
	return nil
}

// make creates a directory or an empty file, and tells whether it had to.
func (d directory) make(name, path string, mode uint32, file bool) (made bool, err error) {
	if err := d.mayCreate(path); err != nil {
		return false, err
	}
	call := "mkdirat"
	if file {
		call, err = "mknodat", unix.Mknodat(d.fd, name, unix.S_IFREG|mode, 0)
	} else {
		err = unix.Mkdirat(d.fd, name, mode)
	}
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return false, fmt.Errorf("creating mount point %q: %w", path, os.NewSyscallError(call, err))
	}
	return err == nil, nil
}

// open opens what a name stands for, without following any link. path is for the error.
func (d directory) open(name, path string) (int, error) {
	return openIn(d.fd, name, path, unix.O_PATH|unix.O_NOFOLLOW)
}

// kind gives the file type of what a name stands for: zero if there is nothing, and an
// error for a symbolic link.
func (d directory) kind(name, path string) (uint32, error) {
	var st unix.Stat_t
	err := unix.Fstatat(d.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("looking at %q in the sandbox: %w", path, os.NewSyscallError("fstatat", err))
	}
	return noLink(st.Mode, path)
}

func noLink(mode uint32, path string) (uint32, error) {
	if mode&unix.S_IFMT == unix.S_IFLNK {
		return 0, fmt.Errorf("%q: %w", path, unix.ELOOP)
	}
	return mode & unix.S_IFMT, nil
}

// beneath opens a path below the new root without following any link.
func (b *builder) beneath(path string, flags uint64) (int, error) {
	rel := strings.TrimPrefix(path, "/")
	if rel == "" {
		rel = "."
	}
	return openIn(b.root, rel, path, flags)
}

func openIn(dir int, rel, path string, flags uint64) (int, error) {
	fd, err := unix.Openat2(dir, rel, &unix.OpenHow{
		Flags: flags | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return -1, fmt.Errorf("opening %q in the sandbox: %w", path, os.NewSyscallError("openat2", err))
	}
	return fd, nil
}
