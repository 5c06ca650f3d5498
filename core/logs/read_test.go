package logs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// fixture writes files of a log, the oldest first, a record each second.
func fixture(t testing.TB, files ...string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, folder), 0o700); err != nil {
		t.Fatal(err)
	}
	now := epoch
	for i, text := range files {
		var b []byte
		for _, word := range strings.Fields(text) {
			stream, m, _ := strings.Cut(word, ":")
			m, partial := strings.CutSuffix(m, "...")
			r := Record{Stream: Stream(stream), Text: []byte(m), Partial: partial}
			if stream == "lost" {
				r.Lost = int64(len(m))
			}
			b = appendRecord(b, appendTime(nil, now), r)
			now = now.Add(time.Second)
		}
		if err := os.WriteFile(filepath.Join(dir, folder, fileName(len(files)-1-i)), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestTailAndSince(t *testing.T) {
	plain := []string{"out:1 out:2", "out:3", "err:4 out:5"}
	pieces := []string{"out:a... err:1 out:b...", "err:2 out:c err:3 err:4..."}
	for _, test := range []struct {
		what  string
		files []string
		q     Query
		want  string
	}{
		{"all", plain, Query{Tail: -1}, "out:1|out:2|out:3|err:4|out:5"},
		{"none", plain, Query{}, ""},
		{"the last", plain, Query{Tail: 1}, "out:5"},
		{"into an older file", plain, Query{Tail: 3}, "out:3|err:4|out:5"},
		{"as many as there are", plain, Query{Tail: 5}, "out:1|out:2|out:3|err:4|out:5"},
		{"more than there are", plain, Query{Tail: 50}, "out:1|out:2|out:3|err:4|out:5"},
		{"since", plain, Query{Tail: -1, Since: epoch.Add(3 * time.Second)}, "err:4|out:5"},
		{"since between two", plain, Query{Tail: -1, Since: epoch.Add(2500 * time.Millisecond)}, "err:4|out:5"},
		{"since long ago", plain, Query{Tail: 1, Since: epoch.Add(-time.Hour)}, "out:5"},
		{"since the future", plain, Query{Tail: 9, Since: epoch.Add(time.Hour)}, ""},
		{"the last of those since", plain, Query{Tail: 2, Since: epoch.Add(2 * time.Second)}, "err:4|out:5"},
		{"fewer since than the tail", plain, Query{Tail: 4, Since: epoch.Add(3 * time.Second)}, "err:4|out:5"},
		{"a line that is not at its end is one", pieces, Query{Tail: 1}, "err:4..."},
		{"and ends no other stream's", pieces, Query{Tail: 2}, "err:3|err:4..."},
		{"a line in pieces is one", pieces, Query{Tail: 3}, "out:a...|out:b...|out:c|err:3|err:4..."},
		{"and so is what it lies between", pieces, Query{Tail: 4}, "out:a...|out:b...|err:2|out:c|err:3|err:4..."},
		{"a loss", []string{"out:1 lost:xxx out:2"}, Query{Tail: 2}, "lost:3|out:2"},
		{"an empty file", []string{"out:1", "", ""}, Query{Tail: 1}, "out:1"},
		{"no file", nil, Query{Tail: 3}, ""},
	} {
		if got := brief(read(t, fixture(t, test.files...), test.q)); got != test.want {
			t.Errorf("%s: got %q, want %q", test.what, got, test.want)
		}
	}
}

// What a tail skips is found from the end, in blocks.
func TestTailOfALongLog(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, Options{MaxBytes: 300 << 10, MaxFiles: 20})
	var in strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&in, "%d%s\n", i, strings.Repeat("x", i*i%5000))
	}
	copyAll(t, l, Out, strings.NewReader(in.String()))
	lines := strings.SplitAfter(in.String(), "\n")
	lines = lines[:len(lines)-1]
	for n := 1; n < len(lines); n += 97 {
		if got, want := text(read(t, dir, Query{Tail: n}), Out), strings.Join(lines[len(lines)-n:], ""); got != want {
			t.Fatalf("tail %d: got %.100q, want %.100q", n, got, want)
		}
	}
}

func TestMissingLog(t *testing.T) {
	err := Read(context.Background(), t.TempDir(), Query{Follow: true}, nil)
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want ErrNotExist", err)
	}
}

