package rundir

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/cgroups"
	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

func TestMain(m *testing.M) {
	if parent := os.Getenv("RUNDIR_TEST_MAKE"); parent != "" {
		d, err := Make([]string{parent}, 200)
		if err != nil {
			panic(err)
		}
		if err := os.WriteFile(filepath.Join(d.Path, "socket"), nil, 0o600); err != nil {
			panic(err)
		}
		if os.Getenv("RUNDIR_TEST_GROUP") != "" {
			leaveGroup(d)
		}
		os.Exit(0) // as if it was killed: nothing is removed
	}
	os.Exit(m.Run())
}

func entries(t *testing.T, dir string) []string {
	t.Helper()
	es, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range es {
		names = append(names, e.Name())
	}
	return names
}

// leaveGroup makes a group with a process in it that nothing else ends.
func leaveGroup(d *Dir) {
	name := GroupPrefix + filepath.Base(d.Path)
	f, err := cgroups.Detect("")
	if err != nil {
		panic(err)
	}
	g, err := cgroups.New(f, cgroups.Spec{Name: name})
	if err == nil {
		err = errors.Join(d.Record(g.Record()), g.Create())
	}
	if err != nil {
		panic(err)
	}
	cmd := exec.Command("/bin/sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := errors.Join(cmd.Start(), g.Attach(cmd.Process.Pid)); err != nil {
		panic(err)
	}
	fmt.Println(cmd.Process.Pid, name)
}

// What a plugin of a host that was killed has left in its group ends, and the group
// goes with it.
func TestSweepRemovesGroups(t *testing.T) {
	testutil.Needs(t, testutil.CgroupController("pids"))
	parent := filepath.Join(t.TempDir(), "p")
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "RUNDIR_TEST_MAKE="+parent, "RUNDIR_TEST_GROUP=1")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var pid int
	var name string
	if _, err := fmt.Sscan(string(out), &pid, &name); err != nil {
		t.Fatal(err)
	}
	groups := func() []string {
		f, err := cgroups.Detect("")
		if err != nil {
			t.Fatal(err)
		}
		var found []string
		for _, dir := range f.Parents {
			left, _ := filepath.Glob(filepath.Join(dir, name))
			found = append(found, left...)
		}
		return found
	}
	if unix.Kill(pid, 0) != nil || len(groups()) == 0 {
		t.Fatalf("process %d, groups %q: nothing to sweep", pid, groups())
	}
	if err := Sweep([]string{parent}); err != nil {
		t.Error(err)
	}
	if left := groups(); len(left) > 0 {
		t.Errorf("groups %q are left", left)
	}
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err == nil && !strings.Contains(string(b), ") Z ") {
		t.Errorf("process %d is left", pid)
	}
	if got := entries(t, parent); len(got) != 0 {
		t.Errorf("%q is left", got)
	}
}

