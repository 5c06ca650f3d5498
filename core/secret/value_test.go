package secret

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func content(t *testing.T, v *Value) string {
	t.Helper()
	b := make([]byte, v.Size()+1)
	n, err := v.f.ReadAt(b, 0)
	if !errors.Is(err, io.EOF) || n != v.Size() {
		t.Fatalf("%d bytes, %v, want %d", n, err, v.Size())
	}
	return string(b[:n])
}

// TestNewMovesAValue into memory that nobody can change, and leaves none behind.
func TestNewMovesAValue(t *testing.T) {
	for _, text := range []string{"", "hunter2", "a\x00b", strings.Repeat("x", MaxValue)} {
		b := []byte(text)
		v, err := New(b)
		if err != nil {
			t.Fatal(err)
		}
		if got := content(t, v); got != text {
			t.Errorf("%d bytes became %d", len(text), len(got))
		}
		if !bytes.Equal(b, make([]byte, len(b))) {
			t.Errorf("the caller's copy of %d bytes is still there", len(b))
		}
		if nul, err := v.HasNUL(); err != nil || nul != strings.Contains(text, "\x00") {
			t.Errorf("%.10q: NUL %t, %v", text, nul, err)
		}
		if _, err := v.f.WriteAt([]byte("x"), 0); !errors.Is(err, unix.EPERM) {
			t.Errorf("written to: %v", err)
		}
		for _, size := range []int64{0, MaxValue * 2} {
			if err := v.f.Truncate(size); size != int64(len(text)) && !errors.Is(err, unix.EPERM) {
				t.Errorf("resized to %d: %v", size, err)
			}
		}
		flags, err := unix.FcntlInt(v.f.Fd(), unix.F_GETFD, 0)
		if err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("it stays open over exec: %#x, %v", flags, err)
		}
		v.Close()
	}
}

func TestNewRefusesWhatIsTooLarge(t *testing.T) {
	b := bytes.Repeat([]byte("x"), MaxValue+1)
	if _, err := New(b); !errors.Is(err, ErrTooLarge) {
		t.Errorf("%v", err)
	}
	if bytes.IndexByte(b, 'x') >= 0 {
		t.Error("the value is still there")
	}
}

// TestSealedTakesSealedMemoryOnly: what somebody could still change could be
// longer, by the time it is read, than when it was looked at.
func TestSealedTakesSealedMemoryOnly(t *testing.T) {
	memfd := func(size int64, add int) *os.File {
		fd, err := unix.MemfdCreate("x", unix.MFD_ALLOW_SEALING)
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(fd), "x")
		if err := f.Truncate(size); err != nil {
			t.Fatal(err)
		}
		if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, add); err != nil {
			t.Fatal(err)
		}
		return f
	}
	file, err := os.OpenFile(filepath.Join(t.TempDir(), "x"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	closed := memfd(0, seals)
	_ = closed.Close()
	for name, f := range map[string]*os.File{
		"not sealed": memfd(1, 0), "writable": memfd(1, seals&^unix.F_SEAL_WRITE), "can grow": memfd(1, seals&^unix.F_SEAL_GROW),
		"written to in future": memfd(1, seals&^unix.F_SEAL_WRITE|unix.F_SEAL_FUTURE_WRITE), "seals not sealed": memfd(1, seals&^unix.F_SEAL_SEAL),
		"too large": memfd(MaxValue+1, seals), "a file": file, "closed": closed, "none": nil,
	} {
		v, err := Sealed(f)
		if err == nil {
			t.Errorf("%s: taken", name)
			v.Close()
		}
		if f != nil && !errors.Is(f.Close(), os.ErrClosed) {
			t.Errorf("%s: still open", name)
		}
	}
	v, err := Sealed(memfd(7, seals))
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	flags, err := unix.FcntlInt(v.f.Fd(), unix.F_GETFD, 0)
	if err != nil || v.Size() != 7 || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("size %d, flags %#x, %v", v.Size(), flags, err)
	}
}

func TestErrorsNameTheirPlace(t *testing.T) {
	cause := errors.New("denied")
	for want, e := range map[string]*Error{`secret "a": denied`: {Name: "a", Err: cause}, `secrets provider "p": denied`: {Provider: "p", Err: cause}} {
		if e.Error() != want || !errors.Is(e, cause) {
			t.Errorf("%q, want %q", e.Error(), want)
		}
	}
}
