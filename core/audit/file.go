package audit

import (
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/internal/plainfile"
)

// FileName is the file of a sandbox's directory that has its events. What came before
// is in FileName with OldSuffix, and nothing older is kept.
const (
	FileName  = "events.jsonl"
	OldSuffix = ".1"
)

// maxFile is when a file is put aside: a sandbox that lives for months must not fill
// the state root's memory.
const maxFile = 4 << 20

// File is a sandbox's own sink. Log sees to it that writes come one at a time.
type File struct {
	path string
	f    *os.File
	size int64
}

// OpenFile opens the file of a sandbox that has none yet.
func OpenFile(path string) (*File, error) {
	f := &File{path: path}
	return f, f.open()
}

func (f *File) open() (err error) {
	f.f, err = plainfile.Open(f.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
	f.size = 0
	return err
}

// Write writes one event.
func (f *File) Write(b []byte) (int, error) {
	if f.size > 0 && f.size+int64(len(b)) > maxFile {
		old := f.f
		if err := os.Rename(f.path, f.path+OldSuffix); err != nil {
			return 0, err
		}
		if err := f.open(); err != nil {
			f.f = old
			return 0, err
		}
		_ = old.Close() // every write to it has been told
	}
	n, err := f.f.Write(b)
	f.size += int64(n)
	return n, err
}

// Close closes the file.
func (f *File) Close() error { return f.f.Close() }

// Reader reads a sandbox's events as they come, over the file being put aside.
type Reader struct {
	path string
	f    *os.File
}

// OpenReader begins with what was put aside, if anything was.
func OpenReader(path string) (*Reader, error) {
	r := &Reader{path: path}
	var err error
	if r.f, err = openToRead(path + OldSuffix); errors.Is(err, os.ErrNotExist) {
		r.f, err = openToRead(path)
	}
	if err != nil {
		return nil, err
	}
	return r, nil
}

func openToRead(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
}

// Read gives io.EOF when there is nothing more for now.
func (r *Reader) Read(b []byte) (int, error) {
	n, err := r.f.Read(b)
	if n > 0 || !errors.Is(err, io.EOF) {
		return n, err
	}
	next, err := openToRead(r.path)
	if err != nil {
		return 0, io.EOF // the sandbox is gone, and its directory
	}
	was, werr := r.f.Stat()
	is, ierr := next.Stat()
	if werr != nil || ierr != nil || os.SameFile(was, is) {
		_ = next.Close()
		return 0, io.EOF
	}
	// Put aside since, and complete: what was written between the two reads is there.
	if n, err = r.f.Read(b); n > 0 {
		_ = next.Close()
		return n, err
	}
	_ = r.f.Close()
	r.f = next
	return r.f.Read(b)
}

// Close closes the file.
func (r *Reader) Close() error { return r.f.Close() }
