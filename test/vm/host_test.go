// Package vm proves that the test VM is the host that other tests are told it
// is: pure cgroup v2 with every controller passed on, to root and to a user.
package vm

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

const hierarchy = "/sys/fs/cgroup"

// delegated is where this process may make groups: the root of the hierarchy
// for root, the parent of its own leaf for the delegated user.
func delegated(t *testing.T) string {
	t.Helper()
	if os.Getuid() == 0 {
		return hierarchy
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Dir(filepath.Join(hierarchy, strings.TrimPrefix(strings.TrimSpace(string(own)), "0::")))
}

// group makes a group with limits, by file name.
func group(t *testing.T, limits map[string]string) string {
	t.Helper()
	dir, err := os.MkdirTemp(delegated(t), "vm-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	})
	for file, value := range limits {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(value), 0); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// runIn starts the command inside the group (CLONE_INTO_CGROUP) and waits.
func runIn(t *testing.T, dir, name string, args ...string) error {
	t.Helper()
	fd, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer fd.Close()
	cmd := exec.Command(name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(fd.Fd())}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	err = cmd.Run()
	t.Logf("%s: %v %s", cmd, err, stderr.String())
	return err
}

func hasEvent(t *testing.T, dir, file, line string) bool {
	t.Helper()
	events, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains("\n"+string(events), "\n"+line+"\n")
}

func TestHostHasWhatTestsAskFor(t *testing.T) {
	testutil.Needs(t, testutil.VM)
	reqs := []testutil.Requirement{
		testutil.CgroupV2, testutil.UserNS, testutil.SubID, testutil.Landlock(2), testutil.Kernel(6, 1),
		testutil.CgroupController("memory"), testutil.CgroupController("pids"), testutil.CgroupController("cpu"),
		testutil.CgroupController("freezer"),
	}
	// A user's systemd passes on cpu, memory and pids by default, no more.
	if os.Getenv("NUCLEUS_VM_INIT") == "none" || os.Getuid() == 0 {
		reqs = append(reqs, testutil.CgroupController("cpuset"), testutil.CgroupController("io"))
	}
	for _, req := range reqs {
		if found := req.Probe(); found.State != testutil.Available {
			t.Errorf("%s: %s", req.Name, found.Why)
		}
	}
}

func TestMemoryLimitKills(t *testing.T) {
	testutil.Needs(t, testutil.VM)
	dir := group(t, map[string]string{"memory.max": "16777216"})
	if err := runIn(t, dir, "tail", "/dev/zero"); err == nil {
		t.Error("reading for ever within 16 MiB succeeded")
	}
	if !hasEvent(t, dir, "memory.events", "oom_kill 1") {
		t.Error("memory.events counts no kill")
	}
}

func TestPidsLimitRefusesForks(t *testing.T) {
	testutil.Needs(t, testutil.VM)
	dir := group(t, map[string]string{"pids.max": "1"})
	if err := runIn(t, dir, "sh", "-c", "true | true"); err == nil {
		t.Error("a pipeline ran in a group of one process")
	}
	if hasEvent(t, dir, "pids.events", "max 0") {
		t.Error("pids.events counts no refusal")
	}
}

func TestGroupsFreezeAndKill(t *testing.T) {
	testutil.Needs(t, testutil.VM)
	dir := group(t, map[string]string{"cgroup.freeze": "1"})
	fd, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer fd.Close()
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(fd.Fd())}
	started := make(chan error, 1)
	go func() { // exec in a frozen group waits, and so does Start
		started <- cmd.Run()
	}()
	frozen := false
	for deadline := time.Now().Add(30 * time.Second); !frozen && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		frozen = hasEvent(t, dir, "cgroup.events", "populated 1") && hasEvent(t, dir, "cgroup.events", "frozen 1")
	}
	if !frozen {
		t.Error("the group with its process did not freeze")
	}
	if err := os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	if err := <-started; err == nil {
		t.Error("the killed process succeeded")
	}
}

// Overlay upper layers need a file system with extended attributes for users.
func TestOverlayInUserNamespace(t *testing.T) {
	testutil.Needs(t, testutil.VM)
	dir := t.TempDir()
	for _, sub := range []string{"lower", "upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	script := `mount -t overlay -o userxattr,lowerdir=lower,upperdir=upper,workdir=work none merged && echo x >merged/f`
	cmd := exec.Command("unshare", "-Urm", "sh", "-c", script)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if _, err := os.Stat(filepath.Join(dir, "upper", "f")); err != nil {
		t.Error(err)
	}
}
