package testutil

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// linksC names the one command that cannot be built without cgo.
const linksC = "nucleus-seccomp"

// Binary returns the path of one of the project's commands: what make built
// when NUCLEUS_BIN names its directory, else built now, once per test process.
func Binary(t testing.TB, name string) string {
	t.Helper()
	dir := binaries(t)
	path := filepath.Join(dir, name)
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("the binary under test: %v (make build?)", err)
	}
	return path
}

func binaries(t testing.TB) string {
	t.Helper()
	if dir := os.Getenv("NUCLEUS_BIN"); dir != "" {
		return dir
	}
	dir, err := builtOnce()
	if err != nil {
		t.Fatalf("building the binaries under test: %v", err)
	}
	return dir
}

var builtOnce = sync.OnceValues(buildBinaries)

// buildBinaries keeps its results in the user's cache, so that the test
// processes of many packages share one build.
func buildBinaries() (string, error) {
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "nucleus-test", "bin")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	lock, err := os.OpenFile(filepath.Join(dir, ".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return "", os.NewSyscallError("flock", err)
	}
	mains, err := filepath.Glob(filepath.Join(root, "cmd", "*", "main.go"))
	if err != nil {
		return "", err
	}
	for _, main := range mains {
		if err := buildCommand(root, dir, filepath.Base(filepath.Dir(main))); err != nil {
			return "", err
		}
	}
	return dir, nil
}

// buildCommand replaces the executable by rename and only when it changed:
// another test process may be running it.
func buildCommand(root, dir, name string) error {
	fresh := filepath.Join(dir, name+".new")
	build := exec.Command("go", "build", "-trimpath", "-o", fresh, "./cmd/"+name)
	build.Dir = root
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if name == linksC {
		build.Env = append(os.Environ(), "CGO_ENABLED=1")
	}
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("go build ./cmd/%s: %w\n%s", name, err, out)
	}
	old, oldErr := os.ReadFile(filepath.Join(dir, name))
	built, err := os.ReadFile(fresh)
	if err != nil {
		return err
	}
	if oldErr == nil && bytes.Equal(old, built) {
		return os.Remove(fresh)
	}
	return os.Rename(fresh, filepath.Join(dir, name))
}

// copyBinaries copies every file of the binaries' directory, with plugins
// below it, to a place that any user can reach.
func copyBinaries(t testing.TB, to string) {
	t.Helper()
	from := binaries(t)
	err := filepath.WalkDir(from, func(path string, entry os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		if entry.IsDir() {
			if rel == "tools" || rel == "vmtest" || rel == "test" {
				return filepath.SkipDir
			}
			return os.MkdirAll(filepath.Join(to, rel), 0o755)
		}
		info, err := entry.Info()
		if err != nil || info.Mode().Perm()&0o111 == 0 {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, rel), data, 0o755)
	})
	if err != nil {
		t.Fatalf("copying the binaries under test: %v", err)
	}
}

// BinaryDir returns the directory of the binaries under test, for what has no
// test to fail: TestMain, and the examples that it prepares.
func BinaryDir() (string, error) {
	if dir := os.Getenv("NUCLEUS_BIN"); dir != "" {
		return dir, nil
	}
	return builtOnce()
}
