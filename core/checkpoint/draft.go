package checkpoint

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/trusted"
)

// Draft is an image that is being made: beside the place where it is going to be, in a
// directory that becomes it by its new name alone.
type Draft struct {
	path   string // where the image is going to be
	parent *os.Root
	name   string
	temp   string
}

// workName is the directory that the program writes to. It is none of the image's, for
// who has got hold of it could write there for longer.
const workName = "work"

// prefix of a draft's name, which tells what it is if it is ever left.
const prefix = ".nucleus-checkpoint-"

// Begin makes a draft for a path that holds nothing, or an empty directory. Before there
// is anything, intent is told of the directory that Remove removes.
func Begin(path string, intent func(dir string) error) (_ *Draft, err error) {
	fail := func(hint string, err error) error { return &Error{Path: path, Err: err, Hint: hint} }
	if !filepath.IsAbs(path) || filepath.Clean(path) != path || path == "/" {
		return nil, fail("", errors.New("it is no absolute, clean path"))
	}
	dir := filepath.Dir(path)
	// Whoever may rename what is in there could put anything in the place of an image.
	t, err := trusted.OpenDir(dir)
	var te *trusted.Error
	switch {
	case errors.As(err, &te):
		return nil, fail("choose a directory that nobody else may write to", err)
	case errors.Is(err, fs.ErrNotExist):
		return nil, fail("mkdir -p "+dir, err)
	case err != nil:
		return nil, fail("", err)
	}
	_ = t.Close() // was opened to be looked at alone
	d := &Draft{path: path, name: filepath.Base(path), temp: prefix + rand.Text()}
	if d.parent, err = os.OpenRoot(dir); err != nil {
		return nil, fail("", err)
	}
	defer func() {
		if err != nil {
			_ = d.parent.Close()
		}
	}()
	if err := d.vacant(); err != nil {
		return nil, fail("choose another, or remove it", err)
	}
	if err := intent(d.dir()); err != nil {
		return nil, err
	}
	for _, name := range []string{d.temp, filepath.Join(d.temp, DataName), filepath.Join(d.temp, workName)} {
		if err := d.parent.Mkdir(name, 0o700); err != nil {
			return nil, errors.Join(fail("", err), d.parent.RemoveAll(d.temp))
		}
	}
	return d, nil
}

func (d *Draft) dir() string { return filepath.Join(filepath.Dir(d.path), d.temp) }

// vacant tells what is in the place of the image, if it is more than an empty directory.
func (d *Draft) vacant() error {
	st, err := d.parent.Lstat(d.name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if !st.IsDir() {
		return errors.New("it exists, and is no directory")
	}
	f, err := d.parent.Open(d.name)
	if err != nil {
		return err
	}
	defer f.Close()
	if names, err := f.Readdirnames(1); !errors.Is(err, io.EOF) || len(names) > 0 {
		return errors.Join(errors.New("the directory is not empty"), ignoreEOF(err))
	}
	return nil
}

func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// Data opens the directory for the program's files, as a path descriptor.
func (d *Draft) Data() (*os.File, error) {
	path := filepath.Join(d.dir(), workName)
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &Error{Path: d.path, Err: os.NewSyscallError("open", err)}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// Publish makes the image of what the program has written, on disk and under its name,
// or fails and leaves the draft.
func (d *Draft) Publish(m Manifest) error {
	if err := d.publish(m); err != nil {
		var e *Error
		if !errors.As(err, &e) {
			err = &Error{Path: d.path, Err: err}
		}
		return err
	}
	return nil
}

func (d *Draft) publish(m Manifest) error {
	dir, err := d.parent.OpenRoot(d.temp)
	if err != nil {
		return err
	}
	defer dir.Close()
	entries, err := fs.ReadDir(dir.FS(), workName)
	if err != nil {
		return err
	}
	if len(entries) == 0 || len(entries) > maxFiles {
		return fmt.Errorf("the program has written %d files, and is to write from 1 to %d", len(entries), maxFiles)
	}
	// The program, or who has broken into it, may still do anything to its directory: what
	// is looked at is out of it.
	for _, x := range entries {
		if err := dir.Rename(filepath.Join(workName, x.Name()), filepath.Join(DataName, x.Name())); err != nil {
			return err
		}
	}
	if err := dir.RemoveAll(workName); err != nil {
		return err
	}
	data, err := dir.OpenRoot(DataName)
	if err != nil {
		return err
	}
	defer data.Close()
	for _, x := range entries {
		size, err := adopt(data, x.Name())
		if err != nil {
			return fmt.Errorf("%q, which the program has written: %w", x.Name(), err)
		}
		m.Files = append(m.Files, File{Name: x.Name(), Size: size})
	}
	slices.SortFunc(m.Files, func(a, b File) int { return strings.Compare(a.Name, b.Name) })
	m.Version = Version
	b, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	f, err := d.parent.OpenFile(filepath.Join(d.temp, manifestName), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := errors.Join(syncDir(d.parent, filepath.Join(d.temp, DataName)), syncDir(d.parent, d.temp)); err != nil {
		return err
	}
	at, err := d.parent.Open(".")
	if err != nil {
		return err
	}
	// That of package os refuses the name of an empty directory.
	err = os.NewSyscallError("renameat", unix.Renameat(int(at.Fd()), d.temp, int(at.Fd()), d.name))
	if err == nil {
		err = at.Sync()
	}
	return errors.Join(err, at.Close())
}

// adopt makes a file of the program's our own, and gives its size. What its owner is
// says who may give it away: root may, and anybody else copies.
func adopt(dir *os.Root, name string) (int64, error) {
	f, err := dir.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }() // for reading, or synced before
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return 0, os.NewSyscallError("fstat", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Nlink != 1 {
		return 0, errors.New("it is no regular file with one name")
	}
	us := os.Geteuid()
	switch {
	case int(st.Uid) == us && int(st.Gid) == os.Getegid():
	case us == 0:
		if err := f.Chown(0, os.Getegid()); err != nil {
			return 0, err
		}
	default:
		if f, err = copied(dir, f, name); err != nil {
			return 0, err
		}
	}
	if err := errors.Join(f.Chmod(0o600), f.Sync()); err != nil {
		return 0, err
	}
	now, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return now.Size(), nil
}

// copied puts a copy of a file in its place, and gives it in the place of the other,
// which it closes.
func copied(dir *os.Root, from *os.File, name string) (*os.File, error) {
	temp := prefix + rand.Text()
	to, err := dir.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return from, err
	}
	_, err = io.Copy(to, from)
	if err == nil {
		err = dir.Rename(temp, name)
	}
	if err != nil {
		return from, errors.Join(err, to.Close(), dir.Remove(temp))
	}
	_ = from.Close() // for reading
	return to, nil
}

func syncDir(at *os.Root, name string) error {
	f, err := at.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Discard removes what a draft has left; of one that was published that is nothing.
func (d *Draft) Discard() error { return d.parent.RemoveAll(d.temp) }

// Close lets the draft go.
func (d *Draft) Close() { _ = d.parent.Close() }

// Remove removes a draft whose maker is gone: dir is what Begin has told of.
func Remove(dir string) error {
	if !strings.HasPrefix(filepath.Base(dir), prefix) {
		return fmt.Errorf("%q is no draft of an image", dir)
	}
	parent, err := os.OpenRoot(filepath.Dir(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer parent.Close()
	return parent.RemoveAll(filepath.Base(dir))
}