func TestEmitEndsReading(t *testing.T) {
	enough := errors.New("enough")
	calls := 0
	err := Read(context.Background(), fixture(t, "out:1 out:2"), all, func(Record) error {
		calls++
		return enough
	})
	if !errors.Is(err, enough) || calls != 1 {
		t.Errorf("%d calls, %v", calls, err)
	}
}

func TestJunkIsSkippedAndCounted(t *testing.T) {
	good := string(appendRecord(nil, appendTime(nil, epoch), Record{Stream: Out, Text: []byte("x")}))
	for _, test := range []struct {
		what, text string
		records    int
		damaged    int
	}{
		{"text", good + "hello\n" + good, 2, 1},
		{"empty lines", "\n\n" + good, 1, 2},
		{"NUL bytes", good + strings.Repeat("\x00", 100) + "\n", 1, 1},
		{"other JSON", "null\n[]\n3\n{}\n{\"t\":3}\n" + good, 1, 5},
		{"no such stream", strings.ReplaceAll(good, "out", "in") + good, 1, 1},
		{"two texts", strings.ReplaceAll(good, `"m"`, `"b":"eA==","m"`), 0, 1},
		{"no text", strings.ReplaceAll(good, `"m"`, `"n"`), 0, 1},
		{"negative loss", `{"t":"2026-01-02T03:04:05Z","lost":-5}` + "\n" + good, 1, 1},
		{"no time", strings.ReplaceAll(good, "2026", ""), 0, 1},
		{"a year of five digits", strings.ReplaceAll(good, "2026-01-02T03:04:05.000000000Z", "9999-12-31T23:59:59-01:00"), 0, 1},
		{"a key of another version", strings.ReplaceAll(good, `"m"`, `"new":{"a":1},"m"`), 1, 0},
		{"deep", strings.Repeat("[", 100000) + "\n" + good, 1, 1},
		{"a long line", good + strings.Repeat("x", 5*maxLine) + "\n" + good, 2, 1},
		{"a long line that looks like two", strings.Repeat(" ", maxLine) + good + good, 1, 1},
		{"a line that is not at its end", good + good[:len(good)-1], 1, 0},
	} {
		for _, tail := range []int{-1, 2} {
			dir := fixture(t, "")
			if err := os.WriteFile(filepath.Join(dir, folder, current), []byte(test.text), 0o600); err != nil {
				t.Fatal(err)
			}
			records := 0
			err := Read(context.Background(), dir, Query{Tail: tail}, func(Record) error {
				records++
				return nil
			})
			var damaged *DamagedError
			errors.As(err, &damaged)
			if tail > 0 && test.damaged > 0 { // what is before the tail is not looked at
				damaged = &DamagedError{test.damaged}
			}
			if records != test.records || damaged == nil && (test.damaged > 0 || err != nil) || damaged != nil && damaged.Lines != test.damaged {
				t.Errorf("%s, tail %d: %d records, %v, want %d and %d damaged", test.what, tail, records, err, test.records, test.damaged)
			}
		}
	}
}

