package logs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

var all = Query{Tail: -1}

func open(t testing.TB, dir string, o Options) *Log {
	t.Helper()
	l, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func read(t testing.TB, dir string, q Query) []Record {
	t.Helper()
	var out []Record
	err := Read(context.Background(), dir, q, func(r Record) error {
		out = append(out, r)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// text joins what the records of a stream hold.
func text(records []Record, s Stream) string {
	var b strings.Builder
	for _, r := range records {
		if r.Stream == s {
			b.Write(r.Text)
			if !r.Partial {
				b.WriteByte('\n')
			}
		}
	}
	return b.String()
}

// brief writes records down so that a test can compare them.
func brief(records []Record) string {
	var out []string
	for _, r := range records {
		s := fmt.Sprintf("%s:%s", r.Stream, r.Text)
		if r.Partial {
			s += "..."
		}
		if r.Lost != 0 {
			s = fmt.Sprintf("lost:%d", r.Lost)
		}
		out = append(out, s)
	}
	return strings.Join(out, "|")
}

func copyAll(t testing.TB, l *Log, s Stream, from io.Reader, more ...io.Writer) {
	t.Helper()
	if err := l.Copy(s, from, more...); err != nil {
		t.Fatal(err)
	}
}

func usage(t testing.TB, dir string) (total int64, names []string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(dir, folder))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		st, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		total += st.Size()
		names = append(names, e.Name())
	}
	return total, names
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b) // never fails
	return b
}

func TestRoundTrip(t *testing.T) {
	long := strings.Repeat("x", maxText)
	for _, test := range []struct{ what, in, want string }{
		{"nothing", "", ""},
		{"lines", "a\nb\n", "out:a|out:b"},
		{"empty lines", "\n\n", "out:|out:"},
		{"a line that never ends", "a\nb", "out:a|out:b..."},
		{"what JSON escapes", "\"q\"\\\t\r\x00\x1b[1m\x7f\n", "out:\"q\"\\\t\r\x00\x1b[1m\x7f"},
		{"UTF-8", "ä漢😀\u009b\u202e\u2066\u2028\n", "out:ä漢😀\u009b\u202e\u2066\u2028"},
		{"no UTF-8", "a\xff\xc3\nb\n", "out:a\xff\xc3|out:b"},
		{"surrogates", "\xed\xa0\x80\n", "out:\xed\xa0\x80"},
		{"the replacement character itself", "\ufffd\n", "out:\ufffd"},
		{"the longest line", long + "\n", "out:" + long},
		{"one byte more", long + "y\n", "out:" + long + "...|out:y"},
		{"twice the longest", long + long + "\n", "out:" + long + "...|out:" + long},
		{"a cut that spares a character", long[1:] + "ä\n", "out:" + long[1:] + "...|out:ä"},
	} {
		for name, from := range map[string]io.Reader{"": strings.NewReader(test.in), ", a byte at a time": iotest.OneByteReader(strings.NewReader(test.in))} {
			dir := t.TempDir()
			l := open(t, dir, Options{})
			copyAll(t, l, Out, from)
			if got := brief(read(t, dir, all)); got != test.want {
				t.Errorf("%s%s: got %.200q, want %.200q", test.what, name, got, test.want)
			}
			if err := l.Err(); err != nil {
				t.Errorf("%s: %v", test.what, err)
			}
		}
	}
}

func TestBinaryOutputSurvives(t *testing.T) {
	in := random(1 << 20)
	dir := t.TempDir()
	var also bytes.Buffer
	copyAll(t, open(t, dir, Options{}), Err, iotest.HalfReader(bytes.NewReader(in)), &also)
	records := read(t, dir, all)
	got := []byte(text(records, Err))
	if !bytes.Equal(got, in) || !bytes.Equal(also.Bytes(), in) {
		t.Errorf("%d bytes came back and %d went to the other writer, want the same %d", len(got), also.Len(), len(in))
	}
}

// The form on disk is a promise.
func TestForm(t *testing.T) {
	dir := t.TempDir()
	now := func() time.Time { return time.Date(2026, 1, 2, 4, 4, 5, 6, time.FixedZone("", 3600)) }
	l := open(t, dir, Options{Now: now})
	copyAll(t, l, Out, strings.NewReader("a \"line\"\n\x1b\u009b\u202e\xe2\n"))
	copyAll(t, l, Err, strings.NewReader("é\u009b\u202e$ "))
	copyAll(t, l, Terminal, strings.NewReader("$ ls\r\n"))
	want := `{"t":"2026-01-02T03:04:05.000000006Z","s":"out","m":"a \"line\""}
{"t":"2026-01-02T03:04:05.000000006Z","s":"out","b":"G8Kb4oCu4g=="}
{"t":"2026-01-02T03:04:05.000000006Z","s":"err","p":true,"m":"é\u009b\u202e$ "}
{"t":"2026-01-02T03:04:05.000000006Z","s":"tty","m":"$ ls\r"}
`
	path := filepath.Join(dir, folder, current)
	got, err := os.ReadFile(path)
	if err != nil || string(got) != want {
		t.Errorf("%v, got\n%swant\n%s", err, got, want)
	}
	for p, mode := range map[string]fs.FileMode{path: 0o600, filepath.Dir(path): fs.ModeDir | 0o700} {
		if st, err := os.Stat(p); err != nil || st.Mode() != mode {
			t.Errorf("%s: %v, %v, want %v", p, st.Mode(), err, mode)
		}
	}
}

// eventually waits for what another goroutine does.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(testutil.Patient(5 * time.Second)); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s did not come to pass", what)
		}
	}
}

