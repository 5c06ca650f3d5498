// Package rundir owns the directories that plugins make their sockets in, and the
// records in each: of its plugin's control group, and of a process that is kept for
// later hosts. Each belongs to one host process, or to several that share what is kept;
// they hold a lock on it for as long as they live. One that nobody holds was left by a
// host that was killed, unless it is kept.
package rundir

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/cgroups"
)

const (
	// lockTime is how long another process may hold a parent: making a directory, and
	// sweeping before it, takes less than a millisecond.
	lockTime = 5 * time.Second
	// groupTime is how long a start waits for the end of what a dead host's plugin
	// has left in its group.
	groupTime = time.Second
	// groupFile has a cgroups.Record.
	groupFile = "cgroup"
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
	top, err := locked(parent, unix.LOCK_EX, lockTime)
	if err != nil {
		return nil, err
	}
	defer top.Close()
	// What it could not remove is no reason to start nothing: gc tells.
	_ = sweep(parent, groupTime)
	if err := os.Mkdir(path, 0o700); err != nil {
		return nil, err
	}
	lock, err := locked(path, unix.LOCK_EX, 0)
	if err != nil {
		return nil, errors.Join(err, os.Remove(path))
	}
	return &Dir{path, lock}, nil
}

// Record notes the group of the plugin, before it is made: whoever finds the
// directory after us removes the group.
func (d *Dir) Record(r cgroups.Record) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(d.Path, groupFile), b, 0o600)
}

// Remove removes the directory with all that is in it. The group is gone, or was
// never made.
func (d *Dir) Remove() error {
	return errors.Join(os.RemoveAll(d.Path), d.lock.Close())
}

// Leave leaves the directory, with the record of a group that could not be removed,
// for another sweep.
func (d *Dir) Leave() error { return d.lock.Close() }

// Sweep removes what killed hosts left, and ends it if it still runs. A parent that is not there, or not the
// caller's, holds nothing of his.
func Sweep(parents []string) error {
	var errs []error
	for _, parent := range parents {
		if check(parent) != nil {
			continue
		}
		top, err := locked(parent, unix.LOCK_EX, lockTime)
		if err == nil {
			err = errors.Join(sweep(parent, lockTime-groupTime), top.Close())
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// sweep wants the parent's lock, so that no directory is between its making and
// its lock.
func sweep(parent string, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	entries, err := os.ReadDir(parent)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		path := filepath.Join(parent, e.Name())
		lock, err := locked(path, unix.LOCK_EX, 0)
		switch {
		case errors.Is(err, errHeld), errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
			continue // in use; or gone, or nothing of ours
		case err != nil:
			errs = append(errs, err)
			continue
		}
		if !stays(path) {
			errs = append(errs, empty(ctx, path))
		}
		errs = append(errs, lock.Close())
	}
	return errors.Join(errs...)
}

// removeGroup removes the group that a directory has the record of. A record that was
// cut off is of a group that was not made yet.
func removeGroup(ctx context.Context, dir string) error {
	b, err := os.ReadFile(filepath.Join(dir, groupFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var r cgroups.Record
	if json.Unmarshal(b, &r) != nil {
		return nil
	}
	// Whoever can write to the directory must not end what is another's.
	if r.Name != GroupPrefix+filepath.Base(dir) {
		return fmt.Errorf("%s names a control group that is not its own: %q", filepath.Join(dir, groupFile), r.Name)
	}
	return cgroups.Remove(ctx, r)
}

// GroupPrefix and the name of a plugin's directory are the name of its control group.
const GroupPrefix = cgroups.Prefix + "plugin-"

var errHeld = errors.New("another process holds its lock")

// locked opens a directory and locks it, and waits so long for it. The kernel's own
// waiting has no end.
func locked(path string, how int, wait time.Duration) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	end := time.Now().Add(wait)
	for pause := 100 * time.Microsecond; ; pause = min(2*pause, 10*time.Millisecond) {
		err := flock(f, how)
		switch {
		case err == nil:
			return f, nil
		case !errors.Is(err, unix.EWOULDBLOCK):
			_ = f.Close()
			return nil, os.NewSyscallError("flock", err)
		case !time.Now().Before(end):
			_ = f.Close()
			if wait == 0 {
				return nil, errHeld
			}
			return nil, fmt.Errorf("%s: %w since %s", path, errHeld, wait)
		}
		time.Sleep(pause)
	}
}

// flock waits for nobody.
func flock(f *os.File, how int) error {
	for {
		if err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB); !errors.Is(err, unix.EINTR) {
			return err
		}
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
		return &TakenError{path, st.Mode & 0o7777, st.Uid}
	}
	return nil
}

// TakenError is a parent that another user could write to, or has made.
type TakenError struct {
	Path  string
	Mode  uint32
	Owner uint32
}

func (e *TakenError) Error() string {
	return fmt.Sprintf("%s is not a directory that only you can write to (mode %04o, owner %d)", e.Path, e.Mode, e.Owner)
}

// Remedy is what the caller can do about it. What is another's in /tmp he cannot
// remove.
func (e *TakenError) Remedy() string {
	if e.Owner != uint32(os.Geteuid()) && os.Geteuid() != 0 {
		return "set XDG_RUNTIME_DIR to a directory of your own, such as /run/user/" + fmt.Sprint(os.Geteuid())
	}
	return "remove it: rm -r " + e.Path
}
