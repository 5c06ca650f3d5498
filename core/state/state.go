// Package state owns the state root: a directory for each sandbox, its lock,
// its journal, and who holds which name. Liveness is a lock, never a bare pid.
package state

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/internal/failpoint"
	"github.com/nucleus-runtime/nucleus/internal/plainfile"
	"github.com/nucleus-runtime/nucleus/internal/plainjson"
)

// Environment variable that overrides the state root.
const EnvRoot = "NUCLEUS_STATE_ROOT"

// DefaultRoot is where the state root is when nobody says: /run/nucleus for
// root, below XDG_RUNTIME_DIR for others, else in /tmp by uid.
func DefaultRoot() string {
	if r := os.Getenv(EnvRoot); r != "" {
		return r
	}
	if os.Geteuid() == 0 {
		return "/run/nucleus"
	}
	if x := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(x) {
		return filepath.Join(x, "nucleus")
	}
	return fmt.Sprintf("/tmp/nucleus-%d", os.Geteuid())
}

// Root is an open state root.
type Root struct {
	path string
	fd   int
}

// NameError tells that a name cannot be a sandbox's. A name becomes a file of
// the state root, and is printed.
type NameError struct{ Name string }

func (e *NameError) Error() string {
	return fmt.Sprintf("%q is no name of a sandbox: write 1 to 63 of a-z, 0-9 and -, and no - at its start", e.Name)
}

func validName(s string) bool {
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && (c != '-' || i == 0) {
			return false
		}
	}
	return s != "" && len(s) <= 63
}

// NameTakenError tells that a live sandbox has the name; without an ID, that something else
// is in its place, at Path.
type NameTakenError struct{ Name, ID, Path string }

func (e *NameTakenError) Error() string {
	if e.ID == "" {
		return fmt.Sprintf("name %q is taken by %q, which is no name of a sandbox", e.Name, e.Path)
	}
	return fmt.Sprintf("name %q is taken by sandbox %s", e.Name, e.ID[:12])
}

// StrayError tells of something among the sandboxes that is none.
type StrayError struct{ Path string }

func (e *StrayError) Error() string { return fmt.Sprintf("%q: not a sandbox, left alone", e.Path) }

// DirError tells of a sandbox whose directory cannot be opened.
type DirError struct {
	Path string
	Err  error
}

func (e *DirError) Error() string { return e.Err.Error() }
func (e *DirError) Unwrap() error { return e.Err }

// FullError tells that the state root's file system takes nothing more.
type FullError struct{ Err error }

func (e *FullError) Error() string { return e.Err.Error() }
func (e *FullError) Unwrap() error { return e.Err }

// full marks the errors of a file system without room, or without a way to write.
func full(err error) error {
	for _, errno := range []unix.Errno{unix.ENOSPC, unix.EDQUOT, unix.EROFS} {
		if errors.Is(err, errno) {
			return &FullError{err}
		}
	}
	return err
}

// OwnerError is a state root that others may enter.
type OwnerError struct {
	Path      string
	Want, UID int
	Mode      uint32
	// Foreign: it holds files and is no state root, so that somebody else needs its mode.
	Foreign bool
}

func (e *OwnerError) Error() string {
	return fmt.Sprintf("state root %q: must be owned by uid %d with mode 0700 (it is uid %d, %04o)", e.Path, e.Want, e.UID, e.Mode)
}

// RootError tells of a state root that cannot be made, or not be entered.
type RootError struct {
	Path string
	Err  error
}

func (e *RootError) Error() string { return fmt.Sprintf("state root %q: %v", e.Path, e.Err) }
func (e *RootError) Unwrap() error { return e.Err }