// Whatever is in a file, it is not taken into memory.
func TestReaderIsBounded(t *testing.T) {
	dir := fixture(t, "")
	if err := os.Truncate(filepath.Join(dir, folder, current), 64<<20); err != nil { // a hole
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	for _, tail := range []int{-1, 3} {
		runtime.GC()
		runtime.ReadMemStats(&before)
		if err := Read(context.Background(), dir, Query{Tail: tail}, func(Record) error { return nil }); err != nil {
			t.Errorf("tail %d: %v", tail, err)
		}
		runtime.ReadMemStats(&after)
		if took := after.HeapSys - before.HeapSys; took > 16<<20 && after.HeapSys > before.HeapSys {
			t.Errorf("tail %d: the heap grew by %d", tail, took)
		}
	}
}

// following reads a log in the background.
type following struct {
	t       *testing.T
	cancel  context.CancelFunc
	records chan Record
	err     chan error
}

func follow(t *testing.T, dir string, q Query) *following {
	ctx, cancel := context.WithCancel(context.Background())
	f := &following{t, cancel, make(chan Record, 1<<16), make(chan error, 1)}
	q.Follow = true
	go func() {
		f.err <- Read(ctx, dir, q, func(r Record) error {
			f.records <- r
			return nil
		})
		close(f.records)
	}()
	t.Cleanup(cancel)
	return f
}

func (f *following) next() Record {
	f.t.Helper()
	select {
	case r := <-f.records:
		return r
	case <-time.After(testutil.Patient(5 * time.Second)):
		f.t.Fatal("no record came")
		return Record{}
	}
}

// rest waits for the end, and gives what was not taken.
func (f *following) rest() ([]Record, error) {
	f.t.Helper()
	select {
	case err := <-f.err:
		var out []Record
		for r := range f.records {
			out = append(out, r)
		}
		return out, err
	case <-time.After(testutil.Patient(10 * time.Second)):
		f.t.Fatal("following did not end")
		return nil, nil
	}
}

func TestFollow(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, Options{})
	copyAll(t, l, Out, strings.NewReader("old\n"))
	f := follow(t, dir, Query{Tail: 1})
	if r := f.next(); string(r.Text) != "old" {
		t.Errorf("first %q", r.Text)
	}
	copyAll(t, l, Err, strings.NewReader("new\n"))
	if r := f.next(); string(r.Text) != "new" || r.Stream != Err {
		t.Errorf("then %q", r.Text)
	}
	f.cancel()
	if more, err := f.rest(); len(more) > 0 || !errors.Is(err, context.Canceled) {
		t.Errorf("the end: %q, %v", brief(more), err)
	}
}

func TestFollowingAWriterThatIsGone(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, Options{MaxBytes: 300, MaxFiles: 10})
	const last = "1\n2\n3\n4\n5\n6\n7\n8\n9\n"
	asked := 0
	f := follow(t, dir, Query{Gone: func() bool {
		if asked++; asked < 3 {
			return false
		}
		// It has written right before it went, and more than a file.
		copyAll(t, l, Out, strings.NewReader(last))
		return true
	}})
	if got, err := f.rest(); text(got, Out) != last || err != nil {
		t.Errorf("got %q, %v", brief(got), err)
	}
	if asked != 3 {
		t.Errorf("asked %d times, and it was gone at the third", asked)
	}
}

func TestFollowingEndsWithTheDirectory(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, Options{})
	copyAll(t, l, Out, strings.NewReader("1\n"))
	f := follow(t, dir, all)
	f.next()
	copyAll(t, l, Out, strings.NewReader("2\n"))
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	copyAll(t, l, Out, strings.NewReader("3\n")) // nobody can tell that it is removed
	got, err := f.rest()
	if s := text(got, Out); s != "2\n3\n" && s != "2\n" || err != nil {
		t.Errorf("got %q, %v", brief(got), err)
	}
}

// A directory is removed file by file, the newest perhaps first. What is left is
// not newer.
func TestARemovalIsNoRotation(t *testing.T) {
	dir := fixture(t, "out:1", "out:2", "out:3")
	f := follow(t, dir, all)
	for range 3 {
		f.next()
	}
	if err := os.Remove(filepath.Join(dir, folder, current)); err != nil {
		t.Fatal(err)
	}
	time.Sleep(3 * poll)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if got, err := f.rest(); len(got) > 0 || err != nil {
		t.Errorf("got %q, %v", brief(got), err)
	}
}

// A full disk cuts a record, and another takes its place.
func TestFollowingPastATornRecord(t *testing.T) {
	dir := fixture(t, "out:1")
	f := follow(t, dir, all)
	f.next()
	w, err := os.OpenFile(filepath.Join(dir, folder, current), os.O_RDWR|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	st, err := w.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteString(`{"t":"2026-01-02T03:04:05Z","s":"out","m":"torn`); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * poll)
	if err := w.Truncate(st.Size()); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(appendRecord(nil, appendTime(nil, epoch), Record{Stream: Err, Text: []byte("2")})); err != nil {
		t.Fatal(err)
	}
	if r := f.next(); r.Stream != Err || string(r.Text) != "2" {
		t.Errorf("got %q", brief([]Record{r}))
	}
}

func numbers(t testing.TB, records []Record) []int {
	t.Helper()
	var out []int
	for _, r := range records {
		n := -1
		if r.Lost == 0 {
			var err error
			if n, err = strconv.Atoi(string(r.Text)); err != nil || r.Partial {
				t.Fatalf("record %q", brief([]Record{r}))
			}
		}
		out = append(out, n)
	}
	return out
}

