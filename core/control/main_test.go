package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

const childEnv = "NUCLEUS_CONTROL_TEST_CHILD"

func TestMain(m *testing.M) {
	if what := os.Getenv(childEnv); what != "" {
		os.Exit(child(what, os.Args[1]))
	}
	// The runtime's poller keeps descriptors of its own from its first use on,
	// which a census would take for leaks.
	r, w, err := os.Pipe()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	r.Close()
	w.Close()
	os.Exit(m.Run())
}

// child is what this binary does as another process, perhaps another user's.
func child(what, dir string) int {
	switch what {
	case "call":
		c, err := Dial(context.Background(), dir)
		if err == nil {
			err = c.Call(context.Background(), "echo", nil, nil)
		}
		// As an ordinary user we would refuse a server that is not ours, and here
		// it is the server that is to be tried.
		var foreign *ForeignError
		if errors.As(err, &foreign) {
			if c, err = dial(context.Background(), filepath.Join(dir, SocketName)); err == nil {
				err = c.Call(context.Background(), "echo", nil, nil)
			}
		}
		var e *Error
		if errors.As(err, &e) {
			fmt.Println(e.Code)
			return 0
		}
		fmt.Println(err)
		return 0
	case "hang":
		c, err := Dial(context.Background(), dir)
		if err == nil {
			err = c.Send("wait", nil)
		}
		fmt.Println(err)
		time.Sleep(time.Hour)
	case "listen":
		s, err := Listen(dir)
		fmt.Println(err)
		if err == nil {
			_, _ = io.Copy(io.Discard, os.Stdin)
			_ = s.Close()
		}
	}
	return 1
}

// census fails the test if it leaves descriptors open.
func census(t testing.TB) {
	t.Helper()
	t.Cleanup(testutil.Descriptors(t))
}

func openFiles(t testing.TB) []string {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	var files []string
	for _, e := range entries {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil {
			files = append(files, e.Name()+" "+to)
		}
	}
	return files
}

// serve runs a server in a new directory until the test ends.
func serve(t testing.TB, handle Handler, tune ...func(*Server)) (*Server, string) {
	t.Helper()
	census(t)
	dir := shortDir(t)
	s, err := Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range tune {
		f(s)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(context.Background(), handle) }()
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return s, dir
}

func connected(t testing.TB, dir string) *Conn {
	t.Helper()
	c, err := Dial(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// echo gives a request back, descriptors and all.
func echo(_ context.Context, c *Conn, m Message, fds []*os.File) {
	var body any
	if m.Body != nil {
		body = m.Body
	}
	_ = c.Send(KindOK, body, fds...) // the client's end of the test fails without it
}

func pipe(t testing.TB) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.Close()
		w.Close()
	})
	return r, w
}

// descriptor asks f for its flags without making it block, as Fd would.
func descriptor(t testing.TB, f *os.File, command int) (flags int) {
	t.Helper()
	raw, err := f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var failed error
	if err := raw.Control(func(fd uintptr) { flags, failed = unix.FcntlInt(fd, command, 0) }); err != nil || failed != nil {
		t.Fatal(err, failed)
	}
	return flags
}

func wantCode(t testing.TB, err error, code string) Error {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) || e.Code != code {
		t.Fatalf("%v (%#v), want an error with code %q", err, err, code)
	}
	return *e
}

func soon(t testing.TB, what <-chan struct{}, name string) {
	t.Helper()
	select {
	case <-what:
	case <-time.After(testutil.Patient(5 * time.Second)):
		t.Fatalf("%s: not within 5 s", name)
	}
}

// shortDir is a directory whose path leaves room for a socket's name (unix(7)),
// wherever the tests' own temporary directory is.
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "nucleus-control-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}