// Open opens a state root and makes it if it is missing. It must be a
// directory of ours that nobody else may enter: in /tmp, somebody could have
// made it, or a link, before us.
func Open(path string) (*Root, error) {
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("state root %q: not an absolute path", path)
	}
	// As filepath.Join does with what is below it: what is looked at here is what is used.
	path = filepath.Clean(path)
	if err := os.Mkdir(path, 0o700); errors.Is(err, fs.ErrNotExist) {
		err = os.MkdirAll(path, 0o700)
		if err != nil {
			return nil, &RootError{path, err}
		}
	} else if err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, &RootError{path, err}
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &RootError{path, os.NewSyscallError("open", err)}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		_ = unix.Close(fd)
		return nil, os.NewSyscallError("fstat", err)
	}
	if int(st.Uid) != os.Geteuid() || st.Mode&0o077 != 0 {
		_ = unix.Close(fd)
		return nil, &OwnerError{Path: path, Want: os.Geteuid(), UID: int(st.Uid), Mode: st.Mode & 0o7777, Foreign: foreign(path)}
	}
	for _, sub := range []string{"sandboxes", "names"} {
		if err := unix.Mkdirat(fd, sub, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
			_ = unix.Close(fd)
			return nil, fmt.Errorf("state root %q: %w", path, os.NewSyscallError("mkdirat", err))
		}
	}
	return &Root{path: path, fd: fd}, nil
}

// foreign reports a directory with files in it that is no state root.
func foreign(path string) bool {
	if _, err := os.Lstat(filepath.Join(path, "sandboxes")); err == nil {
		return false
	}
	entries, err := os.ReadDir(path)
	return err != nil || len(entries) > 0
}

// Path gives the directory.
func (r *Root) Path() string { return r.path }

// Close lets the root go; its sandboxes stay.
func (r *Root) Close() error { return os.NewSyscallError("close", unix.Close(r.fd)) }

// locked runs f while nobody else makes, names or collects a sandbox. As with a
// sandbox, it is the directory that is locked: a file in it could be removed
// and made again, and then two would hold "the" lock. Cleaners of /tmp keep
// away from a locked directory, too (tmpfiles.d(5)).
func (r *Root) locked(f func() error) error {
	// Opened again: callers in one process must exclude each other as well.
	fd, err := unix.Openat(r.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("state root %q: %w", r.path, os.NewSyscallError("openat", err))
	}
	defer unix.Close(fd)
	if err := r.await(fd); err != nil {
		return err
	}
	return f()
}

// patience bounds the wait for the lock of the root. Others hold it for far less
// than a millisecond, unless one of them was stopped (SIGSTOP) at that moment:
// then this ends in an error and not in a hang.
const patience = 5 * time.Second

func (r *Root) await(fd int) error {
	pause := 50 * time.Microsecond
	for end := time.Now().Add(patience); ; {
		err := flock(fd, unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return err
		}
		if time.Now().After(end) {
			return &BusyError{Path: r.path}
		}
		time.Sleep(pause)
		pause = min(2*pause, 2*time.Millisecond)
	}
}

// BusyError is a state root that another process has kept locked.
type BusyError struct{ Path string }

func (e *BusyError) Error() string {
	return fmt.Sprintf("state root %q: another process has held its lock for %v; if a nucleus process is stopped (state T in ps), continue or kill it", e.Path, patience)
}

func flock(fd, how int) error {
	for {
		err := unix.Flock(fd, how)
		if !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("flock", err)
		}
	}
}

// NewID makes a sandbox id: 32 hexadecimal digits.
func NewID() string {
	var b [16]byte
	// By hand: crypto/rand, and unix.Getrandom by the vDSO, set up a generator first, which is
	// for who draws more than once.
	if n, _, errno := unix.RawSyscall(unix.SYS_GETRANDOM, uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), 0); errno != 0 || int(n) != len(b) {
		_, _ = rand.Read(b[:]) // never fails
	}
	return hex.EncodeToString(b[:])
}

// Dir is the directory of one sandbox, held by its lock.
type Dir struct {
	ID   string
	Name string
	Path string

	root    *Root
	lock    int
	Journal *Journal
}

// Create makes the directory of a new sandbox and reserves its name. If the
// name is taken and not exact, a suffix from the id makes it unique.
func (r *Root) Create(id, name string, exact bool) (*Dir, error) {
	if !validName(name) {
		return nil, &NameError{name}
	}
	d := &Dir{ID: id, Name: name, Path: filepath.Join(r.path, "sandboxes", id), root: r, lock: -1}
	err := r.locked(func() error {
		if err := r.reserve(d, exact); err != nil {
			return err
		}
		failpoint.Hit("name reserved")
		if err := os.Mkdir(d.Path, 0o700); err != nil {
			return err
		}
		failpoint.Hit("directory made")
		return d.hold()
	})
	if err != nil {
		d.abandon()
		return nil, full(fmt.Errorf("making sandbox %s: %w", id[:12], err))
	}
	failpoint.Hit("directory locked")
	if d.Journal, err = createJournal(filepath.Join(d.Path, journalName)); err != nil {
		d.abandon()
		return nil, full(err)
	}
	return d, nil
}

