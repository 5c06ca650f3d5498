package tree

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// entry is one object of a tree as the walk found it.
type entry struct {
	path   string // relative to the root, which itself is "."
	name   string
	st     unix.Stat_t
	fd     int    // regular files: open for reading
	target string // symbolic links
}

func (e *entry) kind() uint32 { return e.st.Mode & unix.S_IFMT }

// visitor receives a tree in canonical order: each directory before what it
// holds, names within it bytewise.
type visitor interface {
	enter(e *entry) error
	leave() error
	// file owns e.fd from here on, also when it fails.
	file(e *entry) error
	link(e *entry) error
	special(e *entry) error
}

// walker reads one tree.
type walker struct {
	ctx      context.Context
	v        visitor
	maxDepth int
	skip     func(path string, dir bool) bool // nil skips nothing
	buf      []byte
}

func (w *walker) walk(root int) error {
	fd, err := openAt(root, ".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return fmt.Errorf("opening the root of the tree: %w", os.NewSyscallError("openat2", err))
	}
	w.buf = make([]byte, 32<<10)
	return w.dir(fd, ".", ".", 0)
}

// dir visits an open directory and closes it.
func (w *walker) dir(fd int, path, name string, depth int) error {
	defer unix.Close(fd)
	if depth > w.maxDepth {
		return &LimitError{What: "depth", Limit: int64(w.maxDepth), Path: path}
	}
	st, err := fstat(fd, path)
	if err != nil {
		return err
	}
	if err := w.v.enter(&entry{path: path, name: name, st: st, fd: -1}); err != nil {
		return err
	}
	names, err := readNames(fd, path, w.buf)
	if err != nil {
		return err
	}
	for _, d := range names {
		if err := w.ctx.Err(); err != nil {
			return err
		}
		child := d.name
		if depth > 0 {
			child = path + "/" + d.name
		}
		if err := w.child(fd, child, d, depth); err != nil {
			return err
		}
	}
	if err := unchanged(fd, path, &st); err != nil {
		return err
	}
	return w.v.leave()
}

func (w *walker) child(dir int, path string, d dirent, depth int) error {
	if d.kind == 0 {
		// Some file systems give no types. Whatever takes the name's place between
		// this look and the open fails the check of the type after it.
		var st unix.Stat_t
		if err := unix.Fstatat(dir, d.name, &st, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT); err != nil {
			return opening(dir, d.name, path, err)
		}
		d.kind = st.Mode & unix.S_IFMT
	}
	if w.skip != nil && w.skip(path, d.kind == unix.S_IFDIR) {
		return nil
	}
	// Never opened for reading: devices, whose open has effects, and the rest.
	flags := uint64(unix.O_PATH)
	switch d.kind {
	case unix.S_IFDIR:
		flags = unix.O_RDONLY | unix.O_DIRECTORY
	case unix.S_IFREG:
		flags = unix.O_RDONLY | unix.O_NONBLOCK | unix.O_NOCTTY
	}
	fd, err := openAt(dir, d.name, flags)
	if err != nil {
		return opening(dir, d.name, path, err)
	}
	if d.kind == unix.S_IFDIR {
		return w.dir(fd, path, d.name, depth+1)
	}
	e := &entry{path: path, name: d.name, fd: fd}
	if e.st, err = fstat(fd, path); err == nil && e.kind() != d.kind {
		err = &ChangedError{Path: path}
	}
	if err != nil {
		_ = unix.Close(fd)
		return err
	}
	if d.kind == unix.S_IFREG {
		return w.v.file(e)
	}
	defer unix.Close(fd)
	e.fd = -1
	if d.kind != unix.S_IFLNK {
		return w.v.special(e)
	}
	if e.target, err = readLink(fd, path); err != nil {
		return err
	}
	return w.v.link(e)
}

// readLink reads the link that fd refers to by itself, not by its name.
func readLink(fd int, path string) (string, error) {
	buf := make([]byte, unix.PathMax)
	for {
		n, err := unix.Readlinkat(fd, "", buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return "", fmt.Errorf("reading link %q: %w", path, os.NewSyscallError("readlinkat", err))
		}
		return string(buf[:n]), nil
	}
}
