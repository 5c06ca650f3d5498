package exec

import (
	"bytes"
	"errors"
	"io"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

func flags(t *testing.T, f *os.File) uint32 {
	t.Helper()
	a, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return a.Lflag
}

func readUntil(t *testing.T, f *os.File, want string) {
	t.Helper()
	within(t, "reading "+want, func() {
		var got []byte
		buf := make([]byte, 100)
		for !bytes.Contains(got, []byte(want)) {
			n, err := f.Read(buf)
			if err != nil {
				t.Errorf("%q, %v, want %q", got, err, want)
				return
			}
			got = append(got, buf[:n]...)
		}
	})
}

// With a terminal on both sides keys go through untouched, the size is the
// caller's, and at the end the caller's terminal is as it was.
func TestTerminalBetweenTerminals(t *testing.T) {
	keyboard, callers := pty(t)
	master, workloads := pty(t)
	if err := unix.IoctlSetWinsize(int(callers.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 37, Col: 111}); err != nil {
		t.Fatal(err)
	}
	before := flags(t, callers)
	s, err := NewStdio(Streams{In: callers, Out: callers, Err: callers}, true)
	if err != nil {
		t.Fatal(err)
	}
	begin(t, s).close()
	ours, err := unix.FcntlInt(master.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	_ = master.Close()
	if err := s.Terminal(os.NewFile(uintptr(ours), "master")); err != nil {
		t.Fatal(err)
	}
	if during := flags(t, callers); during&(unix.ICANON|unix.ECHO|unix.ISIG) != 0 {
		t.Errorf("the caller's terminal is not raw: %#x", during)
	}
	if ws, err := unix.IoctlGetWinsize(int(workloads.Fd()), unix.TIOCGWINSZ); err != nil || ws.Row != 37 || ws.Col != 111 {
		t.Errorf("the workload's size is %+v, %v, want 37 x 111", ws, err)
	}
	if err := unix.IoctlSetWinsize(int(callers.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 10, Col: 20}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(os.Getpid(), unix.SIGWINCH); err != nil {
		t.Fatal(err)
	}
	if _, err := keyboard.WriteString("typed\r"); err != nil {
		t.Fatal(err)
	}
	readUntil(t, workloads, "typed\n")
	if _, err := workloads.WriteString("shown"); err != nil {
		t.Fatal(err)
	}
	readUntil(t, keyboard, "shown")
	within(t, "resize", func() {
		for {
			ws, err := unix.IoctlGetWinsize(int(workloads.Fd()), unix.TIOCGWINSZ)
			if err != nil || ws.Row == 10 && ws.Col == 20 {
				return
			}
		}
	})
	_ = workloads.Close()
	within(t, "Wait", func() { s.Wait(nil) })
	if after := flags(t, callers); after != before {
		t.Errorf("the caller's terminal is left changed: %#x, was %#x", after, before)
	}
}

// Input that ends becomes an end of file at the workload's terminal; its
// output goes on.
func TestTerminalWithoutCallersTerminal(t *testing.T) {
	in, w := pipe(t)
	r, out := pipe(t)
	master, workloads := pty(t)
	s, err := NewStdio(Streams{In: in, Out: out, Err: out}, true)
	if err != nil {
		t.Fatal(err)
	}
	begin(t, s).close()
	ours, err := unix.FcntlInt(master.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	_ = master.Close()
	if err := s.Terminal(os.NewFile(uintptr(ours), "master")); err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteString("a line\n"); err != nil {
		t.Fatal(err)
	}
	readUntil(t, workloads, "a line\n")
	_ = w.Close()
	within(t, "end of file", func() {
		if n, err := workloads.Read(make([]byte, 10)); n != 0 {
			t.Errorf("%d bytes, %v, want an end of file", n, err)
		}
	})
	if _, err := workloads.WriteString("goodbye"); err != nil {
		t.Fatal(err)
	}
	readUntil(t, r, "goodbye")
	_ = workloads.Close()
	within(t, "Wait", func() { s.Wait(nil) })
}

// Output that nobody takes any more hangs the workload's terminal up.
func TestTerminalWithBrokenOutput(t *testing.T) {
	r, out := pipe(t)
	master, workloads := pty(t)
	s, err := NewStdio(Streams{Out: out}, true)
	if err != nil {
		t.Fatal(err)
	}
	begin(t, s).close()
	ours, err := unix.FcntlInt(master.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	_ = master.Close()
	if err := s.Terminal(os.NewFile(uintptr(ours), "master")); err != nil {
		t.Fatal(err)
	}
	_ = r.Close()
	within(t, "hang-up", func() {
		for {
			if _, err := workloads.WriteString("to nobody"); err != nil {
				return
			}
			time.Sleep(time.Millisecond)
		}
	})
	_ = workloads.Close()
	within(t, "Wait", func() { s.Wait(nil) })
}

// A terminal that ends while somebody attaches to it is that terminal or none: never
// what has got its number since.
func TestMasterBesideTheEnd(t *testing.T) {
	for range 100 {
		master, slave := pty(t)
		var want unix.Stat_t
		if err := unix.Fstat(int(master.Fd()), &want); err != nil {
			t.Fatal(err)
		}
		s, err := NewStdio(Streams{}, true)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(s.Started(), s.Terminal(master)); err != nil {
			t.Fatal(err)
		}
		go slave.Close()
		for {
			f, err := s.Master()
			if err != nil {
				break
			}
			SetSize(master, Size{Rows: 1, Columns: 1})
			var got unix.Stat_t
			if err := unix.Fstat(int(f.Fd()), &got); err != nil || got.Ino != want.Ino || got.Dev != want.Dev {
				t.Errorf("another file: %v", err)
			}
			_ = f.Close()
		}
		s.Wait(nil)
	}
}

// Whoever was sent the workload's side of a terminal can keep it open for ever.
func TestTerminalEndsWithTheSandbox(t *testing.T) {
	same := testutil.Descriptors(t)
	master, slave := pty(t)
	r, w := pipe(t)
	s, err := NewStdio(Streams{Out: w}, true)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Started(), s.Terminal(master)); err != nil {
		t.Fatal(err)
	}
	if _, err := slave.WriteString("last words"); err != nil {
		t.Fatal(err)
	}
	s.Gone()
	within(t, "Wait", func() { s.Wait(nil) })
	_ = w.Close()
	if got, err := io.ReadAll(r); err != nil || string(got) != "last words" {
		t.Errorf("%q, %v", got, err)
	}
	_, _ = r.Close(), slave.Close()
	same()
}
