package rundir

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
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
