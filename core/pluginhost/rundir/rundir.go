// Package rundir owns the directories that plugins make their sockets in. Each
// belongs to one host process, which holds a lock on it for as long as it lives;
// one that nobody holds was left by a host that was killed.
package rundir

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Default gives where directories may be made, best first. They are not below the
// state root, where a plugin that is another user could not go.
func Default() []string {
	if os.Geteuid() == 0 {
		return []string{"/run/nucleus-plugins"}
	}
	dirs := []string{fmt.Sprintf("/tmp/nucleus-plugins-%d", os.Geteuid())}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		dirs = append([]string{filepath.Join(dir, "nucleus-plugins")}, dirs...)
	}
	return dirs
}

// Dir is a directory of this process.
type Dir struct {
	Path string
	lock *os.File
}

// Make makes a directory in the first parent that leaves a path short enough. It
// sweeps that parent first.
func Make(parents []string, longest int) (*Dir, error) {
	var b [4]byte
	if _, err := rand.Read(b[:]); err != nil {
		return nil, err
	}
	path := ""
	for _, parent := range parents {
		if path = filepath.Join(parent, hex.EncodeToString(b[:])); len(path) > longest {
			continue
		}
		if err := own(parent); err != nil {
			return nil, err
		}
		return makeIn(parent, path)
	}
	return nil, fmt.Errorf("the path of its socket would be too long: %s", path)
}

func makeIn(parent, path string) (*Dir, error) {
	top, err := locked(parent, unix.LOCK_EX)
	if err != nil {
		return nil, err
	}
	defer top.Close()
	if err := sweep(parent); err != nil {
		return nil, err
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		return nil, err
	}
	lock, err := locked(path, unix.LOCK_EX|unix.LOCK_NB)
	if err != nil {
		return nil, errors.Join(err, os.Remove(path))
	}
	return &Dir{path, lock}, nil
}

// Remove removes the directory with all that is in it.
func (d *Dir) Remove() error {
	return errors.Join(os.RemoveAll(d.Path), d.lock.Close())
}

// Sweep removes what killed hosts left. A parent that is not there, or not the
// caller's, holds nothing of his.
func Sweep(parents []string) error {
	var errs []error
	for _, parent := range parents {
		if check(parent) != nil {
			continue
		}
		top, err := locked(parent, unix.LOCK_EX)
		if err == nil {
			err = errors.Join(sweep(parent), top.Close())
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// sweep wants the parent's lock, so that no directory is between its making and
// its lock.
func sweep(parent string) error {
	entries, err := os.ReadDir(parent)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		path := filepath.Join(parent, e.Name())
		lock, err := locked(path, unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case errors.Is(err, unix.EWOULDBLOCK), errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
			continue // in use; or gone, or nothing of ours
		case err != nil:
			errs = append(errs, err)
			continue
		}
		errs = append(errs, os.RemoveAll(path), lock.Close())
	}
	return errors.Join(errs...)
}

func locked(path string, how int) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(f.Fd()), how)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			_ = f.Close()
			return nil, os.NewSyscallError("flock", err)
		}
		return f, nil
	}
}

// own makes a parent, or finds that it is the caller's alone.
func own(path string) error {
	if err := os.MkdirAll(path, 0o711); err != nil {
		return err
	}
	if err := check(path); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return nil
	}
	// Plugins of other users pass through, whatever the umask was.
	return os.Chmod(path, 0o711)
}

func check(path string) error {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return &os.PathError{Op: "lstat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || st.Mode&0o022 != 0 || st.Uid != uint32(os.Geteuid()) {
		return fmt.Errorf("%s is not a directory that only you can write to (mode %04o, owner %d): remove it", path, st.Mode&0o7777, st.Uid)
	}
	return nil
}