// A record that names anything but a group of ours removes nothing.
func TestSweepTrustsNoRecord(t *testing.T) {
	parent := filepath.Join(t.TempDir(), "p")
	victim := filepath.Join(t.TempDir(), "nucleus-plugin-victim")
	if err := os.Mkdir(victim, 0o755); err != nil {
		t.Fatal(err)
	}
	leave(t, parent)
	dir := filepath.Join(parent, entries(t, parent)[0])
	// Another plugin's, and one that is no group.
	record := fmt.Sprintf(`{"layout":"v2","name":"nucleus-plugin-victim","paths":{"":%q}}`, victim)
	if err := os.WriteFile(filepath.Join(dir, groupFile), []byte(record), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Sweep([]string{parent}); err == nil || !strings.Contains(err.Error(), `a control group that is not its own: "nucleus-plugin-victim"`) {
		t.Errorf("error %v", err)
	}
	record = fmt.Sprintf(`{"layout":"v2","name":%q,"paths":{"":%q}}`, GroupPrefix+filepath.Base(dir), victim)
	if err := os.WriteFile(filepath.Join(dir, groupFile), []byte(record), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Sweep([]string{parent}); err == nil {
		t.Error("no error")
	}
	if _, err := os.Stat(victim); err != nil {
		t.Error(err)
	}
	d, err := Make([]string{parent}, 200)
	if err != nil {
		t.Fatalf("nothing starts any more: %v", err)
	}
	_ = d.Remove()
}

// Who holds the lock for ever does not hold us for ever.
func TestLockIsWaitedForSoLong(t *testing.T) {
	parent := t.TempDir()
	held, err := locked(parent, unix.LOCK_EX, 0)
	if err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	if _, err := locked(parent, unix.LOCK_EX, 100*time.Millisecond); !errors.Is(err, errHeld) || time.Since(begun) < 100*time.Millisecond {
		t.Errorf("after %s: %v", time.Since(begun), err)
	}
	time.AfterFunc(50*time.Millisecond, func() { _ = held.Close() })
	f, err := locked(parent, unix.LOCK_EX, testutil.Patient(5*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
}

// Another user's directory in the place of ours can't be removed.
func TestTakenByAnother(t *testing.T) {
	mine := &TakenError{"/tmp/nucleus-plugins-1", 0o777, uint32(os.Geteuid())}
	if got := mine.Remedy(); got != "remove it: rm -r /tmp/nucleus-plugins-1" {
		t.Errorf("remedy %q", got)
	}
	if os.Geteuid() == 0 {
		return
	}
	if _, err := Make([]string{"/etc"}, 200); err == nil {
		t.Fatal("/etc was taken")
	} else if te := (*TakenError)(nil); !errors.As(err, &te) || !strings.Contains(te.Remedy(), "XDG_RUNTIME_DIR") {
		t.Errorf("error %v", err)
	}
}

func leave(t *testing.T, parent string) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "RUNDIR_TEST_MAKE="+parent)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func TestSweepRemovesWhatTheDeadLeft(t *testing.T) {
	parent := filepath.Join(t.TempDir(), "p")
	mine, err := Make([]string{parent}, 200)
	if err != nil {
		t.Fatal(err)
	}
	leave(t, parent)
	if got := entries(t, parent); len(got) != 2 {
		t.Fatalf("%q, want two", got)
	}
	if err := Sweep([]string{parent, "/nonexistent"}); err != nil {
		t.Fatal(err)
	}
	if got := entries(t, parent); len(got) != 1 || got[0] != filepath.Base(mine.Path) {
		t.Errorf("%q, want %s alone", got, mine.Path)
	}
	// Making one sweeps as well.
	leave(t, parent)
	second, err := Make([]string{parent}, 200)
	if err != nil {
		t.Fatal(err)
	}
	if got := entries(t, parent); len(got) != 2 {
		t.Errorf("%q, want the two that live", got)
	}
	for _, d := range []*Dir{mine, second} {
		if err := d.Remove(); err != nil {
			t.Error(err)
		}
	}
	if got := entries(t, parent); len(got) != 0 {
		t.Errorf("%q is left", got)
	}
}

func TestMakeBesideOthers(t *testing.T) {
	parent := filepath.Join(t.TempDir(), "p")
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 20 {
				d, err := Make([]string{parent}, 200)
				if err != nil {
					t.Error(err)
					return
				}
				if err := os.WriteFile(filepath.Join(d.Path, "socket"), nil, 0o600); err != nil {
					t.Errorf("swept while in use: %v", err)
				}
				if err := d.Remove(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

func TestMakeChoosesAndRefuses(t *testing.T) {
	short := t.TempDir()
	long := filepath.Join(short, strings.Repeat("x", 100))
	d, err := Make([]string{long, short}, len(short)+9)
	if err != nil || filepath.Dir(d.Path) != short {
		t.Fatalf("%v, %v", d, err)
	}
	_ = d.Remove()
	if _, err := Make([]string{long}, len(short)+9); err == nil || !strings.Contains(err.Error(), "too long") {
		t.Errorf("error %v", err)
	}
	if err := os.Chmod(short, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := Make([]string{short}, 200); err == nil || !strings.Contains(err.Error(), "only you can write to") {
		t.Errorf("a directory that all can write to: error %v", err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(t.TempDir(), link); err != nil {
		t.Fatal(err)
	}
	if _, err := Make([]string{link}, 200); err == nil {
		t.Error("a link was followed")
	}
}

// A plugin of another user has to pass, whatever the umask of who starts it.
func TestMakeIgnoresTheUmask(t *testing.T) {
	parent := filepath.Join(t.TempDir(), "run")
	old := unix.Umask(0o077)
	d, err := Make([]string{parent}, 200)
	unix.Umask(old)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Remove()
	if st, err := os.Stat(parent); err != nil || os.Geteuid() == 0 && st.Mode().Perm() != 0o711 {
		t.Errorf("%v, %v", st, err)
	}
}
