package trusted

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

// tree makes a directory of programs and directories by name and mode; a name with
// "->" is a link.
func tree(t *testing.T, entries map[string]os.FileMode) string {
	t.Helper()
	dir := t.TempDir()
	for name, mode := range entries {
		link, target, is := strings.Cut(name, "->")
		path := filepath.Join(dir, link)
		var err error
		switch {
		case is:
			err = os.Symlink(target, path)
		case mode.IsDir():
			if err = os.MkdirAll(path, 0o755); err == nil {
				err = os.WriteFile(filepath.Join(path, "p"), []byte("#!/bin/sh\n"), 0o755)
			}
		default:
			err = os.WriteFile(path, []byte("#!/bin/sh\n"), 0o600)
		}
		if err == nil && !is {
			err = os.Chmod(path, mode&^os.ModeDir)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestExecutable(t *testing.T) {
	dir := tree(t, map[string]os.FileMode{
		"good": 0o755, "group": 0o775, "other": 0o757, "plain": 0o644, "run-only": 0o711,
		"open": os.ModeDir | 0o777, "sticky": os.ModeDir | os.ModeSticky | 0o777, "dir": os.ModeDir | 0o755,
		"link->dir/p": 0, "up->dir/../link": 0, "loop->loop": 0, "away->/proc/self/exe": 0, "into-open->open/p": 0,
	})
	for name, want := range map[string]string{
		"good": "", "run-only": "", "sticky/p": "", "dir/p": "", "link": "", "up": "",
		"group": "others can write to it (mode 0775)", "other": "others can write to it (mode 0757)",
		"open/p": "open: others can write to it (mode 0777)", "into-open": "open: others can write to it (mode 0777)",
		"plain": "permission denied", "dir": "not a regular file", "loop": "too many levels of symbolic links",
		"missing": "no such file or directory", "good/x": "not a directory",
	} {
		f, err := Executable(filepath.Join(dir, name))
		if err == nil {
			_ = f.Close()
		}
		if got := message(err); want == "" && got != "" || !strings.HasSuffix(got, want) {
			t.Errorf("%s: error %q, want %q", name, got, want)
		}
	}
}

func message(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// Nothing may come between the look at a file and its use: the descriptor is that
// of the file that was looked at.
func TestExecutableIsTheFileThatWasOpened(t *testing.T) {
	dir := tree(t, map[string]os.FileMode{"good": 0o755})
	f, err := Executable(filepath.Join(dir, "good"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := os.Rename(filepath.Join(dir, "good"), filepath.Join(dir, "gone")); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 9)
	if _, err := f.ReadAt(b, 0); err != nil || string(b) != "#!/bin/sh" {
		t.Errorf("read %q, %v", b, err)
	}
	if flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("descriptor flags %d, %v: want close-on-exec", flags, err)
	}
}

func TestDirTakesNoLinkAndNoWayOut(t *testing.T) {
	dir := tree(t, map[string]os.FileMode{"good": 0o755, "group": 0o775, "link->good": 0, "sub": os.ModeDir | 0o755})
	d, err := OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	f, err := d.Executable("good")
	if err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	if _, err := d.Executable("link"); err == nil || !strings.HasSuffix(err.Error(), "link: not a regular file") {
		t.Errorf("link: error %v", err)
	}
	for name, want := range map[string]error{"../" + filepath.Base(dir) + "/good": unix.EXDEV, "missing": unix.ENOENT} {
		if _, err := d.Executable(name); !errors.Is(err, want) {
			t.Errorf("%s: error %v, want %v", name, err, want)
		}
	}
	var te *Error
	if _, err := d.Executable("group"); !errors.As(err, &te) || !strings.Contains(te.Remedy(), "chmod go-w "+filepath.Join(dir, "group")) {
		t.Errorf("group: error %v", err)
	}
	if err := os.Chmod(dir, 0o775); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenDir(dir); !errors.As(err, &te) {
		t.Errorf("a directory that others write to: error %v", err)
	}
}

func TestAnotherUsersFile(t *testing.T) {
	testutil.Needs(t, testutil.Root)
	dir := tree(t, map[string]os.FileMode{"good": 0o755, "theirs": 0o755, "link->good": 0})
	for _, name := range []string{"theirs", "link"} {
		if err := os.Lchown(filepath.Join(dir, name), 12345, 12345); err != nil {
			t.Fatal(err)
		}
		if _, err := Executable(filepath.Join(dir, name)); err == nil || !strings.HasSuffix(err.Error(), name+": belongs to user 12345") {
			t.Errorf("%s: error %v", name, err)
		}
		if _, err := File(filepath.Join(dir, name)); err == nil {
			t.Errorf("%s: opened for reading", name)
		}
	}
}