// reserve gives d a name that nobody has.
func (r *Root) reserve(d *Dir, exact bool) error {
	link := func(name string) error { return os.Symlink(d.ID, r.namePath(name)) }
	err := link(d.Name)
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	holder, rerr := os.Readlink(r.namePath(d.Name))
	if rerr == nil && !r.exists(holder) {
		// Its sandbox is gone without trace: a crash between two removals.
		if err := os.Remove(r.namePath(d.Name)); err != nil {
			return err
		}
		return link(d.Name)
	}
	if exact {
		return &NameTakenError{Name: d.Name, ID: holder, Path: r.namePath(d.Name)}
	}
	d.Name += "-" + d.ID[:8]
	return link(d.Name)
}

func (r *Root) namePath(name string) string { return filepath.Join(r.path, "names", name) }

func (r *Root) exists(id string) bool {
	if !validID(id) {
		return false
	}
	_, err := os.Lstat(filepath.Join(r.path, "sandboxes", id))
	return err == nil
}

func validID(id string) bool {
	b, err := hex.DecodeString(id)
	return err == nil && len(b) == 16
}

func (d *Dir) hold() error {
	fd, err := unix.Open(d.Path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return &DirError{d.Path, os.NewSyscallError("open", err)}
	}
	d.lock = fd
	return flock(fd, unix.LOCK_EX|unix.LOCK_NB)
}

// abandon undoes what Create did before it failed.
func (d *Dir) abandon() {
	if t, err := os.Readlink(d.root.namePath(d.Name)); err == nil && t == d.ID {
		_ = os.Remove(d.root.namePath(d.Name)) // a name without sandbox is free anyway
	}
	if d.lock >= 0 {
		_ = unix.Close(d.lock)
	}
	_ = os.RemoveAll(d.Path) // what stays is an empty sandbox, which gc takes
}

// WriteJSON writes a file of the sandbox so that a reader sees all of it or none.
func (d *Dir) WriteJSON(name string, v any) error { return writeJSON(d.Path, name, v) }

func writeJSON(dir, name string, v any) error {
	b, err := plainjson.Marshal(v)
	if err != nil {
		return fmt.Errorf("encoding %s: %w", name, err)
	}
	tmp := filepath.Join(dir, "."+name)
	f, err := plainfile.Open(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return full(err)
	}
	_, err = f.Write(append(b, '\n'))
	if err := errors.Join(err, f.Close()); err != nil {
		_ = os.Remove(tmp) // it takes room, of which there is none
		return full(err)
	}
	// os.Rename would look at the target first, which is no directory.
	path := filepath.Join(dir, name)
	if err := unix.Rename(tmp, path); err != nil {
		return &os.LinkError{Op: "rename", Old: tmp, New: path, Err: err}
	}
	return nil
}

