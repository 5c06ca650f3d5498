package pluginhost

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func dirsHost(t *testing.T) (*Host, string) {
	t.Helper()
	base, err := os.MkdirTemp("", "ph")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(base) })
	parent := filepath.Join(base, "run")
	return New(Options{RunDirs: []string{filepath.Join(base, strings.Repeat("long", 20)), parent}}), parent
}

// A host removes what killed hosts have left, and nothing that is in use or not a
// plugin's.
func TestSocketDirSweeps(t *testing.T) {
	h, parent := dirsHost(t)
	used, lock, err := h.socketDir()
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	stale, other, link := filepath.Join(parent, "0123abcd"), filepath.Join(parent, "other"), filepath.Join(parent, "aaaaaaaa")
	for _, d := range []string{stale, other} {
		if err := os.MkdirAll(filepath.Join(d, "plugin-dir1"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(other, link); err != nil {
		t.Fatal(err)
	}
	second, lock2, err := h.socketDir()
	if err != nil {
		t.Fatal(err)
	}
	defer lock2.Close()
	for path, want := range map[string]bool{used: true, second: true, other: true, filepath.Join(other, "plugin-dir1"): true, link: true, stale: false} {
		if _, err := os.Lstat(path); (err == nil) != want {
			t.Errorf("%s: there %v, want %v", path, err == nil, want)
		}
	}
}

// Hosts that start at the same time do not take each other's directories away.
func TestSocketDirsBesideEachOther(t *testing.T) {
	h, _ := dirsHost(t)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 20 {
				dir, lock, err := h.socketDir()
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := os.Stat(dir); err != nil {
					t.Error(err)
				}
				_ = os.RemoveAll(dir)
				_ = lock.Close()
			}
		})
	}
	wg.Wait()
}

// Where others could write, no socket is made; a umask is no obstacle.
func TestSocketDirIsOurs(t *testing.T) {
	h, parent := dirsHost(t)
	old := unix.Umask(0o077)
	dir, lock, err := h.socketDir()
	unix.Umask(old)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = os.RemoveAll(dir), lock.Close()
	if st, err := os.Stat(parent); err != nil || os.Geteuid() == 0 && st.Mode().Perm() != 0o711 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	if err := os.Chmod(parent, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, _, err := h.socketDir(); err == nil || !strings.Contains(err.Error(), "only the caller can write") {
		t.Errorf("error %v", err)
	}
}
