package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/job/hostconfig"
	"github.com/nucleus-runtime/nucleus/core/supervisor"
	"github.com/nucleus-runtime/nucleus/internal/processors"
)

// childEnv says what this binary does as another process.
const childEnv = "NUCLEUS_TEST_CHILD"

func TestMain(m *testing.M) {
	var err error
	switch what := os.Getenv(childEnv); what {
	case "":
		os.Exit(m.Run())
	case "slack":
		var b []byte
		b, err = os.ReadFile("/proc/self/timerslack_ns")
		fmt.Fprintf(os.Stderr, "slack %s", b)
	default:
		err = begin(what)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// begin begins another process in which every thread has late timers, as it may be with one
// that Go's monitor has made: this process was begun with such, and was told that others are
// usual.
func begin(what string) error {
	late, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
	if err != nil {
		return err
	}
	runtime.LockOSThread()
	usual, err := strconv.Atoi(os.Getenv("USUAL"))
	if err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(usual), 0, 0, 0); err != nil {
		return err
	}
	processors.LateMonitor()
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(late), 0, 0, 0); err != nil {
		return err
	}
	runtime.UnlockOSThread()
	if err := os.Setenv(childEnv, "slack"); err != nil {
		return err
	}
	a := &app{stateRoot: os.Getenv("STATE"), host: hostConfig{read: true, config: &hostconfig.Config{}}}
	if what == "full" {
		return a.becomeFull()
	}
	p, told, err := a.startSupervisor("", []string{"nucleus"}, nil, os.Stderr, nil, nil)
	if err != nil {
		return err
	}
	defer told.Close()
	if _, err := p.Wait(); err != nil {
		return err
	}
	root, err := a.sandboxes()
	if err != nil {
		return err
	}
	defer root.Close()
	return supervisor.RemoveGroups(root)
}

// What becomes of this program, and of its detached sandboxes' workloads with it, has timers
// as its caller's, not as those that its own threads have.
func TestProgramsThatGoOnAreAsPunctualAsTheCaller(t *testing.T) {
	dir := t.TempDir()
	binary, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"nucleus", "nucleus-full", "nucleus-init"} { // init is never run
		if err := os.WriteFile(filepath.Join(dir, name), binary, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	runtime.LockOSThread() // and never unlocked: the thread is spoilt
	usual := 60_000
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, 400_000, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	for _, what := range []string{"supervisor", "full"} {
		cmd := exec.Command(filepath.Join(dir, "nucleus"))
		cmd.Env = append(os.Environ(), childEnv+"="+what, "USUAL="+strconv.Itoa(usual), "STATE="+filepath.Join(dir, "state"))
		out, err := cmd.CombinedOutput()
		if got := strings.TrimSpace(string(out)); err != nil || got != fmt.Sprintf("slack %d", usual) {
			t.Errorf("%s: %q, want %d ns (%v)", what, got, usual, err)
		}
	}
}
