package exec

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

// child is what the workload has: copies of the descriptors, as after a clone.
type child struct{ in, out, err *os.File }

func begin(t *testing.T, s *Stdio) child {
	t.Helper()
	var c [3]*os.File
	for i, fd := range s.FDs() {
		n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		c[i] = os.NewFile(uintptr(n), "child")
	}
	if err := s.Started(); err != nil {
		t.Fatal(err)
	}
	return child{c[0], c[1], c[2]}
}

func (c child) close() {
	_ = c.in.Close()
	_ = c.out.Close()
	_ = c.err.Close()
}

// within fails a test that hangs.
func within(t *testing.T, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatalf("%s: still waiting", what)
	}
}

func inode(t *testing.T, fd int) (dev, ino uint64, mode uint32) {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		t.Fatal(err)
	}
	return st.Dev, st.Ino, st.Mode & unix.S_IFMT
}

func openFile(t *testing.T, path string, flags int) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = r.Close(), w.Close() })
	return r, w
}

func socket(t *testing.T) (a, b *os.File) {
	t.Helper()
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	a, b = os.NewFile(uintptr(p[0]), "a"), os.NewFile(uintptr(p[1]), "b")
	t.Cleanup(func() { _, _ = a.Close(), b.Close() })
	return a, b
}

// pty gives the caller's side and the side that a program would have.
func pty(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master = openFile(t, "/dev/ptmx", os.O_RDWR|unix.O_NOCTTY)
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	return master, openFile(t, filepath.Join("/dev/pts", strconv.Itoa(n)), os.O_RDWR|unix.O_NOCTTY)
}

// No descriptor of a host file, and none that could be asked for more, gets
// into the sandbox.
func TestWhichStreamsAreInherited(t *testing.T) {
	r, w := pipe(t)
	sock, _ := socket(t)
	_, term := pty(t)
	named := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(named, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		what   string
		f      *os.File
		direct bool
	}{
		{"pipe, to read", r, true},
		{"pipe, to write", w, true},
		{"terminal", term, true},
		{"/dev/null", openFile(t, "/dev/null", os.O_RDWR), true},
		{"FIFO with a name", openFile(t, named, os.O_RDWR), false},
		{"regular file", openFile(t, filepath.Join(t.TempDir(), "f"), os.O_RDWR|os.O_CREATE), false},
		{"directory", openFile(t, t.TempDir(), os.O_RDONLY), false},
		{"socket", sock, false},
		{"/dev/zero", openFile(t, "/dev/zero", os.O_RDWR), false},
		{"/dev/full", openFile(t, "/dev/full", os.O_RDWR), false},
	} {
		for i := range 3 {
			streams := [3]*os.File{}
			streams[i] = test.f
			s, err := NewStdio(Streams{In: streams[0], Out: streams[1], Err: streams[2]}, false)
			if err != nil {
				t.Fatalf("%s as %d: %v", test.what, i, err)
			}
			wantDev, wantIno, _ := inode(t, int(test.f.Fd()))
			dev, ino, mode := inode(t, s.FDs()[i])
			if same := dev == wantDev && ino == wantIno; same != test.direct {
				t.Errorf("%s as %d: inherited is %t, want %t", test.what, i, same, test.direct)
			}
			if !test.direct && mode != unix.S_IFIFO {
				t.Errorf("%s as %d: mode %o, want a pipe", test.what, i, mode)
			}
			s.Close()
		}
	}
}

func TestMissingStreamsAreNull(t *testing.T) {
	null := openFile(t, "/dev/null", os.O_RDWR)
	_, want, _ := inode(t, int(null.Fd()))
	for _, tty := range []bool{false, true} {
		in := openFile(t, "/etc/passwd", os.O_RDONLY)
		streams := Streams{}
		if tty {
			streams.In = in // with a terminal of its own, init has none of the caller's
		}
		s, err := NewStdio(streams, tty)
		if err != nil {
			t.Fatal(err)
		}
		for i, fd := range s.FDs() {
			if _, ino, _ := inode(t, fd); ino != want {
				t.Errorf("tty %t: stream %d is not /dev/null", tty, i)
			}
		}
		s.Close()
	}
}

func TestClosedStreamIsAnError(t *testing.T) {
	f := openFile(t, "/dev/null", os.O_RDWR)
	_ = f.Close()
	if _, err := NewStdio(Streams{Out: f}, false); err == nil || !strings.Contains(err.Error(), "standard stream 1") {
		t.Errorf("error %v, want one that names the stream", err)
	}
}