func TestPromptIsSeenWhileTheWriterWaits(t *testing.T) {
	for _, s := range []Stream{Out, Terminal} {
		dir := t.TempDir()
		l := open(t, dir, Options{})
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		copied := make(chan error)
		go func() { copied <- l.Copy(s, r) }()
		if _, err := w.WriteString("hello\nname: "); err != nil {
			t.Fatal(err)
		}
		prompt := string(s) + ":hello|" + string(s) + ":name: ..."
		eventually(t, "the prompt of "+string(s), func() bool { return brief(read(t, dir, all)) == prompt })
		if _, err := w.WriteString("joe\nword: "); err != nil {
			t.Fatal(err)
		}
		prompt += "|" + string(s) + ":joe|" + string(s) + ":word: ..."
		eventually(t, "the second prompt of "+string(s), func() bool { return brief(read(t, dir, all)) == prompt })
		if _, err := w.WriteString("x\n"); err != nil {
			t.Fatal(err)
		}
		_ = w.Close()
		if err := <-copied; err != nil {
			t.Error(err)
		}
		if got, want := brief(read(t, dir, all)), prompt+"|"+string(s)+":x"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		_ = r.Close()
	}
}

// A terminal is written as it comes, but for what would be cut in the middle.
func TestTerminal(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, Options{})
	chunks := []io.Reader{}
	for _, s := range []string{"a\r", "\n$ ", "\xc3", "\xa4", "x\xff", "\r"} {
		chunks = append(chunks, strings.NewReader(s))
	}
	chunks = append(chunks, iotest.ErrReader(&os.PathError{Op: "read", Path: "/dev/ptmx", Err: unix.EIO}))
	copyAll(t, l, Terminal, io.MultiReader(chunks...))
	if got, want := brief(read(t, dir, all)), "tty:a...|tty:\r|tty:$ ...|tty:ä...|tty:x\xff...|tty:\r..."; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

type failing struct{ calls int }

func (f *failing) Write([]byte) (int, error) {
	f.calls++
	return 0, unix.EPIPE
}

