package testutil

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Account is who runs the binaries in a test: with a home, a runtime directory
// and copies of the binaries that are its own and go away with the test.
type Account struct {
	Name     string
	UID, GID int
	// Dir is world-readable and holds the rest; put fixtures below it.
	Dir string
	// Home and RuntimeDir (0700) belong to the account.
	Home, RuntimeDir string
	// Bin holds the account's copies of the binaries.
	Bin string

	// credential is nil for the identity of the test process itself.
	credential *syscall.Credential
}

const (
	testUserName  = "nucleus-test"
	plainUserName = "nucleus-test-plain"
)

// Self is the identity that the tests run as.
func Self(t testing.TB) *Account {
	t.Helper()
	self, err := current()
	if err != nil {
		t.Fatalf("looking up the current user: %v", err)
	}
	return self.settle(t)
}

// User is an ordinary user with subordinate id ranges. As root that is the
// user in NUCLEUS_TEST_USER, else "nucleus-test", made if it is missing; as an
// ordinary user it is that user, and the test needs SubID.
func User(t testing.TB) *Account {
	t.Helper()
	if os.Geteuid() != 0 {
		Needs(t, SubID)
		return Self(t)
	}
	name := os.Getenv("NUCLEUS_TEST_USER")
	if name == "" {
		name = testUserName
		ensureUser(t, name, true)
	}
	return become(t, name)
}

// PlainUser is an ordinary user with no privilege set-up at all: only its own
// id can be mapped. As an ordinary user that has subordinate ids, the test is skipped.
func PlainUser(t testing.TB) *Account {
	t.Helper()
	if os.Geteuid() == 0 {
		ensureUser(t, plainUserName, false)
		return become(t, plainUserName)
	}
	Needs(t, Requirement{"no-subid", func() Finding {
		self, err := current()
		if err != nil {
			return unknown("looking up the current user: %v", err)
		}
		_, count, err := subordinateRange("/etc/subuid", self.Name, self.UID)
		if err != nil {
			return unknown("reading /etc/subuid: %v", err)
		}
		if count > 0 {
			return missing("%s has subordinate ids", self.Name)
		}
		return available()
	}})
	return Self(t)
}

// Env is a clean environment: nothing of the test process gets in.
func (a *Account) Env() []string {
	return []string{
		"PATH=" + a.Bin + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=" + a.Home,
		"USER=" + a.Name,
		"LOGNAME=" + a.Name,
		"LANG=C.UTF-8",
		"TMPDIR=" + a.Home,
		"XDG_RUNTIME_DIR=" + a.RuntimeDir,
	}
}

// Command prepares a program to run as the account, in its home, with a clean
// environment. A name without a slash is looked up among the binaries first.
func (a *Account) Command(name string, args ...string) *exec.Cmd {
	return a.CommandContext(context.Background(), name, args...)
}

// CommandContext is Command bound to a context.
func (a *Account) CommandContext(ctx context.Context, name string, args ...string) *exec.Cmd {
	if !strings.Contains(name, "/") {
		if _, err := os.Stat(filepath.Join(a.Bin, name)); err == nil {
			name = filepath.Join(a.Bin, name)
		}
	}
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = a.Home
	cmd.Env = a.Env()
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: a.credential}
	return cmd
}

// Own gives a tree to the account, links themselves and not what they point to.
func (a *Account) Own(t testing.TB, root string) {
	t.Helper()
	if a.credential == nil {
		return
	}
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, a.UID, a.GID)
	})
	if err != nil {
		t.Fatalf("giving %s to %s: %v", root, a.Name, err)
	}
}

// settle makes the account's directories. t.TempDir would not do: its parent
// is closed to other users.
func (a *Account) settle(t testing.TB) *Account {
	t.Helper()
	dir, err := os.MkdirTemp("", "nucleus-test-")
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
	a.Dir = dir
	a.Bin = filepath.Join(dir, "bin")
	a.Home = filepath.Join(dir, "home")
	a.RuntimeDir = filepath.Join(dir, "run")
	for _, private := range []string{a.Home, a.RuntimeDir} {
		if err := os.Mkdir(private, 0o700); err != nil {
			t.Fatal(err)
		}
		a.Own(t, private)
	}
	copyBinaries(t, a.Bin)
	return a
}

func current() (*Account, error) {
	u, err := user.LookupId(strconv.Itoa(os.Geteuid()))
	if err != nil {
		return nil, err
	}
	return account(u)
}

func account(u *user.User) (*Account, error) {
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.Atoi(u.Gid)
	if err != nil {
		return nil, err
	}
	return &Account{Name: u.Username, UID: uid, GID: gid}, nil
}

func become(t testing.TB, name string) *Account {
	t.Helper()
	u, err := user.Lookup(name)
	if err != nil {
		t.Fatalf("looking up the test user: %v", err)
	}
	a, err := account(u)
	if err != nil {
		t.Fatalf("user %q: %v", name, err)
	}
	if a.UID == 0 {
		t.Fatalf("the test user %q is root", name)
	}
	a.credential = &syscall.Credential{Uid: uint32(a.UID), Gid: uint32(a.GID), Groups: []uint32{uint32(a.GID)}}
	return a.settle(t)
}

// ensureUser makes the user under a lock, since packages are tested side by side.
func ensureUser(t testing.TB, name string, subordinate bool) {
	t.Helper()
	lock, err := os.Open("/etc")
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(os.NewSyscallError("flock", err))
	}
	_, err = user.Lookup(name)
	var unknownUser user.UnknownUserError
	switch {
	case errors.As(err, &unknownUser):
		// A system user is one to whom useradd gives no subordinate ids.
		runAdmin(t, "useradd", "--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent",
			"--shell", "/bin/sh", "--comment", "Nucleus tests", name)
	case err != nil:
		t.Fatalf("looking up the user %q: %v", name, err)
	}
	if !subordinate {
		return
	}
	for file, option := range map[string]string{"/etc/subuid": "--add-subuids", "/etc/subgid": "--add-subgids"} {
		_, count, err := subordinateRange(file, name, -1)
		if err != nil {
			t.Fatalf("reading %s: %v", file, err)
		}
		if count > 0 {
			continue
		}
		first, err := firstFreeSubordinate(file)
		if err != nil {
			t.Fatalf("reading %s: %v", file, err)
		}
		runAdmin(t, "usermod", option, fmt.Sprintf("%d-%d", first, first+65535), name)
	}
}

func runAdmin(t testing.TB, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	if cmd.Err != nil {
		cmd.Path, cmd.Err = filepath.Join("/usr/sbin", name), nil
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
}

// subordinateRange returns the first range of a user, listed by name or by
// uid; a file that does not exist lists nobody.
func subordinateRange(file, name string, uid int) (first, count int, err error) {
	err = eachRange(file, func(owner string, f, c int) {
		if count == 0 && (owner == name || owner == strconv.Itoa(uid)) {
			first, count = f, c
		}
	})
	return first, count, err
}

func firstFreeSubordinate(file string) (int, error) {
	free := 100000
	err := eachRange(file, func(_ string, first, count int) { free = max(free, first+count) })
	return free, err
}

func eachRange(file string, visit func(owner string, first, count int)) error {
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Split(strings.TrimSpace(lines.Text()), ":")
		if len(fields) != 3 {
			continue
		}
		first, err1 := strconv.Atoi(fields[1])
		count, err2 := strconv.Atoi(fields[2])
		if err := errors.Join(err1, err2); err != nil {
			return fmt.Errorf("%q: %w", lines.Text(), err)
		}
		visit(fields[0], first, count)
	}
	return lines.Err()
}
