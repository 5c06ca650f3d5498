package logs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// poll is how often a reader that follows looks for more. Watching by inotify
// would be no cheaper for the writer, and takes a descriptor of which a user has
// few (fs.inotify.max_user_instances).
const poll = 60 * time.Millisecond

// Query says what to read.
type Query struct {
	Tail   int       // how many of the last lines; negative for all
	Since  time.Time // leaves out what is older
	Follow bool      // waits for more
	// Gone reports that nothing will be written any more. Then following ends, once
	// everything is read. It may be nil.
	Gone func() bool
}

// DamagedError tells that lines of the files were left out, since they are no
// records.
type DamagedError struct{ Lines int }

func (e *DamagedError) Error() string {
	return fmt.Sprintf("log: %d damaged lines were left out", e.Lines)
}

// place is a position in the files in their order.
type place struct {
	file int
	at   int64
}

func (p place) before(q place) bool {
	return p.file < q.file || p.file == q.file && p.at < q.at
}

type reader struct {
	dir  *os.File
	path string
	q    Query
	emit func(Record) error

	files   []*source // to be read, oldest first
	passed  int       // how many were read before them
	from    map[Stream]place
	buf     []byte
	last    time.Time
	outrun  bool // what comes after the first of files may be missing
	damaged int
	race    func() // a test's, between the opening of one file and the next
}

// Read hands on the records of a sandbox's log, until an error of emit. It may
// be written meanwhile, and its directory may be removed: then what is open is
// read to its end. A following that the context ends, ends with its error.
func Read(ctx context.Context, dir string, q Query, emit func(Record) error) error {
	r := &reader{path: filepath.Join(dir, folder), q: q, emit: emit}
	var err error
	if r.dir, err = openDir(r.path); err != nil {
		return fmt.Errorf("log: %w", err)
	}
	defer r.dir.Close()
	err = r.run(ctx)
	closeAll(r.files)
	if r.damaged > 0 {
		err = errors.Join(err, &DamagedError{r.damaged})
	}
	return err
}

func (r *reader) run(ctx context.Context) error {
	// Asked before reading on, always: what was written before the end is read then.
	over := r.over()
	if _, err := r.more(ctx); err != nil {
		return err
	}
	if r.q.Tail >= 0 {
		if err := r.tail(ctx); err != nil {
			return err
		}
	}
	for {
		if err := r.drain(ctx); err != nil {
			return err
		}
		if !r.q.Follow {
			return nil
		}
		more, err := r.more(ctx)
		if err != nil {
			return err
		}
		if more {
			continue
		}
		if over {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(poll):
		}
		over = r.over()
	}
}

func (r *reader) over() bool {
	if r.q.Gone != nil && r.q.Gone() {
		return true
	}
	here, err := r.dir.Stat()
	if err != nil {
		return true
	}
	there, err := os.Lstat(r.path)
	return err != nil || !os.SameFile(here, there)
}

// drain reads all files to their end, and lets go of all but the newest. When a
// file is known not to be the newest, it is at its end for good.
func (r *reader) drain(ctx context.Context) error {
	for len(r.files) > 0 {
		if err := r.read(ctx, r.files[0]); err != nil {
			return err
		}
		if len(r.files) == 1 {
			return nil
		}
		if cut, err := r.files[0].torn(); err != nil {
			return err
		} else if cut {
			r.damaged++
		}
		closeAll(r.files[:1])
		r.files = r.files[1:]
		r.passed++
		if r.outrun {
			r.outrun = false
			if err := r.emit(Record{Time: r.last, Lost: -1}); err != nil {
				return err
			}
		}
	}
	return nil
}

// read hands on what is whole in a file and was not read yet.
func (r *reader) read(ctx context.Context, s *source) error {
	return s.lines(&r.buf, func(line []byte, at int64) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		rec, ok := parse(line)
		if !ok {
			r.damaged++
			return nil
		}
		r.last = rec.Time
		if rec.Time.Before(r.q.Since) || (place{r.passed, at}).before(r.from[rec.Stream]) {
			return nil
		}
		return r.emit(rec)
	})
}

// tail finds where in each stream the last lines begin, from the end on. Streams
// are told apart, for a line of one may lie in pieces between those of another.
func (r *reader) tail(ctx context.Context) error {
	if len(r.files) == 0 {
		return nil
	}
	newest := len(r.files) - 1
	end, err := wholeLines(r.files[newest].f)
	if err != nil {
		return err
	}
	r.from = map[Stream]place{}
	for _, s := range []Stream{"", Out, Err, Terminal} {
		r.from[s] = place{newest, end}
	}
	wanted := r.q.Tail
	seen, wants := map[Stream]bool{}, map[Stream]bool{}
	visit := func(i int) func([]byte, int64) bool {
		return func(line []byte, at int64) bool {
			rec, ok := parse(line)
			if !ok {
				return true
			}
			if s := rec.Stream; !rec.Partial || !seen[s] {
				seen[s], wants[s] = true, wanted > 0
				wanted = max(0, wanted-1)
			}
			if wants[rec.Stream] {
				r.from[rec.Stream] = place{i, at}
			}
			return wanted > 0 || wants[""] || wants[Out] || wants[Err] || wants[Terminal]
		}
	}
	for i := newest; i >= 0; i-- {
		size := end
		if i < newest {
			if size, err = wholeLines(r.files[i].f); err != nil {
				return err
			}
		}
		goOn, err := backwards(ctx, r.files[i].f, size, visit(i))
		if err != nil {
			return err
		}
		if !goOn {
			break
		}
	}
	r.skip()
	return nil
}

// skip passes over the files and the part of one that hold nothing of the tail.
func (r *reader) skip() {
	first := r.from[Out]
	for _, p := range r.from {
		if p.before(first) {
			first = p
		}
	}
	closeAll(r.files[:first.file])
	r.files = r.files[first.file:]
	r.passed = first.file
	r.files[0].off = first.at
}
