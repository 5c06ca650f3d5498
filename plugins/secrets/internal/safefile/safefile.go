// Package safefile owns the reading of files that hold secrets or decide about
// them: it opens them without being led astray, and refuses one that other users
// could read or replace.
package safefile

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/plugins/secrets/fault"
	"github.com/nucleus-runtime/nucleus/plugins/secrets/internal/wipe"
)

// Limit is how long a file may be.
const Limit = 1 << 20

// Rule says what is asked of a file.
type Rule struct {
	Dirs    []string // if any: it must be below one of them, links included
	NoLinks bool
	Forbid  uint32 // mode bits that it must not have
}

// Mode bits for Rule.Forbid.
const (
	Private = 0o077 // nobody else reads it, as ssh wants of a key
	Trusted = 0o022 // everybody may read it, nobody else may change it
	// Credential is what systemd makes: where it gives a service access through an
	// ACL, the group's bits of the mode show the ACL's mask (acl(5)).
	Credential = 0o037
)

// Path checks a path of a configuration.
func Path(attr, path string) error {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path || strings.ContainsRune(path, 0) {
		return fault.Config(attr, "write for instance \"/etc/nucleus/secrets/db\"", "%q is no clean absolute path", path)
	}
	return nil
}

// Read reads a file. The bytes are the caller's to overwrite.
func Read(path string, rule Rule) ([]byte, error) {
	f, err := open(path, rule)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := wipe.Read(f, Limit)
	if errors.Is(err, wipe.ErrTooLong) {
		return nil, tooLong(path)
	}
	if err != nil {
		return nil, fault.New(fault.Unavailable, "look at the file system's state", "read %q: %w", path, cause(err))
	}
	return b, nil
}

func open(path string, rule Rule) (*os.File, error) {
	f, err := walk(path, rule)
	if err != nil {
		return nil, refused(path, rule, err)
	}
	if err := check(f, path, rule); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// walk resolves a path. Magic links are refused: below /proc they lead to what some
// process has open, whatever its path would have allowed.
func walk(path string, rule Rule) (*os.File, error) {
	how := unix.OpenHow{
		// A FIFO would wait for a writer, a terminal become ours.
		Flags:   unix.O_RDONLY | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_NO_MAGICLINKS,
	}
	if rule.NoLinks {
		how.Resolve |= unix.RESOLVE_NO_SYMLINKS
	}
	if len(rule.Dirs) == 0 {
		return openat2(unix.AT_FDCWD, path, path, how)
	}
	for _, dir := range rule.Dirs {
		below, err := filepath.Rel(dir, path)
		if err != nil || !filepath.IsLocal(below) {
			continue
		}
		at, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		how.Resolve |= unix.RESOLVE_BENEATH
		f, err := openat2(at, below, path, how)
		_ = unix.Close(at)
		return f, err
	}
	return nil, unix.EXDEV
}

func openat2(at int, path, name string, how unix.OpenHow) (*os.File, error) {
	for {
		fd, err := unix.Openat2(at, path, &how)
		switch {
		case err == nil:
			return os.NewFile(uintptr(fd), name), nil
		// With RESOLVE_BENEATH a rename elsewhere gives EAGAIN (openat2(2)).
		case !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN):
			return nil, err
		}
	}
}

func refused(path string, rule Rule, err error) error {
	code, hint := fault.FailedPrecondition, ""
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		code, hint = fault.NotFound, "create the file, or correct the path"
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		code, hint = fault.PermissionDenied, fmt.Sprintf("let user %d, as whom the provider runs, own the file", os.Geteuid())
	case errors.Is(err, unix.EXDEV):
		return fault.New(fault.PermissionDenied, "move the file there, or add its directory to dirs in the host configuration",
			"open %q: not below %s", path, strings.Join(rule.Dirs, " or "))
	case errors.Is(err, unix.ELOOP):
		hint = "name the file itself: a link on its path is not followed"
	case errors.Is(err, unix.ENXIO):
		hint = "name a regular file: this is a socket or a device"
	case errors.Is(err, unix.ENOSYS):
		hint = "openat2 is needed: run a kernel of 5.6 or later, and allow it in the provider's seccomp filter"
	}
	return fault.New(code, hint, "open %q: %w", path, err)
}

func check(f *os.File, path string, rule Rule) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return fault.New(fault.Internal, "", "stat %q: %w", path, err)
	}
	switch open := st.Mode & rule.Forbid; {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return fault.New(fault.FailedPrecondition, "name a regular file", "%q is not a regular file", path)
	case st.Uid != 0 && int(st.Uid) != os.Geteuid():
		return fault.New(fault.PermissionDenied, fmt.Sprintf("chown %d %s", os.Geteuid(), path),
			"%q belongs to user %d, who could change it", path, st.Uid)
	case open != 0:
		who := "read or change"
		if rule.Forbid&0o044 == 0 {
			who = "change"
		}
		return fault.New(fault.PermissionDenied, fmt.Sprintf("chmod %04o %s", st.Mode&0o7777&^rule.Forbid, path),
			"%q has mode %04o: others could %s it", path, st.Mode&0o7777, who)
	case st.Size > Limit:
		return tooLong(path)
	}
	return nil
}

func tooLong(path string) error {
	return fault.New(fault.FailedPrecondition, "a secret is not data: mount the file as a volume", "%q is longer than 1 MiB", path)
}

// cause takes the path off an error that is going to be told with it.
func cause(err error) error {
	var pe *os.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}
