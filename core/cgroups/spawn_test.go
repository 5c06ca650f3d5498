package cgroups

import (
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"syscall"
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

// TestDetectBesideSpawn: while the first thread of this process is in a sandbox's
// group to make a process there, the process as such is not.
func TestDetectBesideSpawn(t *testing.T) {
	f := needs(t, Pids)
	p := start(t, "detect:"+testGroup("detect"), nil)
	p.open(t)
	if got := p.line(t); got != "same" {
		t.Errorf("below %v: %s", f.Parents, got)
	}
	if err := p.Wait(); err != nil { // it removes its group
		t.Error(err)
	}
}

// detectChild compares what Detect says before and during a Spawn on the main thread.
func detectChild(name string) (code int) {
	if syscall.Gettid() != os.Getpid() {
		fmt.Println("this is not the main thread")
		return 5
	}
	before, err := Detect("")
	if err != nil {
		return 6
	}
	g, err := New(before, Spec{Name: name, Resources: pidsLimit(64)})
	if err != nil || g.Create() != nil {
		return 7
	}
	defer func() {
		if g.Remove(context.Background()) != nil && code == 0 {
			code = 9
		}
	}()
	said := make(chan string)
	err = g.Spawn(func(*os.File) error {
		go func() {
			during, err := Detect("")
			if err == nil && maps.Equal(before.Parents, during.Parents) {
				said <- "same"
				return
			}
			said <- fmt.Sprint(during.Parents, err)
		}()
		fmt.Println(<-said)
		return nil
	})
	if err != nil {
		return 8
	}
	return 0
}
