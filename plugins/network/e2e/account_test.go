package e2e

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/netlab"
)

// account is who runs nucleus: with a home, a runtime directory and copies of the
// binaries, which go away with the test. As testutil.Account of the main module, which
// a plugin's module does not see.
type account struct {
	name            string
	uid, gid        int
	dir             string // world-readable, and holds the rest
	home, run, bins string
}

func root(t *testing.T) *account {
	t.Helper()
	return (&account{name: "root"}).settle(t)
}

// ordinary is the user whom NUCLEUS_TEST_USER names, else the one that the tests of the
// main module make.
func ordinary(t *testing.T) *account {
	t.Helper()
	name := os.Getenv("NUCLEUS_TEST_USER")
	if name == "" {
		name = "nucleus-test"
	}
	u, err := user.Lookup(name)
	var unknown user.UnknownUserError
	if errors.As(err, &unknown) {
		// Networks need no subordinate ids.
		out, err := exec.Command("/usr/sbin/useradd", "--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent",
			"--shell", "/bin/sh", "--comment", "Nucleus tests", name).CombinedOutput()
		if err != nil {
			netlab.Skip(t, "test-user", "there is no user "+name+", and none can be made: "+string(out))
		}
		u, err = user.Lookup(name)
		if err != nil {
			t.Fatal(err)
		}
	} else if err != nil {
		t.Fatal(err)
	}
	uid, err1 := strconv.Atoi(u.Uid)
	gid, err2 := strconv.Atoi(u.Gid)
	if err := errors.Join(err1, err2); err != nil || uid == 0 {
		t.Fatalf("the test user %q has uid %s: %v", name, u.Uid, err)
	}
	return (&account{name: name, uid: uid, gid: gid}).settle(t)
}

// settle makes the directories, not below t.TempDir: its parent is closed to others.
func (a *account) settle(t *testing.T) *account {
	t.Helper()
	dir, err := os.MkdirTemp("", "nucleus-net-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("removing the account's directories: %v", err)
		}
	})
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	a.dir, a.home, a.run, a.bins = dir, filepath.Join(dir, "home"), filepath.Join(dir, "run"), filepath.Join(dir, "bin")
	for _, private := range []string{a.home, a.run} {
		if err := errors.Join(os.Mkdir(private, 0o700), os.Chown(private, a.uid, a.gid)); err != nil {
			t.Fatal(err)
		}
	}
	copyBinaries(t, a.bins)
	return a
}

func (a *account) env() []string {
	return []string{
		"PATH=" + a.bins + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=" + a.home, "USER=" + a.name, "LOGNAME=" + a.name, "LANG=C.UTF-8", "TMPDIR=" + a.home, "XDG_RUNTIME_DIR=" + a.run,
	}
}

// copyBinaries copies what make built to where any user can read it.
func copyBinaries(t *testing.T, to string) {
	t.Helper()
	from := binaries()
	err := filepath.WalkDir(from, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		if entry.IsDir() {
			if rel != "." && rel != "plugins" {
				return filepath.SkipDir
			}
			return os.MkdirAll(filepath.Join(to, rel), 0o755)
		}
		info, err := entry.Info()
		if err != nil || info.Mode().Perm()&0o111 == 0 {
			return err
		}
		if filepath.Dir(rel) == "plugins" && !isUsed(filepath.Base(rel)) {
			return nil
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, rel), data, 0o755)
	})
	if err != nil {
		t.Fatalf("copying the binaries under test: %v (make build?)", err)
	}
}

func isUsed(plugin string) bool {
	return slices.Contains([]string{"nucleus-plugin-netbridge", "nucleus-plugin-netuserspace", "nucleus-plugin-gvisor"}, plugin)
}

// lendRunsc puts the runsc of the checkout where the copied plugin looks for it.
func (a *account) lendRunsc(t *testing.T) {
	t.Helper()
	built, err := filepath.EvalSymlinks(filepath.Join(binaries(), "tools", "runsc"))
	if err != nil {
		t.Fatalf("%v (make deps-test?)", err)
	}
	to := filepath.Join(a.bins, "tools", "runsc")
	if err := os.Mkdir(filepath.Dir(to), 0o755); err != nil {
		t.Fatal(err)
	}
	if os.Link(built, to) == nil {
		return // of 100 MB no copy, if it can be helped
	}
	data, err := os.ReadFile(built)
	if err == nil {
		err = os.WriteFile(to, data, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func binaries() string {
	if dir := os.Getenv("NUCLEUS_BIN"); dir != "" {
		return dir
	}
	return "../../../bin"
}

// exitCode is that of a command, -n if signal n ended it.
func exitCode(t *testing.T, cmd *exec.Cmd, err error) int {
	t.Helper()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s: %v", cmd, err)
	}
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return -int(ws.Signal())
	}
	return cmd.ProcessState.ExitCode()
}
