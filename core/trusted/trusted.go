// Package trusted opens files of the host that decide what this process does or
// runs: hooks, plugins, configuration. Such a file, each directory and each link
// on the way to it must belong to root or to the caller, and nobody else may
// write to it; what was looked at is what is opened.
package trusted

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Error tells that somebody else could change a file, or what a path leads to.
type Error struct{ Path, Why string }

func (e *Error) Error() string { return fmt.Sprintf("%s: %s", e.Path, e.Why) }

// Remedy says what to do about it.
func (e *Error) Remedy() string {
	return "let it belong to root or to you, and take everybody else's right to write from it: chmod go-w " + e.Path
}

// maxLinks is the kernel's own limit of links on a path (path_resolution(7)).
const maxLinks = 40

// File opens a regular file for reading. The error of a system call is its errno.
func File(name string) (*os.File, error) {
	at, err := resolve(name, unix.S_IFREG)
	if err != nil {
		return nil, err
	}
	defer unix.Close(at)
	return reopen(at, name)
}

// Executable opens a program, to be executed by its descriptor. One that may be
// executed but not read is a path descriptor (O_PATH).
func Executable(name string) (*os.File, error) {
	at, err := resolve(name, unix.S_IFREG)
	if err != nil {
		return nil, err
	}
	defer unix.Close(at)
	return executable(at, name)
}

// Dir is a directory of programs.
type Dir struct {
	fd   int
	path string
}

// OpenDir opens a directory.
func OpenDir(path string) (*Dir, error) {
	fd, err := resolve(path, unix.S_IFDIR)
	if err != nil {
		return nil, err
	}
	return &Dir{fd, path}, nil
}

// Close closes it.
func (d *Dir) Close() error { return os.NewSyscallError("close", unix.Close(d.fd)) }

// Executable opens a program in the directory by its name, which no link may
// stand for.
func (d *Dir) Executable(name string) (*os.File, error) {
	path := filepath.Join(d.path, name)
	at, err := unix.Openat2(d.fd, name, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, err
	}
	defer unix.Close(at)
	if err := check(at, path, unix.S_IFREG); err != nil {
		return nil, err
	}
	return executable(at, path)
}

func executable(at int, name string) (*os.File, error) {
	if err := unix.Faccessat(unix.AT_FDCWD, self(at), unix.X_OK, unix.AT_EACCESS); err != nil {
		return nil, err
	}
	f, err := reopen(at, name)
	if errors.Is(err, unix.EACCES) {
		fd, err := unix.FcntlInt(uintptr(at), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		return os.NewFile(uintptr(fd), name), nil
	}
	return f, err
}

func self(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// reopen opens for reading what a path descriptor stands for.
func reopen(at int, name string) (*os.File, error) {
	fd, err := unix.Open(self(at), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// resolve follows a path step by step, and looks at each step before the next.
func resolve(name string, kind uint32) (fd int, err error) {
	at, err := root()
	if err != nil {
		return -1, err
	}
	defer func() {
		if err != nil {
			_ = unix.Close(at)
		}
	}()
	sofar, rest, links := "/", elements(name), 0
	for len(rest) > 0 {
		if err := check(at, sofar, unix.S_IFDIR); err != nil {
			return -1, err
		}
		next, err := unix.Openat(at, rest[0], unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return -1, err
		}
		here := filepath.Join(sofar, rest[0])
		rest = rest[1:]
		target, err := readLink(next)
		if errors.Is(err, unix.ENOENT) { // no link (readlinkat(2), of an empty path)
			_ = unix.Close(at)
			at, sofar = next, here
			continue
		}
		if err == nil {
			err = check(next, here, unix.S_IFLNK)
		}
		_ = unix.Close(next)
		if err != nil {
			return -1, err
		}
		if links++; links > maxLinks {
			return -1, unix.ELOOP
		}
		rest = append(elements(target), rest...)
		if !strings.HasPrefix(target, "/") {
			continue
		}
		top, err := root()
		if err != nil {
			return -1, err
		}
		_ = unix.Close(at)
		at, sofar = top, "/"
	}
	return at, check(at, sofar, kind)
}

func root() (int, error) {
	return unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
}

func elements(path string) []string {
	return slices.DeleteFunc(strings.Split(path, "/"), func(e string) bool { return e == "" })
}

func readLink(fd int) (string, error) {
	b := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fd, "", b)
	return string(b[:max(n, 0)]), err
}

// check looks at the type of a file, and at who can change it: its content, what
// a directory holds, where a link leads.
func check(fd int, name string, kind uint32) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	switch found := st.Mode & unix.S_IFMT; {
	case found != kind && kind == unix.S_IFREG:
		return fmt.Errorf("%s: not a regular file", name)
	case found != kind:
		return unix.ENOTDIR
	case st.Uid != 0 && st.Uid != uint32(os.Geteuid()):
		return &Error{name, fmt.Sprintf("belongs to user %d", st.Uid)}
	case kind == unix.S_IFLNK, st.Mode&0o022 == 0:
		return nil
	case kind == unix.S_IFDIR && st.Mode&unix.S_ISVTX != 0:
		return nil // sticky: only its owner and a file's own may replace the file (inode(7))
	}
	return &Error{name, fmt.Sprintf("others can write to it (mode %04o)", st.Mode&0o7777)}
}
