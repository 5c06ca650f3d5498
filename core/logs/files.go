package logs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

const (
	// maxLine is more than any record has: the longest is of control characters,
	// which take six bytes each.
	maxLine = 1 << 20
	block   = 64 << 10 // of a file, read at once
)

// identity tells files apart. It cannot go over to another while one is open.
type identity struct{ dev, ino uint64 }

// source is a file that is read.
type source struct {
	f    *os.File
	id   identity
	off  int64 // of the first line that was not handed on
	long bool  // or of somewhere in the middle of one that is too long
}

func openSource(dir *os.File, n int) (*source, error) {
	f, err := openFile(dir, fileName(n), os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		_ = f.Close()
		return nil, &os.PathError{Op: "fstat", Path: f.Name(), Err: err}
	}
	return &source{f: f, id: identity{st.Dev, st.Ino}}, nil
}

func closeAll(files []*source) {
	for _, s := range files {
		_ = s.f.Close() // only read
	}
}

// lines hands on each line from off to the end, and none for one that is too
// long. What has no newline yet is not taken: its writer may be in the middle of
// it, and if the disk is full then, another record will stand there.
func (s *source) lines(buf *[]byte, visit func(line []byte, at int64) error) error {
	if *buf == nil {
		*buf = make([]byte, block)
	}
	have := 0
	for {
		n, err := s.f.ReadAt((*buf)[have:], s.off+int64(have))
		have += n
		rest := (*buf)[:have]
		for {
			line, after, found := bytes.Cut(rest, []byte{'\n'})
			if !found {
				break
			}
			at := s.off
			s.off += int64(len(line)) + 1
			if s.long {
				s.long, line = false, nil
			}
			if err := visit(line, at); err != nil {
				return err
			}
			rest = after
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		have = copy(*buf, rest)
		switch {
		case have < len(*buf):
		case have < maxLine:
			*buf = append(*buf, make([]byte, have)...)
		default:
			s.long = true
			s.off += int64(have)
			have = 0
		}
	}
}

// wholeLines gives the size of a file without an unfinished last line.
func wholeLines(f *os.File) (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	end := st.Size()
	b := make([]byte, min(block, end))
	for end > 0 {
		part := b[:min(int64(len(b)), end)]
		if _, err := f.ReadAt(part, end-int64(len(part))); err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		i := bytes.LastIndexByte(part, '\n')
		end -= int64(len(part) - (i + 1))
		if i >= 0 {
			break
		}
	}
	return end, nil
}

// torn reports whether the file has something after its last whole line.
func (s *source) torn() (bool, error) {
	st, err := s.f.Stat()
	if err != nil {
		return false, err
	}
	return s.long || st.Size() > s.off, nil
}

// backwards hands on the whole lines before end, the last one first, for as long
// as visit wants more. A line that is too long is cut, so it is no record.
func backwards(ctx context.Context, f io.ReaderAt, end int64, visit func(line []byte, at int64) bool) (bool, error) {
	var rest []byte // of a line that begins before what was read
	ended := false  // a newline is behind it: otherwise it is not a whole line
	for end > 0 {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		n := min(end, block)
		b := make([]byte, n, n+int64(len(rest)))
		if _, err := f.ReadAt(b, end-n); err != nil && !errors.Is(err, io.EOF) {
			return false, err
		}
		end -= n
		b = append(b, rest...)
		for {
			i := bytes.LastIndexByte(b, '\n')
			if i < 0 {
				break
			}
			if ended && !visit(b[i+1:], end+int64(i)+1) {
				return false, nil
			}
			ended = true
			b = b[:i]
		}
		rest = b[max(0, len(b)-maxLine-1):]
	}
	return !ended || visit(rest, 0), nil
}

// maxLooks bounds how often a look at the files is repeated. Each time, the
// writer has filled a file meanwhile.
const maxLooks = 1000

// more opens the files that came after the ones that are read.
func (r *reader) more(ctx context.Context) (bool, error) {
	var after *source
	if len(r.files) > 0 {
		after = r.files[len(r.files)-1]
	}
	for range maxLooks {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		newer, found, steady, err := r.look(after)
		if err != nil {
			return false, err
		}
		if !steady {
			closeAll(newer)
			continue
		}
		slices.Reverse(newer)
		r.files = append(r.files, newer...)
		r.outrun = after != nil && !found && len(newer) > 0
		return len(newer) > 0, nil
	}
	return false, fmt.Errorf("log: %s: its files change faster than they can be opened", r.path)
}

// look opens the files that are newer than one, or all, newest first. A writer
// that rotates beside us moves files only to higher numbers, so none is missed;
// but one that did so while we looked may have got newer files behind older
// ones, and then we have to look again.
func (r *reader) look(after *source) (newer []*source, found, steady bool, err error) {
	head := [2]identity{r.identify(0), r.identify(1)}
	if after != nil && head[0] == after.id {
		return nil, true, true, nil
	}
	// A rotation leaves one gap at a time.
	for n, missing := 0, 0; missing < 2 && !found; n++ {
		if r.race != nil && n > 0 {
			r.race()
		}
		s, err := openSource(r.dir, n)
		if errors.Is(err, unix.ENOENT) {
			missing++
			continue
		}
		if err != nil {
			closeAll(newer)
			return nil, false, false, fmt.Errorf("log: %w", err)
		}
		missing = 0
		found = after != nil && s.id == after.id
		if found || slices.ContainsFunc(newer, func(o *source) bool { return o.id == s.id }) {
			_ = s.f.Close() // we have it already
			continue
		}
		newer = append(newer, s)
	}
	steady = head == [2]identity{r.identify(0), r.identify(1)}
	if after != nil && !found && head[0] == (identity{}) {
		// Between two steps of a rotation it would be there. So the directory is being
		// removed, and what is left of it may be older.
		closeAll(newer)
		newer = nil
	}
	return newer, found, steady, nil
}

// identify gives the file that has a number now, or none.
func (r *reader) identify(n int) identity {
	var st unix.Stat_t
	if err := unix.Fstatat(int(r.dir.Fd()), fileName(n), &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return identity{}
	}
	return identity{st.Dev, st.Ino}
}
