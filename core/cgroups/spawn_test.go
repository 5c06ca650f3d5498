package cgroups

import (
	"os"
	"os/exec"
	"runtime"
	"slices"
	"testing"
	"time"
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

// TestKillNeverEndsItsCaller: a group that holds a thread of this process is
// neither frozen nor killed.
func TestKillNeverEndsItsCaller(t *testing.T) {
	g := newGroup(t, needs(t, Pids), pidsLimit(64))
	if g.Record().Layout == V2 {
		t.Log("v2 has no groups of single threads here")
		return
	}
	done, left := make(chan struct{}), make(chan struct{})
	entered := make(chan error)
	go func() {
		runtime.LockOSThread()
		entered <- g.Spawn(func(*os.File) error {
			entered <- nil
			<-done
			return nil
		})
		close(left)
	}()
	if err := <-entered; err != nil {
		t.Fatal(err)
	}
	if err := g.Kill(within(t, 5*time.Second)); err == nil {
		t.Error("Kill went ahead")
	}
	close(done)
	if err := <-entered; err != nil {
		t.Fatal(err)
	}
	<-left
}