// RemoveJSON takes a file of WriteJSON away, which may not be there.
func (d *Dir) RemoveJSON(name string) error {
	if err := os.Remove(filepath.Join(d.Path, name)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Remove ends the sandbox: its directory goes, its name is free. Everything
// that the journal names must have been undone.
func (d *Dir) Remove() error {
	err := d.Journal.Close()
	rerr := d.root.locked(func() error {
		if t, err := os.Readlink(d.root.namePath(d.Name)); err == nil && t == d.ID {
			if err := os.Remove(d.root.namePath(d.Name)); err != nil {
				return err
			}
		}
		failpoint.Hit("name freed")
		return d.removeFiles()
	})
	_ = unix.Close(d.lock)
	d.lock = -1
	return errors.Join(err, rerr)
}

// removeFiles removes the directory. It has a handful of files and no directory of its own, so
// that what os.RemoveAll finds out at every step is known.
func (d *Dir) removeFiles() error {
	buf := make([]byte, 4096)
	for {
		n, err := unix.ReadDirent(d.lock, buf)
		if err != nil || n <= 0 {
			break
		}
		_, _, names := unix.ParseDirent(buf[:n], -1, nil)
		for _, name := range names {
			_ = unix.Unlinkat(d.lock, name, 0) // what stays is for os.RemoveAll
		}
	}
	if unix.Rmdir(d.Path) == nil {
		return nil
	}
	return os.RemoveAll(d.Path)
}

// Release lets a sandbox go that could not be removed; gc will try again.
func (d *Dir) Release() error {
	err := d.Journal.Close()
	_ = unix.Close(d.lock)
	d.lock = -1
	return err
}

// Dead gives the sandboxes whose supervisor is gone, each now held by us. One
// that cannot be read, and what is no sandbox at all, is left as it is and told
// of in the error; it does not keep the others from being collected. Those that wait for
// plugins (Dir.Owe) are among them if owed.
func (r *Root) Dead(owed bool) ([]*Dir, error) {
	entries, err := os.ReadDir(filepath.Join(r.path, "sandboxes"))
	if err != nil || len(entries) == 0 {
		return nil, err
	}
	var dead []*Dir
	var errs []error
	err = r.locked(func() error {
		for _, e := range entries {
			if !validID(e.Name()) || !e.IsDir() {
				errs = append(errs, &StrayError{filepath.Join(r.path, "sandboxes", e.Name())})
				continue
			}
			d := &Dir{ID: e.Name(), Path: filepath.Join(r.path, "sandboxes", e.Name()), root: r, lock: -1}
			switch mine, err := d.dead(owed); {
			case err == nil && mine:
				dead = append(dead, d)
			case err == nil, errors.Is(err, unix.EWOULDBLOCK), errors.Is(err, unix.ENOENT): // nothing for us, alive, or gone since we looked
			default:
				errs = append(errs, fmt.Errorf("sandbox %s: %w", e.Name(), err))
			}
		}
		return nil
	})
	errs = append(errs, err)
	if len(dead) > 0 {
		names, err := r.names()
		for _, d := range dead {
			d.Name = names[d.ID]
		}
		errs = append(errs, err)
	}
	return dead, errors.Join(errs...)
}

// dead takes over what there is something to undo of. Most are alive, which their lock tells at once.
func (d *Dir) dead(owed bool) (bool, error) {
	if err := d.hold(); err != nil {
		d.unhold()
		return false, err
	}
	x := d.root.ref(d.ID, "")
	if x.Kept() || x.owed() && !owed {
		d.unhold()
		return false, nil
	}
	if owed {
		_ = os.Remove(filepath.Join(d.Path, owedName)) // whoever has it now says so again
	}
	err := d.openJournal()
	return err == nil, err
}

// takeOver holds a sandbox whose supervisor is gone; one that is kept without its journal,
// which has nothing left to undo.
func (d *Dir) takeOver() error {
	if err := d.hold(); err != nil {
		d.unhold()
		return err
	}
	if d.root.ref(d.ID, "").Kept() {
		return nil
	}
	return d.openJournal()
}

// openJournal opens that of a sandbox that is held, or lets go of it.
func (d *Dir) openJournal() (err error) {
	if d.Journal, err = openJournal(filepath.Join(d.Path, journalName)); err != nil {
		d.unhold()
		return &JournalError{Dir: d.Path, Err: err}
	}
	return nil
}

func (d *Dir) unhold() {
	if d.lock >= 0 {
		_ = unix.Close(d.lock)
		d.lock = -1
	}
}

// names gives the name of each sandbox by its id.
func (r *Root) names() (map[string]string, error) {
	entries, err := os.ReadDir(filepath.Join(r.path, "names"))
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for _, e := range entries {
		if id, err := os.Readlink(r.namePath(e.Name())); err == nil {
			out[id] = e.Name()
		}
	}
	return out, nil
}

// Sweep frees names whose sandbox is gone. The caller need not hold anything.
func (r *Root) Sweep() error {
	if left, err := r.orphans(); err != nil || len(left) == 0 {
		return err
	}
	return r.locked(func() error {
		left, err := r.orphans() // a name is there before its sandbox
		for _, name := range left {
			// Whoever removes its sandbox may be as far as that itself.
			if err := os.Remove(r.namePath(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		return err
	})
}

// orphans are the names without a sandbox.
func (r *Root) orphans() ([]string, error) {
	names, err := r.names()
	if err != nil || len(names) == 0 {
		return nil, err
	}
	entries, err := os.ReadDir(filepath.Join(r.path, "sandboxes"))
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		delete(names, e.Name())
	}
	var left []string
	for _, name := range names {
		if !strings.HasPrefix(name, ".") {
			left = append(left, name)
		}
	}
	return left, nil
}
