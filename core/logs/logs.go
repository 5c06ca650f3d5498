// Package logs owns the output of a workload on disk: bounded, rotated files of
// records in the sandbox's directory, which one supervisor writes and anybody
// with the right to may read, with the supervisor alive or not. It never holds
// the workload up because of a disk, and never takes what it reads for anything
// but data: a workload has written it.
//
// The files are DIR/logs/output.jsonl, which is written, and output.jsonl.1, .2
// and so on, which are older the higher their number. Each holds JSON lines, and
// their form is a promise:
//
//	{"t":"2026-01-02T03:04:05.000000006Z","s":"out","m":"a line"}
//
// where t is when it was read, in UTC; s is "out", "err" or "tty"; and m is the
// text without its newline, or b is, in base64, if it is no UTF-8. "p":true says
// that the line is not at its end: it goes on in the next record of its stream,
// unless the stream ended there. A record with "lost":N has neither stream nor
// text; N bytes of output are missing there. Readers ignore keys that they do
// not know. Control characters and what turns the direction of writing are
// escaped, so a file can be shown on a terminal as it is.
package logs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Stream says where output came from.
type Stream string

// The streams of a workload. A terminal mixes both.
const (
	Out      Stream = "out"
	Err      Stream = "err"
	Terminal Stream = "tty"
)

// Record is a line of output, or a part of one.
type Record struct {
	Time    time.Time
	Stream  Stream // none where output was lost
	Partial bool   // the line goes on in the stream's next record, or never ended
	// Lost is how many bytes of output are missing here, since they could not be
	// written. -1 is told to those who read too slowly: some may be missing, since
	// files were removed before they were read.
	Lost int64
	Text []byte // without the newline
}

// Options bound a log.
type Options struct {
	MaxBytes int64 // of one file; a single record may be longer. 0 is 10 MiB
	MaxFiles int   // with the current one. 0 is 3; 1 forgets everything at each rotation
	Now      func() time.Time
	// Also is given each record on its way, whether or not it can be written. It must
	// not wait, nor keep the text.
	Also func(Record)
}

// Log is the log of a sandbox, open to be written.
type Log struct {
	max   int64
	files int
	now   func() time.Time
	also  func(Record)
	dir   *os.File

	mu    sync.Mutex // of what follows: streams are copied beside each other
	f     *os.File   // nil between a rotation and the next write
	size  int64      // of the whole records in f
	torn  bool       // f is longer than that, and could not be cut back yet
	stamp []byte     // the time of the batch
	batch []byte     // encoded records, written together
	raw   int64      // the bytes of output in the batch
	lost  int64      // that no record tells of yet
	err   error
}

const (
	folder  = "logs"
	current = "output.jsonl"
)

// fileName gives the name of a file by its age.
func fileName(n int) string {
	if n == 0 {
		return current
	}
	return current + "." + strconv.Itoa(n)
}

// Open opens the log of the sandbox that has dir, and goes on after what an
// earlier one left there. The caller sees to it that nobody else writes it.
func Open(dir string, o Options) (*Log, error) {
	l := &Log{max: o.MaxBytes, files: o.MaxFiles, now: o.Now, also: o.Also}
	if l.max <= 0 {
		l.max = 10 << 20
	}
	if l.files <= 0 {
		l.files = 3
	}
	if l.now == nil {
		l.now = time.Now
	}
	path := filepath.Join(dir, folder)
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("log: %w", err)
	}
	var err error
	if l.dir, err = openDir(path); err != nil {
		return nil, fmt.Errorf("log: %w", err)
	}
	if err = l.settle(); err == nil {
		l.f, err = openFile(l.dir, current, os.O_RDWR|os.O_CREATE|os.O_APPEND)
	}
	if err == nil {
		err = l.mend()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("log: %w", err), l.Close())
	}
	return l, nil
}

func openDir(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
}

// openFile opens a file of a log. Who could put a link or a FIFO in its place
// must neither lead us elsewhere nor make us wait.
func openFile(dir *os.File, name string, flags int) (*os.File, error) {
	path := filepath.Join(dir.Name(), name)
	fd, err := unix.Openat(int(dir.Fd()), name, flags|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, &os.PathError{Op: "openat", Path: path, Err: err}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		_ = unix.Close(fd)
		return nil, &os.PathError{Op: "fstat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		_ = unix.Close(fd)
		return nil, &FileError{Path: path}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// FileError is something in a log's directory that is no file of a log.
type FileError struct{ Path string }

func (e *FileError) Error() string { return fmt.Sprintf("%s: not a regular file", e.Path) }

// settle gives the older files numbers without gaps, which a crash in the middle
// of a rotation may have left, and removes those that are too many by now.
func (l *Log) settle() error {
	names, err := l.dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	var numbers []int
	for _, name := range names {
		digits, ok := strings.CutPrefix(name, current+".")
		if n, err := strconv.Atoi(digits); ok && err == nil && n > 0 && name == fileName(n) {
			numbers = append(numbers, n)
		}
	}
	slices.Sort(numbers)
	for i, n := range numbers {
		switch {
		case i+1 >= l.files:
			err = l.remove(n)
		case n != i+1:
			err = l.rename(n, i+1)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// mend cuts off a torn last record, or the next one would go on in the middle
// of it. Only a full disk or a death in the middle of a write leaves one.
func (l *Log) mend() error {
	st, err := l.f.Stat()
	if err != nil {
		return err
	}
	if l.size, err = wholeLines(l.f); err != nil || l.size == st.Size() {
		return err
	}
	return l.f.Truncate(l.size)
}

// Err gives the first failure to write. It stays, even if the log could be
// written again later.
func (l *Log) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// Close closes the log, once each Copy is over. Its error tells of output that
// is missing without a record that says so.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var err error
	if l.lost > 0 {
		l.begin()
		l.flush()
	}
	if l.lost > 0 {
		err = fmt.Errorf("log: the last %d bytes of output are lost: %w", l.lost, l.err)
	}
	if l.f != nil {
		err = errors.Join(err, l.f.Close())
	}
	return errors.Join(err, l.dir.Close())
}