func TestFilesBehindPipes(t *testing.T) {
	dir := t.TempDir()
	text := strings.Repeat("0123456789", 50_000)
	if err := os.WriteFile(filepath.Join(dir, "in"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	same := testutil.Descriptors(t)
	in, err := os.Open(filepath.Join(dir, "in"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := in.Seek(5, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	out, err := os.OpenFile(filepath.Join(dir, "out"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewStdio(Streams{In: in, Out: out, Err: out}, false)
	if err != nil {
		t.Fatal(err)
	}
	c := begin(t, s)
	within(t, "copying", func() {
		// As cat does: everything in, everything out, and its end is seen.
		if n, err := io.Copy(c.out, c.in); err != nil || n != int64(len(text)-5) {
			t.Errorf("the workload read %d bytes, %v, want %d", n, err, len(text)-5)
		}
		if _, err := c.err.WriteString("done"); err != nil {
			t.Error(err)
		}
		c.close()
		s.Wait(nil)
	})
	got, err := os.ReadFile(filepath.Join(dir, "out"))
	if err != nil || len(got) != len(text)-5+4 || !bytes.Contains(got, []byte("done")) {
		t.Errorf("%d bytes were written, %v, want %d", len(got), err, len(text)-5+4)
	}
	_, _ = in.Close(), out.Close()
	same()
}

// The end of a sandbox does not wait for input that nobody wants any more.
func TestWaitGivesInputUp(t *testing.T) {
	in, peer := socket(t)
	s, err := NewStdio(Streams{In: in}, false)
	if err != nil {
		t.Fatal(err)
	}
	c := begin(t, s)
	c.close()
	within(t, "Wait beside silent input", func() { s.Wait(nil) })
	// What comes later is still the caller's.
	if _, err := peer.WriteString("later"); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 10)
	if n, err := in.Read(buf); err != nil || string(buf[:n]) != "later" {
		t.Errorf("%q, %v: input was taken that nobody asked for", buf[:n], err)
	}
}

func TestWaitCopiesOutputToItsEnd(t *testing.T) {
	ours, peer := socket(t)
	s, err := NewStdio(Streams{Out: ours}, false)
	if err != nil {
		t.Fatal(err)
	}
	c := begin(t, s)
	text := bytes.Repeat([]byte("x"), 60_000)
	if _, err := c.out.Write(text); err != nil {
		t.Fatal(err)
	}
	c.close()
	got := make([]byte, len(text))
	within(t, "output", func() {
		s.Wait(nil)
		if _, err := io.ReadFull(peer, got); err != nil || !bytes.Equal(got, text) {
			t.Errorf("the output is not whole: %v", err)
		}
	})
}

// A reader that sleeps holds up nobody who gives it up.
func TestOutputCanBeGivenUp(t *testing.T) {
	ours, _ := socket(t)
	s, err := NewStdio(Streams{Out: ours}, false)
	if err != nil {
		t.Fatal(err)
	}
	c := begin(t, s)
	go func() {
		_, _ = c.out.Write(make([]byte, 4<<20)) // more than all the buffers on the way
	}()
	giveUp := make(chan struct{})
	time.AfterFunc(50*time.Millisecond, func() { close(giveUp) })
	within(t, "Wait", func() { s.Wait(giveUp) })
}

func TestBrokenOutputIsToldToTheWorkload(t *testing.T) {
	ours, peer := socket(t)
	_ = peer.Close()
	s, err := NewStdio(Streams{Out: ours}, false)
	if err != nil {
		t.Fatal(err)
	}
	c := begin(t, s)
	within(t, "EPIPE", func() {
		for {
			if _, err := c.out.Write(bytes.Repeat([]byte("x"), 4096)); err != nil {
				if !errors.Is(err, unix.EPIPE) {
					t.Errorf("%v, want EPIPE", err)
				}
				break
			}
		}
		c.close()
		s.Wait(nil)
	})
}

// A start that fails ends with Wait alone, or with Close.
func TestNeverStarted(t *testing.T) {
	same := testutil.Descriptors(t)
	f, err := os.Open("/etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	for _, end := range []func(*Stdio){func(s *Stdio) { s.Wait(nil) }, (*Stdio).Close} {
		s, err := NewStdio(Streams{In: f, Out: f, Err: f}, false)
		if err != nil {
			t.Fatal(err)
		}
		within(t, "the end", func() { end(s) })
	}
	_ = f.Close()
	same()
}

// A program that opens /dev/stdout opens the pipe anew, as its own user.
func TestPipesBelongToTheWorkload(t *testing.T) {
	testutil.Needs(t, testutil.Root)
	_, w := pipe(t)
	_, term := pty(t)
	s, err := NewStdio(Streams{In: term, Out: w, Err: openFile(t, "/etc/passwd", os.O_RDONLY)}, false)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var was unix.Stat_t
	if err := unix.Fstat(int(term.Fd()), &was); err != nil {
		t.Fatal(err)
	}
	if err := s.Own(4242); err != nil {
		t.Fatal(err)
	}
	for i, want := range []uint32{was.Uid, 4242, 4242} {
		var st unix.Stat_t
		if err := unix.Fstat(s.FDs()[i], &st); err != nil {
			t.Fatal(err)
		}
		if st.Uid != want {
			t.Errorf("stream %d belongs to %d, want %d", i, st.Uid, want)
		}
	}
}

// Whoever was sent the sandbox's end of a pipe can keep it open for ever, and write on.
func TestOutputEndsWithTheSandbox(t *testing.T) {
	ours, peer := socket(t)
	s, err := NewStdio(Streams{Out: ours}, false)
	if err != nil {
		t.Fatal(err)
	}
	c := begin(t, s)
	defer c.close()
	text := bytes.Repeat([]byte("x"), 60_000)
	if _, err := c.out.Write(text); err != nil {
		t.Fatal(err)
	}
	s.Gone()
	got := make([]byte, len(text))
	within(t, "Wait", func() {
		s.Wait(nil)
		if _, err := io.ReadFull(peer, got); err != nil || !bytes.Equal(got, text) {
			t.Errorf("the output is not whole: %v", err)
		}
	})
	if err := s.Lost(); err != nil {
		t.Error(err)
	}
}

func TestOutputThatIsWrittenOnEnds(t *testing.T) {
	r, w := pipe(t)
	o := &Output{From: r}
	const size = 5000
	if _, err := w.Write(make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	o.Gone()
	within(t, "reading", func() {
		b, n := make([]byte, 1000), 0
		for {
			m, err := o.Read(b)
			if n += m; err != nil {
				if !errors.Is(err, io.EOF) || n != size {
					t.Errorf("%d bytes, %v, want %d", n, err, size)
				}
				return
			}
			if _, err := w.Write(b[:m]); err != nil {
				t.Error(err)
			}
		}
	})
}
