package testutil

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// has tells whether one of the lines starts with the kind and holds the text.
func has(left []string, kind, text string) bool {
	for _, line := range left {
		if strings.HasPrefix(line, kind+" ") && strings.Contains(line, text) {
			return true
		}
	}
	return false
}

func TestCensusSeesAnOrphan(t *testing.T) {
	scope := Scope{}
	before := TakeCensus(t, scope)
	out, err := exec.Command("sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo $!").Output()
	if err != nil {
		t.Fatal(err)
	}
	pid := strings.TrimSpace(string(out))
	left := before.Diff(TakeCensus(t, scope))
	if !has(left, "process", pid+" (sleep") {
		t.Errorf("the orphan %s is not among %q", pid, left)
	}
	if err := exec.Command("kill", "-9", pid).Run(); err != nil {
		t.Fatal(err)
	}
	if left := before.Settle(t, scope); len(left) > 0 {
		t.Errorf("left after the kill: %q", left)
	}
}

// A session leader that a test of ours did not start, found by its executable.
func TestCensusSeesOurExecutableWhoeverStartedIt(t *testing.T) {
	bin := t.TempDir()
	data, err := os.ReadFile("/bin/sleep")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bin, "nucleus-init"), data, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(bin, "nucleus-init"), "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	all, err := processes()
	if err != nil {
		t.Fatal(err)
	}
	p := all[cmd.Process.Pid]
	p.parent = 1
	if descends(all, p, os.Getpid()) || !within(p.exe, []string{bin}) || within(p.exe, []string{bin + "x", bin[:len(bin)-1]}) {
		t.Errorf("process %+v is not told by its executable in %s", p, bin)
	}
}

func TestCensusSeesAForeignPidNamespace(t *testing.T) {
	Needs(t, UserNS)
	scope := Scope{Alone: true}
	before := TakeCensus(t, scope)
	cmd := exec.Command("cat")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	left := before.Diff(TakeCensus(t, scope))
	stdin.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if !has(left, "process", "(cat") || !has(left, "netns", "net:[") {
		t.Errorf("the sandbox is not among %q", left)
	}
}

func TestCensusSeesFiles(t *testing.T) {
	root := t.TempDir()
	scope := Scope{Files: []string{root, filepath.Join(root, "not-there")}}
	before := TakeCensus(t, scope)
	path := filepath.Join(root, "a", "journal.jsonl")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if left := before.Diff(TakeCensus(t, scope)); !has(left, "file", path) {
		t.Errorf("%s is not among %q", path, left)
	}
	if err := os.RemoveAll(filepath.Join(root, "a")); err != nil {
		t.Fatal(err)
	}
	if left := before.Settle(t, scope); len(left) > 0 {
		t.Errorf("left after the removal: %q", left)
	}
}

func TestCensusSeesMountsAndStackedMounts(t *testing.T) {
	Needs(t, Root)
	dir := t.TempDir()
	before := TakeCensus(t, Scope{})
	for range 2 {
		if err := unix.Mount("nucleus-test", dir, "tmpfs", 0, "size=4k"); err != nil {
			t.Fatal(err)
		}
		left := before.Diff(TakeCensus(t, Scope{}))
		if !has(left, "mount", dir) {
			t.Errorf("%s is not among %q", dir, left)
		}
		before = TakeCensus(t, Scope{})
	}
	for range 2 {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Fatal(err)
		}
	}
	if left := before.Diff(TakeCensus(t, Scope{})); has(left, "mount", dir) {
		t.Errorf("left after the unmount: %q", left)
	}
}

func TestCensusSeesCgroups(t *testing.T) {
	Needs(t, Root, CgroupController("pids"))
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	groups, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	dirs, _ := controllerDirs(string(table), string(groups), "pids")
	before := TakeCensus(t, Scope{})
	dir := filepath.Join(dirs[0], cgroupPrefix+"census-test")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	left := before.Diff(TakeCensus(t, Scope{}))
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	if !has(left, "cgroup", dir) {
		t.Errorf("%s is not among %q", dir, left)
	}
	if left := before.Diff(TakeCensus(t, Scope{})); has(left, "cgroup", dir) {
		t.Errorf("left after the removal: %q", left)
	}
}

func TestNoLeaksFailsTheTest(t *testing.T) {
	root := t.TempDir()
	inner := &cleanupRecorder{recorder: recorder{TB: t}}
	NoLeaks(inner, Scope{Files: []string{root}, Wait: 50 * time.Millisecond})
	if err := os.WriteFile(filepath.Join(root, "stray"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	inner.cleanup()
	if !strings.Contains(inner.errors, "stray") {
		t.Errorf("the leak was reported as %q", inner.errors)
	}
}

type cleanupRecorder struct {
	recorder
	cleanup func()
	errors  string
}

func (r *cleanupRecorder) Cleanup(f func()) { r.cleanup = f }

func (r *cleanupRecorder) Errorf(format string, args ...any) {
	for _, arg := range args {
		r.errors += arg.(string)
	}
	r.errors += format
}

func TestParseStat(t *testing.T) {
	p, err := parseStat("42 (a) b (c)) S 7 42 42 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 12345 0 0\n")
	if err != nil || p.pid != 42 || p.parent != 7 || p.state != 'S' || p.started != "12345" || p.name != "a) b (c)" {
		t.Errorf("got %+v, %v", p, err)
	}
	for _, bad := range []string{"", "42 (a", "42 (a) S 7", "x (a) S 7 42 42 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 12345 0 0"} {
		if _, err := parseStat(bad); err == nil {
			t.Errorf("%q parses", bad)
		}
	}
}
