package testutil

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
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
		name := filepath.Base(filepath.Dir(main))
		if err := buildCommand(root, filepath.Join(dir, name), "./cmd/"+name, name == linksC); err != nil {
			return "", err
		}
	}
	if err := buildCommand(root, filepath.Join(dir, "nucleus-full"), "./cmd/nucleus", false, "-tags", "plugins"); err != nil {
		return "", err
	}
	if err := buildPlugins(root, filepath.Join(dir, "plugins")); err != nil {
		return "", err
	}
	return dir, buildExamples(root, filepath.Join(dir, "examples"))
}

// buildExamples makes the plugins of examples/plugins, as the Makefile does.
func buildExamples(root, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	module := filepath.Join(root, "examples", "plugins")
	mains, err := filepath.Glob(filepath.Join(module, "*", "main.go"))
	for _, main := range mains {
		name := filepath.Base(filepath.Dir(main))
		if err := buildCommand(module, filepath.Join(dir, name), "./"+name, false, "-tags", "grpcnotrace"); err != nil {
			return err
		}
	}
	return err
}

// buildPlugins makes the plugins of plugins/secrets, as the Makefile does.
func buildPlugins(root, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	module := filepath.Join(root, "plugins", "secrets")
	mains, err := filepath.Glob(filepath.Join(module, "cmd", "*", "main.go"))
	if err != nil {
		return err
	}
	for _, main := range mains {
		of := filepath.Dir(main)
		program := filepath.Base(of)
		if err := buildCommand(module, filepath.Join(dir, program), "./cmd/"+program, false, "-tags", "grpcnotrace"); err != nil {
			return err
		}
		// A program that is several plugins says which.
		names, err := os.ReadFile(filepath.Join(of, "names"))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		for _, name := range strings.Fields(string(names)) {
			if err := link(filepath.Join(dir, program), filepath.Join(dir, "nucleus-plugin-"+name)); err != nil {
				return err
			}
		}
	}
	return nil
}

// link replaces what is there.
func link(from, to string) error {
	fresh := to + ".new"
	if err := errors.Join(os.RemoveAll(fresh), os.Link(from, fresh), os.Rename(fresh, to)); err != nil {
		return err
	}
	_ = os.Remove(fresh) // rename(2) leaves it if both were the same file already
	return nil
}

// buildCommand replaces the executable by rename and only when it changed:
// another test process may be running it.
func buildCommand(module, to, what string, cgo bool, flags ...string) error {
	fresh := to + ".new"
	build := exec.Command("go", append(append([]string{"build", "-trimpath"}, flags...), "-o", fresh, what)...)
	build.Dir = module
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if cgo {
		build.Env = append(os.Environ(), "CGO_ENABLED=1")
	}
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("go build %s: %w\n%s", what, err, out)
	}
	old, oldErr := os.ReadFile(to)
	built, err := os.ReadFile(fresh)
	if err != nil {
		return err
	}
	if oldErr == nil && bytes.Equal(old, built) {
		return os.Remove(fresh)
	}
	return os.Rename(fresh, to)
}

// copyBinaries copies every file of the binaries' directory, with plugins
// below it, to a place that any user can reach.
func copyBinaries(t testing.TB, to string) {
	t.Helper()
	from := binaries(t)
	copies := map[uint64]string{} // by inode: one program with several names stays one file
	err := filepath.WalkDir(from, func(path string, entry os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		if entry.IsDir() {
			if rel == "vmtest" || rel == "test" {
				return filepath.SkipDir
			}
			return os.MkdirAll(filepath.Join(to, rel), 0o755)
		}
		if filepath.Dir(rel) == "tools" && entry.Name() != "runsc" {
			return nil // what builds the rest, and checks it
		}
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm()&0o111 == 0 {
			return err
		}
		inode := info.Sys().(*syscall.Stat_t).Ino
		if first, ok := copies[inode]; ok {
			return os.Link(first, filepath.Join(to, rel))
		}
		copies[inode] = filepath.Join(to, rel)
		return copyFile(path, filepath.Join(to, rel))
	})
	if err != nil {
		t.Fatalf("copying the binaries under test: %v", err)
	}
}

// copyFile makes an executable that is a file of its own: it will belong to somebody
// else. None is small enough to be read as a whole for that.
func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		_ = out.Close()
		return err
	}
	return out.Close()
}

// BinaryDir returns the directory of the binaries under test, for what has no
// test to fail: TestMain, and the examples that it prepares.
func BinaryDir() (string, error) {
	if dir := os.Getenv("NUCLEUS_BIN"); dir != "" {
		return dir, nil
	}
	return builtOnce()
}
