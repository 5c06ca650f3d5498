package state

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func mkfifo(path string) error { return unix.Mkfifo(path, 0o600) }

func open(t *testing.T, path string) *Root {
	t.Helper()
	r, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

func create(t *testing.T, r *Root, id, name string) *Dir {
	t.Helper()
	d, err := r.Create(id, name, false)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// files lists what is in a state root beside the root itself.
func files(t *testing.T, r *Root) []string {
	t.Helper()
	var out []string
	for _, dir := range []string{"", "sandboxes", "names"} {
		entries, err := os.ReadDir(filepath.Join(r.Path(), dir))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if dir != "" || e.Name() != "sandboxes" && e.Name() != "names" {
				out = append(out, dir+"/"+e.Name())
			}
		}
	}
	return out
}

func TestDefaultRoot(t *testing.T) {
	t.Setenv(EnvRoot, "/x/y")
	if got := DefaultRoot(); got != "/x/y" {
		t.Errorf("%s is not obeyed: %q", EnvRoot, got)
	}
	t.Setenv(EnvRoot, "")
	t.Setenv("XDG_RUNTIME_DIR", "relative")
	want := fmt.Sprintf("/tmp/nucleus-%d", os.Geteuid())
	if os.Geteuid() == 0 {
		want = "/run/nucleus"
	}
	if got := DefaultRoot(); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if os.Geteuid() != 0 {
		t.Setenv("XDG_RUNTIME_DIR", "/run/user/7")
		if got := DefaultRoot(); got != "/run/user/7/nucleus" {
			t.Errorf("XDG_RUNTIME_DIR is not obeyed: %q", got)
		}
	}
}

// In a shared /tmp somebody may have been there before us.
func TestOpenRefusesWhatOthersControl(t *testing.T) {
	for _, test := range []struct {
		what    string
		make    func(path string) error
		wantErr string
	}{
		{"missing, with parents", func(string) error { return nil }, ""},
		{"made before", func(p string) error { return os.Mkdir(p, 0o700) }, ""},
		{"open to others", func(p string) error { return errors.Join(os.Mkdir(p, 0o700), os.Chmod(p, 0o755)) }, "mode 0700"},
		{"open to the group alone", func(p string) error { return errors.Join(os.Mkdir(p, 0o700), os.Chmod(p, 0o710)) }, "mode 0700"},
		{"a link to a good one", func(p string) error { return errors.Join(os.Mkdir(p+"2", 0o700), os.Symlink(p+"2", p)) }, "open"},
		{"a file", func(p string) error { return os.WriteFile(p, nil, 0o600) }, "open"},
		{"another's", func(p string) error {
			if os.Geteuid() != 0 {
				return os.Symlink("/", p) // an ordinary user cannot give a directory away
			}
			return errors.Join(os.Mkdir(p, 0o700), os.Chown(p, 12345, 12345))
		}, "state root"},
	} {
		t.Run(test.what, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "root")
			if test.what == "missing, with parents" {
				path = filepath.Join(path, "a", "b")
			}
			if err := test.make(path); err != nil {
				t.Fatal(err)
			}
			r, err := Open(path)
			if test.wantErr == "" {
				if err != nil {
					t.Fatal(err)
				}
				_ = r.Close()
				return
			}
			if err == nil || !strings.Contains(err.Error(), test.wantErr) {
				t.Errorf("error %v, want %q", err, test.wantErr)
			}
		})
	}
	if _, err := Open("relative"); err == nil {
		t.Error("a relative path was taken")
	}
}

