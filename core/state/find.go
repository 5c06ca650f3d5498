package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Ref names a sandbox of the root, which may be alive, dead, or gone by the time it
// is looked at.
type Ref struct{ ID, Name, Path string }

// NotFoundError tells that there is no such sandbox.
type NotFoundError struct{ Ref string }

func (e *NotFoundError) Error() string { return fmt.Sprintf("no sandbox %q", e.Ref) }

// AmbiguousError tells that a prefix fits more than one sandbox.
type AmbiguousError struct {
	Ref string
	IDs []string
}

func (e *AmbiguousError) Error() string {
	return fmt.Sprintf("%q is the beginning of %d ids: write more of one", e.Ref, len(e.IDs))
}

// Refs gives every sandbox of the root, by id.
func (r *Root) Refs() ([]Ref, error) {
	entries, err := os.ReadDir(filepath.Join(r.path, "sandboxes"))
	if err != nil {
		return nil, err
	}
	names, err := r.names()
	if err != nil {
		return nil, err
	}
	var out []Ref
	for _, e := range entries {
		if validID(e.Name()) && e.IsDir() {
			out = append(out, r.ref(e.Name(), names[e.Name()]))
		}
	}
	return out, nil
}

func (r *Root) ref(id, name string) Ref {
	return Ref{ID: id, Name: name, Path: filepath.Join(r.path, "sandboxes", id)}
}

// Find looks a sandbox up by its name, its id, or the beginning of its id that is no
// other's. A name comes first: who chose it can be sure of it.
func (r *Root) Find(ref string) (Ref, error) {
	if validName(ref) {
		if id, err := os.Readlink(r.namePath(ref)); err == nil && r.exists(id) {
			x := r.ref(id, ref)
			return x, x.stray()
		}
	}
	if len(ref) == 0 || len(ref) > 32 || strings.Trim(ref, "0123456789abcdef") != "" {
		return Ref{}, &NotFoundError{ref}
	}
	refs, err := r.Refs()
	if err != nil {
		return Ref{}, err
	}
	var found []Ref
	for _, x := range refs {
		if strings.HasPrefix(x.ID, ref) {
			found = append(found, x)
		}
	}
	switch len(found) {
	case 0:
		if r.exists(ref) {
			return Ref{}, r.ref(ref, "").stray()
		}
		return Ref{}, &NotFoundError{ref}
	case 1:
		return found[0], nil
	}
	e := &AmbiguousError{Ref: ref}
	for _, x := range found {
		e.IDs = append(e.IDs, x.ID)
	}
	return Ref{}, e
}

// Ref names a sandbox that is held.
func (d *Dir) Ref() Ref { return Ref{ID: d.ID, Name: d.Name, Path: d.Path} }

// stray is an error for what has the place of a sandbox and is no directory.
func (x Ref) stray() error {
	if st, err := os.Lstat(x.Path); err == nil && !st.IsDir() {
		return &StrayError{x.Path}
	}
	return nil
}

// Held tells which of these sandboxes a supervisor holds, and of which nobody can tell and
// why. Nobody makes or collects one meanwhile: a lock that is tried is a lock that is held.
func (r *Root) Held(refs []Ref) (held map[string]bool, unknown map[string]error, err error) {
	held, unknown = make(map[string]bool, len(refs)), map[string]error{}
	err = r.locked(func() error {
		for _, x := range refs {
			alive, err := x.held()
			if err != nil {
				unknown[x.ID] = err
			}
			if alive {
				held[x.ID] = true
			}
		}
		return nil
	})
	return held, unknown, err
}

// held is Held of one, for who keeps others from making and collecting sandboxes.
func (x Ref) held() (bool, error) {
	fd, err := unix.Open(x.Path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("sandbox %s: %w", x.ID[:12], &DirError{x.Path, os.NewSyscallError("open", err)})
	}
	defer unix.Close(fd)
	err = flock(fd, unix.LOCK_SH|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return true, nil
	}
	return false, err
}

// maxJSON is more than any file of WriteJSON has.
const maxJSON = 1 << 20

// ReadJSON reads a file that WriteJSON wrote.
func (x Ref) ReadJSON(name string, into any) error {
	f, err := os.OpenFile(filepath.Join(x.Path, name), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxJSON))
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if err := json.Unmarshal(b, into); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// keptName marks a sandbox that has ended and is kept for its record.
const keptName = "kept"

// Keep ends a sandbox as Remove does, but leaves its directory and its name until
// somebody removes it. Everything that the journal names must have been undone.
func (d *Dir) Keep() error {
	return d.leaveAs(keptName)
}

// leaveAs lets a sandbox go with a mark that whoever looks at it finds.
func (d *Dir) leaveAs(mark string) error {
	f, err := os.OpenFile(filepath.Join(d.Path, mark), os.O_WRONLY|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err == nil {
		err = f.Close()
	}
	return errors.Join(full(err), d.Release())
}

// Kept tells whether the sandbox has ended and is kept.
func (x Ref) Kept() bool {
	_, err := os.Lstat(filepath.Join(x.Path, keptName))
	return err == nil
}

// owedName marks a dead sandbox of which nothing is left but what plugins have to be told.
const owedName = "owed"

// Owe lets a dead sandbox go that waits for somebody who can call its plugins. Whoever cannot
// need not look at it again.
func (d *Dir) Owe() error {
	return d.leaveAs(owedName)
}

func (x Ref) owed() bool {
	_, err := os.Lstat(filepath.Join(x.Path, owedName))
	return err == nil
}

// Take holds a sandbox that nobody holds, kept or dead.
func (r *Root) Take(x Ref) (*Dir, error) {
	d := &Dir{ID: x.ID, Name: x.Name, Path: x.Path, root: r, lock: -1}
	err := r.locked(d.takeOver)
	switch {
	case errors.Is(err, unix.EWOULDBLOCK):
		return nil, &HeldError{ID: x.ID}
	case errors.Is(err, fs.ErrNotExist):
		return nil, &NotFoundError{x.ID}
	case err != nil:
		return nil, fmt.Errorf("sandbox %s: %w", x.ID[:12], err)
	}
	return d, nil
}

// HeldError tells that a sandbox has a supervisor.
type HeldError struct{ ID string }

func (e *HeldError) Error() string { return fmt.Sprintf("sandbox %s is alive", e.ID[:12]) }
