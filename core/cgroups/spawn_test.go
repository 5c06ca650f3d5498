package cgroups

import (
	"os"
	"os/exec"
	"runtime"
	"slices"
	"testing"
)

// TestSpawnIsBornInTheGroup: the process is in the group, in every hierarchy,
// without having been moved, and the thread that made it is back where it was.
func TestSpawnIsBornInTheGroup(t *testing.T) {
	g := newGroup(t, needs(t, Pids), pidsLimit(64))
	before, err := os.ReadFile("/proc/thread-self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/bin/sleep", "60")
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := spawn(g, cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	pids, err := g.Procs()
	if err != nil || !slices.Contains(pids, cmd.Process.Pid) {
		t.Errorf("the group holds %v (%v), not %d", pids, err, cmd.Process.Pid)
	}
	if slices.Contains(pids, os.Getpid()) {
		t.Error("the group holds this process")
	}
	after, err := os.ReadFile("/proc/thread-self/cgroup")
	if err != nil || string(after) != string(before) {
		t.Errorf("this thread is in %q (%v), was in %q", after, err, before)
	}
}