func TestWhatElseEndsOrDoesNotEndACopy(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, Options{})
	var good bytes.Buffer
	bad := &failing{}
	err := l.Copy(Out, io.MultiReader(strings.NewReader("a\n"), strings.NewReader("b\nc"), iotest.ErrReader(unix.EIO)), bad, &good)
	if !errors.Is(err, unix.EIO) {
		t.Errorf("a pipe that breaks: %v", err)
	}
	if bad.calls != 1 || good.String() != "a\nb\nc" {
		t.Errorf("a broken client was written to %d times, the other got %q", bad.calls, &good)
	}
	if got := brief(read(t, dir, all)); got != "out:a|out:b|out:c..." {
		t.Errorf("got %q", got)
	}
}

func TestLogGoesOnAfterARestart(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, folder, current)
	for _, line := range []string{"one\n", "two\n"} {
		l := open(t, dir, Options{})
		copyAll(t, l, Out, strings.NewReader(line))
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			t.Fatal(err)
		}
		// Longer than what is read at once.
		if _, err := f.WriteString(`{"t":"` + strings.Repeat("2", 3*block)); err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
	}
	copyAll(t, open(t, dir, Options{}), Out, strings.NewReader("three\n"))
	if got := brief(read(t, dir, all)); got != "out:one|out:two|out:three" {
		t.Errorf("got %q", got)
	}
}