// numbered gives numbers a line each, some at a time.
type numbered struct {
	n, of, each int
	pause       time.Duration
}

func (r *numbered) Read(p []byte) (int, error) {
	if r.n == r.of {
		return 0, io.EOF
	}
	time.Sleep(r.pause)
	var b bytes.Buffer
	for range min(r.each, r.of-r.n) {
		fmt.Fprintf(&b, "%06d\n", r.n)
		r.n++
	}
	return copy(p, b.Bytes()), nil
}

func TestFollowingThroughRotationsLosesAndDoublesNothing(t *testing.T) {
	const lines = 20000
	dir := t.TempDir()
	// No file is ever removed, so none can be missed.
	l := open(t, dir, Options{MaxBytes: 16 << 10, MaxFiles: 200})
	var gone atomic.Bool
	var all []*following
	for range 3 {
		all = append(all, follow(t, dir, Query{Tail: -1, Gone: gone.Load}))
	}
	copyAll(t, l, Out, &numbered{of: lines, each: 100})
	gone.Store(true)
	if _, names := usage(t, dir); len(names) < 50 {
		t.Fatalf("only %d files", len(names))
	}
	for _, f := range all {
		got, err := f.rest()
		if err != nil {
			t.Error(err)
		}
		for i, n := range numbers(t, got) {
			if n != i {
				t.Fatalf("number %d came in place of %d", n, i)
			}
		}
		if len(got) != lines {
			t.Errorf("%d of %d lines", len(got), lines)
		}
	}
}

// Whatever a writer does between two steps of a reader, the files keep their order.
func TestRotationsBesideALook(t *testing.T) {
	for before := range 6 { // so many files are there
		for at := 1; at < 5; at++ {
			for rotations := 1; rotations < 4; rotations++ {
				dir := t.TempDir()
				l := open(t, dir, Options{MaxBytes: 1, MaxFiles: 5})
				n := 0
				next := func() {
					copyAll(t, l, Out, strings.NewReader(strconv.Itoa(n)+"\n"))
					n++
				}
				for range before {
					next()
				}
				d, err := openDir(filepath.Join(dir, folder))
				if err != nil {
					t.Fatal(err)
				}
				steps := 0
				r := &reader{dir: d, race: func() {
					if steps++; steps == at {
						for range rotations {
							next()
						}
					}
				}}
				var got []Record
				r.emit = func(rec Record) error {
					got = append(got, rec)
					return nil
				}
				for more := true; more; {
					if more, err = r.more(t.Context()); err != nil {
						t.Fatal(err)
					}
					if err := r.drain(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
				// The first look may have come too late for the oldest, and for none after it.
				read := numbers(t, got)
				for i, v := range read {
					if v != read[0]+i {
						t.Fatalf("%d files, %d rotations at step %d: %v", before, rotations, at, read)
					}
				}
				if len(read) > 0 && read[len(read)-1] != n-1 {
					t.Fatalf("%d files, %d rotations at step %d: %v, and not %d", before, rotations, at, read, n-1)
				}
				closeAll(r.files)
				_ = d.Close()
			}
		}
	}
}

// A reader that is too slow is told where something may be missing, and gets
// nothing twice.
func TestReaderThatIsOutrun(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, Options{MaxBytes: 2 << 10, MaxFiles: 3})
	var gone atomic.Bool
	f := follow(t, dir, Query{Tail: -1, Gone: gone.Load})
	copyAll(t, l, Out, &numbered{of: 20000, each: 7, pause: 10 * time.Microsecond})
	gone.Store(true)
	records, err := f.rest()
	if err != nil {
		t.Error(err)
	}
	got := numbers(t, records)
	if !slices.Contains(got, -1) || got[len(got)-1] != 19999 {
		t.Errorf("%d numbers without a hole, or without the last", len(got))
	}
	last := -1
	for i, n := range got {
		if n < 0 {
			continue
		}
		if n <= last || n > last+1 && i > 0 && got[i-1] >= 0 {
			t.Fatalf("%d follows %d", n, last)
		}
		last = n
	}
}