func TestNames(t *testing.T) {
	r := open(t, filepath.Join(t.TempDir(), "root"))
	first := create(t, r, NewID(), "web")
	id := NewID()
	second := create(t, r, id, "web")
	if second.Name != "web-"+id[:8] {
		t.Errorf("the second is named %q, want a suffix from its id", second.Name)
	}
	_, err := r.Create(NewID(), "web", true)
	var taken *NameTakenError
	if !errors.As(err, &taken) || taken.ID != first.ID || taken.Name != "web" {
		t.Errorf("an exact name that is taken: %v, want NameTakenError of %s", err, first.ID)
	}
	if err := first.Remove(); err != nil {
		t.Fatal(err)
	}
	third, err := r.Create(NewID(), "web", true)
	if err != nil {
		t.Fatalf("the name of a sandbox that is gone: %v", err)
	}
	for _, d := range []*Dir{second, third} {
		if err := d.Remove(); err != nil {
			t.Fatal(err)
		}
	}
	if left := files(t, r); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// A crash between two steps of Create or Remove leaves a name without sandbox.
func TestNameWithoutSandbox(t *testing.T) {
	for _, target := range []string{NewID(), "../../etc", "x"} {
		r := open(t, filepath.Join(t.TempDir(), "root"))
		if err := os.Symlink(target, r.namePath("web")); err != nil {
			t.Fatal(err)
		}
		d, err := r.Create(NewID(), "web", true)
		if err != nil {
			t.Errorf("name that points to %q: %v", target, err)
			continue
		}
		if err := d.Remove(); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, r.namePath("web")); err != nil {
			t.Fatal(err)
		}
		if err := r.Sweep(); err != nil {
			t.Error(err)
		}
		if left := files(t, r); len(left) > 0 {
			t.Errorf("after Sweep: %q", left)
		}
	}
}