// A crash in the middle of a rotation leaves a gap, and a new limit files that
// are too many.
func TestFilesAreSettledAtARestart(t *testing.T) {
	dir := t.TempDir()
	open(t, dir, Options{})
	for _, n := range []int{2, 3, 7, 12} {
		line := appendRecord(nil, appendTime(nil, time.Now()), Record{Stream: Out, Text: []byte(fileName(n))})
		if err := os.WriteFile(filepath.Join(dir, folder, fileName(n)), line, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	open(t, dir, Options{MaxFiles: 4})
	if _, names := usage(t, dir); strings.Join(names, " ") != "output.jsonl output.jsonl.1 output.jsonl.2 output.jsonl.3" {
		t.Errorf("files %q", names)
	}
	if got := brief(read(t, dir, all)); got != "out:output.jsonl.7|out:output.jsonl.3|out:output.jsonl.2" {
		t.Errorf("got %q", got)
	}
}

func TestRotationIsBounded(t *testing.T) {
	const files, size = 3, 8 << 10
	for _, test := range []struct {
		what  string
		files int
		lines int
		line  string
	}{
		{"short lines", files, 3000, "line %d\n"},
		{"long lines", files, 100, "line %d" + strings.Repeat("x", 3000) + "\n"},
		{"lines longer than a file", files, 20, "line %d" + strings.Repeat("x", 12000) + "\n"},
		{"one file", 1, 1000, "line %d\n"},
	} {
		dir := t.TempDir()
		l := open(t, dir, Options{MaxBytes: size, MaxFiles: test.files})
		var in strings.Builder
		for i := range test.lines {
			fmt.Fprintf(&in, test.line, i)
		}
		copyAll(t, l, Out, strings.NewReader(in.String()))
		total, names := usage(t, dir)
		if limit := int64(test.files) * max(size, int64(len(test.line)+100)); len(names) != test.files || total > limit {
			t.Errorf("%s: %d bytes in %q, want no more than %d", test.what, total, names, limit)
		}
		if st, err := os.Stat(filepath.Join(dir, folder, fileName(1))); test.what == "short lines" && (err != nil || st.Size() < size-100) {
			t.Errorf("%s: a file was rotated before it was full: %v", test.what, err)
		}
		got := text(read(t, dir, all), Out)
		if got == "" || !strings.HasSuffix(in.String(), got) {
			t.Errorf("%s: the files do not hold the last lines: %.100q", test.what, got)
		}
		if err := l.Err(); err != nil {
			t.Errorf("%s: %v", test.what, err)
		}
	}
}

// Records may be much longer than what they hold; buffers stay small even so.
func TestBuffersAreBounded(t *testing.T) {
	for what, in := range map[string]string{"empty lines": "\n", "control characters": "\x01"} {
		dir := t.TempDir()
		l := open(t, dir, Options{MaxFiles: 10})
		copyAll(t, l, Out, strings.NewReader(strings.Repeat(in, 300<<10)))
		if limit := 2 * (batchSize + 6*maxText); cap(l.batch) > limit {
			t.Errorf("%s: a buffer of %d, want no more than %d", what, cap(l.batch), limit)
		}
		if got := text(read(t, dir, all), Out); got != strings.Repeat(in, 300<<10) {
			t.Errorf("%s: %d bytes came back", what, len(got))
		}
	}
}

func TestNoWayLeadsOut(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, []byte("{}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		what string
		put  func(path string) error
	}{
		{"a link", func(path string) error { return os.Symlink(outside, path) }},
		{"a FIFO", func(path string) error { return unix.Mkfifo(path, 0o600) }},
		{"a directory", func(path string) error { return os.Mkdir(path, 0o700) }},
	} {
		for _, name := range []string{folder, folder + "/" + current, folder + "/" + fileName(1)} {
			if test.what == "a directory" && name == folder {
				continue
			}
			dir := t.TempDir()
			if name != folder {
				if err := os.Mkdir(filepath.Join(dir, folder), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			if err := test.put(filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
			if err := Read(context.Background(), dir, all, func(Record) error { return nil }); err == nil {
				t.Errorf("%s as %s was read", test.what, name)
			}
			if name == folder+"/"+fileName(1) {
				continue // a rotation only moves it
			}
			if _, err := Open(dir, Options{}); err == nil {
				t.Errorf("%s as %s was opened to be written", test.what, name)
			}
		}
	}
	if b, err := os.ReadFile(outside); err != nil || string(b) != "{}\n" {
		t.Errorf("outside: %q, %v", b, err)
	}
}

// What goes elsewhere as well is told of each record, also of one that cannot be
// written down.
func TestAlso(t *testing.T) {
	var got []string
	dir := t.TempDir()
	l := open(t, dir, Options{Also: func(r Record) { got = append(got, fmt.Sprintf("%s %v %s", r.Stream, r.Partial, r.Text)) }})
	copyAll(t, l, Out, strings.NewReader("one\ntwo\nno end"))
	if err := l.f.Close(); err != nil {
		t.Fatal(err)
	}
	copyAll(t, l, Err, strings.NewReader("three\n"))
	if l.Err() == nil {
		t.Error("a closed file was written")
	}
	if want := "[out false one out false two out true no end err false three]"; fmt.Sprint(got) != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// lineReader repeats lines of a hundred bytes.
type lineReader struct{ left int }

func (r *lineReader) Read(p []byte) (int, error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	n := min(len(p), r.left)
	for i := range p[:n] {
		p[i] = "0123456789abcdefghijklmnopqrstuvwxyz, ABCDEFGHIJKLMNOPQRSTUVWXYZ. 0123456789abcdefghijklmnopqrstuvw\n"[(r.left-i)%100]
	}
	r.left -= n
	return n, nil
}

func BenchmarkCopy(b *testing.B) {
	const size = 1 << 20
	var line bytes.Buffer
	_, _ = io.Copy(&line, &lineReader{size})
	l := open(b, b.TempDir(), Options{})
	b.SetBytes(size)
	b.ReportAllocs()
	for b.Loop() {
		copyAll(b, l, Out, bytes.NewReader(line.Bytes()))
	}
	if err := l.Err(); err != nil {
		b.Fatal(err)
	}
}

func BenchmarkRead(b *testing.B) {
	const size = 1 << 20
	dir := b.TempDir()
	copyAll(b, open(b, dir, Options{}), Out, &lineReader{size})
	b.SetBytes(size)
	for b.Loop() {
		read(b, dir, all)
	}
}
