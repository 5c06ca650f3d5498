package checkpoint

import (
	"context"
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
			return nil, errors.Join(fail("choose a directory that you may write to, on a file system with room", err), removeAll(d.parent, d.temp))
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
func (d *Draft) Publish(ctx context.Context, m Manifest) error {
	if err := d.publish(ctx, m); err != nil {
		var e *Error
		if !errors.As(err, &e) {
			err = &Error{Path: d.path, Err: err}
		}
		return err
	}
	return nil
}

func (d *Draft) publish(ctx context.Context, m Manifest) error {
	dir, err := d.parent.OpenRoot(d.temp)
	if err != nil {
		return err
	}
	defer dir.Close()
	names, err := written(dir)
	if err != nil {
		return err
	}
	// The program, or who has broken into it, may still do anything to its directory: what
	// is looked at is out of it.
	for _, name := range names {
		if err := dir.Rename(filepath.Join(workName, name), filepath.Join(DataName, name)); err != nil {
			return err
		}
	}
	if err := removeAll(dir, workName); err != nil {
		return err
	}
	data, err := dir.OpenRoot(DataName)
	if err != nil {
		return err
	}
	defer data.Close()
	slices.Sort(names)
	for _, name := range names {
		size, err := adopt(ctx, data, name)
		if err != nil {
			return fmt.Errorf("%q, which the program has written: %w", name, err)
		}
		m.Files = append(m.Files, File{Name: name, Size: size})
	}
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

// written gives the names of what the program has written, of which there may be any
// number.
func written(dir *os.Root) ([]string, error) {
	f, err := dir.Open(workName)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(maxFiles + 1)
	switch {
	case ignoreEOF(err) != nil:
		return nil, err
	case len(names) > maxFiles:
		return nil, fmt.Errorf("the program has written more than %d files", maxFiles)
	case len(names) == 0:
		return nil, errors.New("the program has written no file")
	}
	return names, nil
}

// adopt puts a copy in the place of a file of the program's, and gives its size. The file
// itself may be open in the program for longer, which could write to it, give rights to it to
// others, and to whoever executes it: a mount without set-ID files and one with mapped ids
// take file capabilities that count on the host (capabilities(7)).
func adopt(ctx context.Context, dir *os.Root, name string) (size int64, err error) {
	from, err := dir.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return 0, err
	}
	defer from.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(from.Fd()), &st); err != nil {
		return 0, os.NewSyscallError("fstat", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Nlink != 1 {
		return 0, errors.New("it is no regular file with one name")
	}
	temp := prefix + rand.Text()
	to, err := dir.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return 0, err
	}
	err = copyData(ctx, to, from, st.Size)
	if err = errors.Join(err, to.Sync(), to.Close()); err != nil {
		return 0, err
	}
	return st.Size, dir.Rename(temp, name)
}

// copyChunk is copied between two looks at whether somebody still wants it.
const copyChunk = 16 << 20

// copyData copies so much of a file, and leaves holes what is one: how large a file is
// costs who has made it nothing.
func copyData(ctx context.Context, to, from *os.File, size int64) error {
	for at := int64(0); at < size; {
		if ctx.Err() != nil {
			return fmt.Errorf("interrupted: %w", context.Cause(ctx))
		}
		data, err := unix.Seek(int(from.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // there is but a hole
		}
		if err != nil {
			return os.NewSyscallError("lseek", err)
		}
		hole, err := unix.Seek(int(from.Fd()), data, unix.SEEK_HOLE)
		if err != nil {
			return os.NewSyscallError("lseek", err)
		}
		end := min(hole, size, data+copyChunk)
		if data >= end {
			break
		}
		if _, err := from.Seek(data, io.SeekStart); err != nil {
			return err
		}
		if _, err := to.Seek(data, io.SeekStart); err != nil {
			return err
		}
		if _, err := io.CopyN(to, from, end-data); err != nil {
			return err
		}
		at = end
	}
	return to.Truncate(size)
}

func syncDir(at *os.Root, name string) error {
	f, err := at.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Discard removes what a draft has left; of one that was published that is nothing.
func (d *Draft) Discard() error { return left(d.dir(), removeAll(d.parent, d.temp)) }

// left says what to do about directories of a draft that belong to a subordinate id: an
// ordinary user may not look into what a program has made as another.
func left(dir string, err error) error {
	if !errors.Is(err, fs.ErrPermission) {
		return err
	}
	return &Error{Path: dir, Err: err, Hint: "unshare --map-auto --map-root-user rm -r " + dir}
}

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
	return left(dir, removeAll(parent, filepath.Base(dir)))
}
