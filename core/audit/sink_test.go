package audit

import (
	"bytes"
	"errors"
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
		if n := <-got; n != int64(written) {
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
