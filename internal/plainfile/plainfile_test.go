package plainfile

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x")
	for _, size := range []int{0, 1, 4095, 4096, 4097, 100_000} {
		want := bytes.Repeat([]byte("x"), size)
		if err := os.WriteFile(path, want, 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := Read(path); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes of %d, %v", len(got), size, err)
		}
	}
	// What the kernel says of itself has no size, and comes in as many pieces as it likes.
	want, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Read("/proc/self/mountinfo"); err != nil || !bytes.Equal(got, want) {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
	var pe *os.PathError
	if _, err := Read(path + "y"); !errors.Is(err, os.ErrNotExist) || !errors.As(err, &pe) || pe.Path != path+"y" {
		t.Errorf("what is not there: %v", err)
	}
	if _, err := Read(t.TempDir()); !errors.Is(err, unix.EISDIR) {
		t.Errorf("a directory: %v", err)
	}
}

func TestOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x")
	f, err := Open(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("abc"); err != nil || f.Name() != path {
		t.Errorf("%v, %q", err, f.Name())
	}
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFD, 0)
	if st, serr := f.Stat(); err != nil || flags&unix.FD_CLOEXEC == 0 || serr != nil || st.Mode() != 0o600 {
		t.Errorf("descriptor flags %#x, %v; mode %v, %v", flags, err, st.Mode(), serr)
	}
	if _, err := Open(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600); !errors.Is(err, os.ErrExist) {
		t.Errorf("once more: %v", err)
	}
}
