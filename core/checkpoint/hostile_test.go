package checkpoint

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

// A program that somebody has broken into keeps a file open, through which it writes to
// it and gives it away when the image is there.
func TestAFileThatIsKeptOpenIsNoneOfTheImages(t *testing.T) {
	path := filepath.Join(place(t), "img")
	d := begin(t, path)
	write(t, work(d, "a"), "state")
	kept, err := os.OpenFile(work(d, "a"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()
	if err := d.Publish(t.Context(), manifest); err != nil {
		t.Fatal(err)
	}
	if _, err := kept.WriteAt([]byte("other"), 0); err != nil {
		t.Fatal(err)
	}
	if err := kept.Chmod(0o777); err != nil {
		t.Fatal(err)
	}
	at := filepath.Join(path, DataName, "a")
	if b, err := os.ReadFile(at); err != nil || string(b) != "state" {
		t.Errorf("%q, %v", b, err)
	}
	if st, err := os.Stat(at); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
}

// Root of a user namespace that a mount maps to the host's sets capabilities on its files
// that the host's kernel gives to whoever executes them.
func TestCapabilitiesOfFilesAreNotAdopted(t *testing.T) {
	testutil.Needs(t, testutil.Root)
	path := filepath.Join(place(t), "img")
	d := begin(t, path)
	write(t, work(d, "a"), "state")
	const name = "security.capability"
	// vfs_cap_data of revision 2, effective: all that there are.
	all := append([]byte{1, 0, 0, 2}, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255)
	if err := unix.Setxattr(work(d, "a"), name, all, 0); err != nil {
		t.Fatal(err)
	}
	if err := d.Publish(t.Context(), manifest); err != nil {
		t.Fatal(err)
	}
	if n, err := unix.Getxattr(filepath.Join(path, DataName, "a"), name, make([]byte, 64)); !errors.Is(err, unix.ENODATA) {
		t.Errorf("the image's file has %d bytes of them: %v", n, err)
	}
}

// The size of a file costs the program nothing, and is to cost no more here.
func TestHolesAreNotWritten(t *testing.T) {
	const size = 1 << 40
	path := filepath.Join(place(t), "img")
	d := begin(t, path)
	write(t, work(d, "a"), "state")
	if err := os.Truncate(work(d, "a"), size); err != nil {
		t.Fatal(err)
	}
	if err := d.Publish(t.Context(), manifest); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(path, DataName, "a"), &st); err != nil || st.Size != size || st.Blocks > 1<<10 {
		t.Errorf("%d bytes in %d blocks, %v", st.Size, st.Blocks, err)
	}
	b := make([]byte, 5)
	f, err := os.Open(filepath.Join(path, DataName, "a"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.ReadAt(b, 0); err != nil || string(b) != "state" {
		t.Errorf("%q, %v", b, err)
	}
}

func TestWhoGivesUpDoesNotWaitForCopies(t *testing.T) {
	d := begin(t, filepath.Join(place(t), "img"))
	write(t, work(d, "a"), "state")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := d.Publish(ctx, manifest); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// Each level would be a descriptor of the supervisor's.
func TestADeepDraftIsRemoved(t *testing.T) {
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	few := was
	few.Cur = 256
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &few); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
			t.Error(err)
		}
	}()
	dir := place(t)
	d := begin(t, filepath.Join(dir, "img"))
	top := work(d, "d")
	at, err := os.OpenRoot(filepath.Dir(top))
	if err != nil {
		t.Fatal(err)
	}
	for range 2000 {
		err := errors.Join(at.Mkdir("d", 0o700), at.WriteFile("f", nil, 0o600), at.Symlink("..", "l"))
		if err != nil {
			t.Fatal(err)
		}
		next, err := at.OpenRoot("d")
		if err != nil {
			t.Fatal(err)
		}
		_ = at.Close() // was for names alone
		at = next
	}
	_ = at.Close()
	// Nobody but root looks into such a one.
	if err := os.Chmod(top, 0); err != nil {
		t.Fatal(err)
	}
	if err := d.Discard(); err != nil {
		t.Error(err)
	}
	if got := names(t, dir); len(got) != 0 {
		t.Errorf("%v is left", got)
	}
}

// A manifest may come from anywhere, and is shown.
func TestAManifestDoesNotTurnTheTextAround(t *testing.T) {
	im := &Image{Manifest: Manifest{Runtime: "box", Program: "\u202eq", ProgramVersion: "\u202e1"}}
	if err := im.Fits("box", "p", "c"); err == nil || strings.ContainsRune(err.Error(), '\u202e') {
		t.Errorf("%q", err)
	}
}

// What belongs to another id is left with a way to remove it.
func TestWhatMayNotBeRemoved(t *testing.T) {
	for err, want := range map[error]string{nil: "", unix.EIO: "", unix.EACCES: "rm -r /i/draft"} {
		got := left("/i/draft", err)
		var e *Error
		if !errors.Is(got, err) || errors.As(got, &e) != (want != "") || e != nil && !strings.Contains(e.Hint, want) {
			t.Errorf("%v: %v", err, got)
		}
	}
}
