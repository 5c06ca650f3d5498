package logs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

// smallDisk gives a file system of its own, which is mounted nowhere: nobody
// else on the host sees it.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	testutil.Needs(t, testutil.Root, testutil.Kernel(5, 2))
	ctx, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(ctx)
	if err := unix.FsconfigSetString(ctx, "size", size); err != nil {
		t.Fatal(err)
	}
	if err := unix.FsconfigCreate(ctx); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Fsmount(ctx, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fmt.Sprintf("/proc/self/fd/%d", fd)
}

func TestFullDiskHoldsNobodyUpAndIsToldOf(t *testing.T) {
	dir := smallDisk(t, "64k")
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 24<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	l := open(t, dir, Options{})
	var in bytes.Buffer
	for i := range 3000 {
		fmt.Fprintf(&in, "%s %d\n", strings.Repeat("x", i%80), i)
	}
	in.WriteString("no end")
	var seen bytes.Buffer
	copyAll(t, l, Out, bytes.NewReader(in.Bytes()), &seen)
	if seen.Len() != in.Len() {
		t.Errorf("%d of %d bytes were read", seen.Len(), in.Len())
	}
	if err := l.Err(); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("Err: %v", err)
	}
	before := read(t, dir, all)
	kept := text(before, Out)
	if len(before) == 0 || !strings.HasPrefix(in.String(), kept) {
		t.Fatalf("%d records, which do not begin what was written", len(before))
	}

	// Whole records only are in the file, and nothing more of it.
	b, err := os.ReadFile(filepath.Join(dir, folder, current))
	if err != nil || !bytes.HasSuffix(b, []byte("}\n")) {
		t.Errorf("a torn record is left: %v, %q", err, b[max(0, len(b)-50):])
	}

	// There is room again.
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	copyAll(t, l, Err, strings.NewReader("again\n"))
	after := read(t, dir, all)[len(before):]
	if want := fmt.Sprintf("lost:%d|err:again", in.Len()-len(kept)); brief(after) != want {
		t.Errorf("after it: %q, want %q", brief(after), want)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

// To make room by a rotation would give what is there for what may not fit either.
func TestFullDiskDoesNotRotate(t *testing.T) {
	dir := smallDisk(t, "64k")
	l := open(t, dir, Options{MaxBytes: 10 << 10})
	copyAll(t, l, Err, strings.NewReader("old\n"))
	if err := os.WriteFile(filepath.Join(dir, "ballast"), make([]byte, 64<<10), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	copyAll(t, l, Out, &lineReader{200 << 10})
	if got := read(t, dir, all); len(got) == 0 || string(got[0].Text) != "old" {
		t.Errorf("%d records, and not the first", len(got))
	}
}

func TestLossThatNoRecordTellsOf(t *testing.T) {
	dir := smallDisk(t, "16k")
	l := open(t, dir, Options{})
	copyAll(t, l, Out, &lineReader{100 << 10})
	if err := l.Close(); !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "bytes of output are lost") {
		t.Errorf("Close: %v", err)
	}
}

// A directory that goes away while the sandbox lives, and files that cannot be
// made, are no worse than a full disk.
func TestRotationThatFails(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, Options{MaxBytes: 1000})
	copyAll(t, l, Out, &lineReader{500})
	path := filepath.Join(dir, folder)
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
	var seen bytes.Buffer
	copyAll(t, l, Out, &lineReader{5000}, &seen)
	if seen.Len() != 5000 || l.Err() == nil {
		t.Errorf("%d bytes were read, %v", seen.Len(), l.Err())
	}

	// The name is taken by something that cannot be moved over.
	dir = t.TempDir()
	l = open(t, dir, Options{MaxBytes: 1000})
	blocked := filepath.Join(dir, folder, fileName(1))
	if err := os.MkdirAll(filepath.Join(blocked, "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, folder, fileName(2)), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	const lines = 50
	copyAll(t, l, Out, &lineReader{lines * 100})
	if err := os.RemoveAll(blocked); err != nil {
		t.Fatal(err)
	}
	copyAll(t, l, Err, strings.NewReader("again\n"))
	if st, err := os.Stat(filepath.Join(dir, folder, current)); err != nil || st.Size() > 1000 {
		t.Errorf("the file has %d bytes, %v", st.Size(), err)
	}
	var lost, whole int
	for _, r := range read(t, dir, all) {
		lost += int(r.Lost)
		if r.Stream == Out {
			whole += len(r.Text) + 1
		}
	}
	if lost == 0 || lost+whole != lines*100 {
		t.Errorf("%d bytes are there and %d are told lost, of %d", whole, lost, lines*100)
	}
}

// What a disk would not let be cut off is cut off before anything else is written.
func TestTornRecordThatStayed(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, Options{})
	copyAll(t, l, Out, strings.NewReader("1\n"))
	if _, err := l.f.WriteString(`{"t":"torn`); err != nil {
		t.Fatal(err)
	}
	l.torn = true
	copyAll(t, l, Out, strings.NewReader("2\n"))
	if got := brief(read(t, dir, all)); got != "out:1|out:2" {
		t.Errorf("got %q", got)
	}
}

func TestWritingAfterTheEnd(t *testing.T) {
	l := open(t, t.TempDir(), Options{})
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	var seen bytes.Buffer
	copyAll(t, l, Out, io.LimitReader(&lineReader{500}, 500), &seen)
	if seen.Len() != 500 || !errors.Is(l.Err(), os.ErrClosed) {
		t.Errorf("%d bytes were read, %v", seen.Len(), l.Err())
	}
}
