package main

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/initproto"
)

// inDir gives a builder whose root is a directory, and whether what is there is its own.
func inDir(t *testing.T, own bool) (*builder, string) {
	t.Helper()
	dir := t.TempDir()
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	b := &builder{root: fd, own: map[uint64]bool{}, uid: uint32(unix.Geteuid()), gid: uint32(unix.Getegid())}
	t.Cleanup(func() { b.forget("/"); _ = unix.Close(fd) })
	if own {
		if err := b.adopt(fd); err != nil {
			t.Fatal(err)
		}
	}
	old := unix.Umask(0) // as init has it
	t.Cleanup(func() { unix.Umask(old) })
	return b, dir
}

func op(target string, mode uint32) *initproto.Op {
	return &initproto.Op{Target: target, Mode: mode, UID: uint32(unix.Geteuid()), GID: uint32(unix.Getegid()), FD: -1}
}

func TestWhatIsMadeHasExactlyItsMode(t *testing.T) {
	b, dir := inDir(t, true)
	for path, mode := range map[string]uint32{"/a/b/plain": 0o751, "/a/sticky": 0o1777, "/a/group": 0o2750, "/a/none": 0} {
		if err := b.mkdir(op(path, mode)); err != nil {
			t.Fatal(err)
		}
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(dir, path), &st); err != nil || st.Mode&0o7777 != mode {
			t.Errorf("%s: mode %o, %v, want %o", path, st.Mode&0o7777, err, mode)
		}
	}
	// Again, over what is there.
	if err := b.mkdir(op("/a/sticky", 0o700)); err != nil {
		t.Fatal(err)
	}
	for path, mode := range map[string]uint32{"/a/file": 0o640, "/a/suid": 0o4711, "/a/group/file": 0o604} {
		o := op(path, mode)
		o.Data = "text"
		if err := b.file(o); err != nil {
			t.Fatal(err)
		}
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(dir, path), &st); err != nil || st.Mode&0o7777 != mode || st.Gid != o.GID {
			t.Errorf("%s: mode %o, group %d, %v, want %o", path, st.Mode&0o7777, st.Gid, err, mode)
		}
		if text, err := os.ReadFile(filepath.Join(dir, path)); err != nil || string(text) != "text" {
			t.Errorf("%s: %q, %v", path, text, err)
		}
	}
	if st, err := os.Stat(filepath.Join(dir, "a/sticky")); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("the mode of what was there before: %v, %v", st, err)
	}
}

func TestNothingIsMadeOnTheHost(t *testing.T) {
	b, dir := inDir(t, false)
	for what, err := range map[string]error{
		"directory": b.mkdir(op("/x", 0o755)), "file": b.file(op("/x", 0o644)), "link": b.symlink(op("/x", 0)), "parent": b.file(op("/x/y", 0o644)),
		"mount point": b.attach(-1, op("/x", 0), false), "file to mount on": b.attach(-1, op("/x", 0), true),
	} {
		if !errors.Is(err, unix.ENOENT) {
			t.Errorf("%s: %v, want ENOENT", what, err)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("made: %v, %v", entries, err)
	}
}

// Whoever can write to a directory while a sandbox starts may put links there.
func TestNoLinkIsFollowed(t *testing.T) {
	for _, own := range []bool{true, false} {
		b, dir := inDir(t, own)
		other := t.TempDir()
		for name, to := range map[string]string{"dir": other, "dangling": filepath.Join(other, "new")} {
			if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
		inRoot := op("/copy", 0)
		inRoot.Source, inRoot.Flags = "/dir", initproto.FlagInRoot
		for what, err := range map[string]error{
			"through a link": b.mkdir(op("/dir/x", 0o755)), "a file through a link": b.file(op("/dir/x", 0o644)), "a mount through a link": b.attach(-1, op("/dir/x", 0), false),
			"a mask": b.mask(op("/dir", 0)), "attributes": b.attr(op("/dir", 0)), "removal through a link": b.remove(op("/dir/x", 0)),
			"a host's device": func() error { _, err := b.fromHost(filepath.Join(dir, "dir", "null"), 0); return err }(),
		} {
			if !errors.Is(err, unix.ELOOP) {
				t.Errorf("%s: %v, want ELOOP", what, err)
			}
		}
		if err := b.file(op("/dangling", 0o644)); err == nil {
			t.Error("a file was made behind a link")
		}
		if os.Geteuid() == 0 { // a clone of a mount needs CAP_SYS_ADMIN
			if err := b.bind(inRoot); !errors.Is(err, unix.ELOOP) {
				t.Errorf("a source: %v, want ELOOP", err)
			}
			if err := b.readOnly(op("/dir", 0)); !errors.Is(err, unix.ELOOP) {
				t.Errorf("read-only: %v, want ELOOP", err)
			}
		}
		if entries, err := os.ReadDir(other); err != nil || len(entries) != 0 {
			t.Errorf("behind the link: %v, %v", entries, err)
		}
	}
}

func TestForgottenAreThePathAndWhatIsBelow(t *testing.T) {
	b, _ := inDir(t, true)
	for _, path := range []string{"/dev/pts/x", "/devices/x", "/proc/x"} {
		if err := b.mkdir(op(path, 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := b.directory("/dev", false); err != nil {
		t.Fatal(err)
	}
	b.forget("/dev")
	var held []string
	for _, d := range b.held {
		held = append(held, d.path)
	}
	if want := []string{"/", "/devices", "/proc"}; !slices.Equal(held, want) {
		t.Errorf("held %q, want %q", held, want)
	}
}

func TestFewDirectoriesAreHeld(t *testing.T) {
	b, _ := inDir(t, true)
	before, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 * maxHeld {
		if err := b.mkdir(op("/d"+string(rune('0'+i))+"/x", 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	after, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	if n := len(after) - len(before); n > maxHeld {
		t.Errorf("%d descriptors are open", n)
	}
}
