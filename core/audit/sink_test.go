package audit

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Whatever is not read is written to for as long as it takes something, and no longer.
func TestBoundedSinkIsNotWaitedFor(t *testing.T) {
	event := bytes.Repeat([]byte("x"), 9000)
	for _, kind := range []string{"pipe", "somebody's pipe", "socket"} {
		var r, w *os.File
		var err error
		if kind == "socket" {
			var fds [2]int
			fds, err = unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			r, w = os.NewFile(uintptr(fds[0]), "r"), os.NewFile(uintptr(fds[1]), "w")
		} else {
			r, w, err = os.Pipe()
		}
		if err != nil {
			t.Fatal(err)
		}
		s, ok := Bounded(w).(*stream)
		if !ok {
			t.Fatalf("%s: not bounded", kind)
		}
		if kind == "somebody's pipe" {
			_ = s.Close()
			s.own, s.err = -1, nil
		}
		s.patience = 50 * time.Millisecond
		written := 0
		for err == nil && written < 64<<20 {
			var n int
			n, err = s.Write(event)
			written += n
		}
		if !errors.Is(err, ErrUnread) || written == 0 {
			t.Errorf("%s: %d bytes, %v", kind, written, err)
		}
		began := time.Now()
		if _, err := s.Write(event); !errors.Is(err, ErrUnread) || time.Since(began) > s.patience {
			t.Errorf("%s: tried again for %v, %v", kind, time.Since(began), err)
		}
		got := make(chan int64, 1)
		go func() {
			n, _ := io.Copy(io.Discard, r)
			got <- n
		}()
		_ = s.Close()
		_ = w.Close()
		rest := 0
		if kind == "somebody's pipe" {
			rest = len(event) // of the one that was given up, too
		}
		if n := <-got; n != int64(written+rest) {
			t.Errorf("%s: %d of %d bytes came", kind, n, written)
		}
		_ = r.Close()
	}
}

// A slow reader gets all, and one that is gone is told of.
func TestBoundedSinkReachesASlowReader(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	s := Bounded(w)
	defer s.Close()
	want := bytes.Repeat([]byte("0123456789"), 20<<10)
	done := make(chan []byte)
	go func() {
		time.Sleep(20 * time.Millisecond)
		got := make([]byte, len(want))
		_, _ = io.ReadFull(r, got)
		_ = r.Close()
		done <- got
	}()
	if n, err := s.Write(want); err != nil || n != len(want) {
		t.Fatalf("%d, %v", n, err)
	}
	if !bytes.Equal(<-done, want) {
		t.Error("something else came")
	}
	if _, err := s.Write(want); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("after its reader: %v", err)
	}
}

func TestBoundedFileIsWrittenAsItIs(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "events"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s := Bounded(f)
	if _, err := s.Write([]byte("x\n")); err != nil || s.Close() != nil {
		t.Error(err)
	}
	if _, err := f.WriteString("y\n"); err != nil {
		t.Errorf("the file was closed: %v", err)
	}
}

// pair is a pseudo-terminal whose slave passes on what comes as it is.
func pair(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = master.Close() })
	fd := int(master.Fd()) // and blocks
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = slave.Close() })
	set, err := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	set.Lflag &^= unix.ICANON | unix.ECHO
	if err := unix.IoctlSetTermios(int(slave.Fd()), unix.TCSETS, set); err != nil {
		t.Fatal(err)
	}
	return master, slave
}

// A terminal that is not read is not waited for, whichever end of it is ours, and whether or
// not it can be opened once more.
func TestBoundedTerminalIsNotWaitedFor(t *testing.T) {
	event := append(bytes.Repeat([]byte("x"), 6000), '\n')
	for _, kind := range []string{"slave", "somebody's slave", "stopped", "master"} {
		master, slave := pair(t)
		f := slave
		if kind == "master" {
			f = master
		}
		s, ok := Bounded(f).(*stream)
		if !ok {
			t.Fatalf("%s: not bounded", kind)
		}
		switch kind {
		case "somebody's slave":
			_ = s.Close()
			s.own, s.err = -1, nil
		case "stopped":
			_ = s.Close()
			s.own, s.err = -1, nil
			if err := unix.IoctlSetInt(int(slave.Fd()), unix.TCXONC, unix.TCOOFF); err != nil {
				t.Fatal(err)
			}
		}
		s.patience = 50 * time.Millisecond
		over := make(chan error, 1)
		go func() {
			for range 64 << 10 {
				if _, err := s.Write(event); err != nil {
					over <- err
					return
				}
			}
			over <- nil
		}()
		select {
		case err := <-over:
			if !errors.Is(err, ErrUnread) {
				t.Errorf("%s: %v", kind, err)
			}
		case <-time.After(20 * time.Second):
			t.Errorf("%s: waited for", kind)
		}
		_ = s.Close()
	}
}

// To open a master once more makes another terminal, which nobody has.
func TestBoundedMasterReachesItsSlave(t *testing.T) {
	master, slave := pair(t)
	s := Bounded(master)
	defer s.Close()
	if _, err := s.Write([]byte("an event\n")); err != nil {
		t.Fatal(err)
	}
	fd := int(slave.Fd())
	if err := unix.SetNonblock(fd, true); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 100)
	n, err := unix.Read(fd, b)
	if err != nil || string(b[:n]) != "an event\n" {
		t.Errorf("%q, %v", b[:max(n, 0)], err)
	}
}