func TestFailedCreateLeavesNothing(t *testing.T) {
	r := open(t, filepath.Join(t.TempDir(), "root"))
	id := NewID()
	if err := os.WriteFile(filepath.Join(r.Path(), "sandboxes", id), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Create(id, "web", false); err == nil {
		t.Fatal("a sandbox was made where a file is")
	}
	if left := files(t, r); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

func TestDeadAreThoseWithoutLock(t *testing.T) {
	r := open(t, filepath.Join(t.TempDir(), "root"))
	live, dead := create(t, r, NewID(), "live"), create(t, r, NewID(), "dead")
	if err := dead.Journal.Intent("a", nil); err != nil {
		t.Fatal(err)
	}
	if err := dead.Release(); err != nil {
		t.Fatal(err)
	}
	// As another process would: by a root of its own.
	other := open(t, r.Path())
	got, err := other.Dead(true)
	if err != nil || len(got) != 1 || got[0].ID != dead.ID || got[0].Name != "dead" {
		t.Fatalf("dead: %v, %v, want only %s", got, err, dead.ID)
	}
	if again, err := r.Dead(true); err != nil || len(again) != 0 {
		t.Errorf("a second collector got %d of what the first holds (%v)", len(again), err)
	}
	if err := got[0].Remove(); err != nil {
		t.Fatal(err)
	}
	if err := live.Remove(); err != nil {
		t.Fatal(err)
	}
	if left := files(t, r); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// A crash right after mkdir leaves an empty directory, one in Remove any part.
func TestDeadInPart(t *testing.T) {
	r := open(t, filepath.Join(t.TempDir(), "root"))
	id := NewID()
	if err := os.Mkdir(filepath.Join(r.Path(), "sandboxes", id), 0o700); err != nil {
		t.Fatal(err)
	}
	dead, err := r.Dead(true)
	if err != nil || len(dead) != 1 {
		t.Fatalf("%d dead, %v, want the empty one", len(dead), err)
	}
	if rs, err := dead[0].Pending(); err != nil || len(rs) != 0 {
		t.Errorf("pending: %v, %v, want none", rs, err)
	}
	if err := dead[0].Remove(); err != nil {
		t.Error(err)
	}
}

func TestOneBadSandboxHindersNoOther(t *testing.T) {
	for _, test := range []struct {
		what string
		make func(r *Root, id string) error
		said string
	}{
		{"a file", func(r *Root, _ string) error {
			return os.WriteFile(filepath.Join(r.Path(), "sandboxes", "notes.txt"), nil, 0o600)
		}, "notes.txt"},
		{"a file with an id for a name", func(r *Root, id string) error {
			return os.WriteFile(filepath.Join(r.Path(), "sandboxes", id), nil, 0o600)
		}, "not a sandbox"},
		{"a link to a directory", func(r *Root, id string) error {
			return os.Symlink("/", filepath.Join(r.Path(), "sandboxes", id))
		}, "not a sandbox"},
		{"a journal that is a directory", func(r *Root, id string) error {
			return os.MkdirAll(filepath.Join(r.Path(), "sandboxes", id, journalName), 0o700)
		}, "journal"},
	} {
		t.Run(test.what, func(t *testing.T) {
			r := open(t, filepath.Join(t.TempDir(), "root"))
			var ids []string
			for range 3 {
				d := create(t, r, NewID(), "x")
				ids = append(ids, d.ID)
				if err := d.Release(); err != nil {
					t.Fatal(err)
				}
			}
			if err := test.make(r, NewID()); err != nil {
				t.Fatal(err)
			}
			before := len(files(t, r))
			dead, err := r.Dead(true)
			if err == nil || !strings.Contains(err.Error(), test.said) {
				t.Errorf("error %v, want %q", err, test.said)
			}
			if len(dead) != len(ids) {
				t.Errorf("%d dead sandboxes, want %d", len(dead), len(ids))
			}
			if after := len(files(t, r)); after != before {
				t.Errorf("%d files before, %d after: it was not left alone", before, after)
			}
			for _, d := range dead {
				_ = d.Release()
			}
		})
	}
}

func TestCreateAndCollectSideBySide(t *testing.T) {
	path := filepath.Join(t.TempDir(), "root")
	var wg sync.WaitGroup
	for range 8 {
		r := open(t, path)
		wg.Go(func() {
			for range 50 {
				d, err := r.Create(NewID(), "web", false)
				if err != nil {
					t.Error(err)
					return
				}
				dead, err := r.Dead(true)
				if err != nil || len(dead) > 0 {
					t.Errorf("%d living sandboxes were taken for dead (%v)", len(dead), err)
				}
				if err := errors.Join(r.Sweep(), d.Remove()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if left := files(t, open(t, path)); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

func TestWriteJSON(t *testing.T) {
	r := open(t, filepath.Join(t.TempDir(), "root"))
	d := create(t, r, NewID(), "x")
	for _, v := range []any{map[string]int{"a": 1}, []string{"b"}} {
		if err := d.WriteJSON("state.json", v); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(filepath.Join(d.Path, "state.json"))
	if err != nil || string(b) != "[\"b\"]\n" {
		t.Errorf("state.json: %q, %v", b, err)
	}
	st, err := os.Stat(filepath.Join(d.Path, "state.json"))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v, want 0600", st.Mode(), err)
	}
	if err := d.WriteJSON("bad", func() {}); err == nil {
		t.Error("a function was written as JSON")
	}
}

func TestNamesThatAreNone(t *testing.T) {
	r, err := Open(filepath.Join(t.TempDir(), "state"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"", ".", "..", "../../x", "a/b", "-x", "A", "a\x1b[2J", "a\n", "a.b", strings.Repeat("a", 64)} {
		_, err := r.Create(NewID(), name, true)
		var ne *NameError
		if !errors.As(err, &ne) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// TestStoppedHolderOfTheRoot: a process that was stopped with the lock of the
// state root must not hang all others.
func TestStoppedHolderOfTheRoot(t *testing.T) {
	r, err := Open(filepath.Join(t.TempDir(), "state"))
	if err != nil {
		t.Fatal(err)
	}
	held, release := make(chan struct{}), make(chan struct{})
	done := make(chan error, 1)
	go func() {
		done <- r.locked(func() error { close(held); <-release; return nil })
	}()
	<-held
	_, err = r.Create(NewID(), "second", false)
	var busy *BusyError
	if !errors.As(err, &busy) || busy.Path != r.Path() {
		t.Errorf("with the lock held: %v", err)
	}
	close(release)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	d, err := r.Create(NewID(), "second", true)
	if err != nil {
		t.Fatalf("after it was released: %v", err)
	}
	if err := d.Remove(); err != nil {
		t.Error(err)
	}
}
