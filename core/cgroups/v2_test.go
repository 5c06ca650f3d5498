package cgroups

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// needsV2 returns the facts of a pure v2 host. NUCLEUS_VM is set in the virtual
// machine that is there to be one.
func needsV2(t *testing.T, controllers ...string) Facts {
	t.Helper()
	f := needs(t, controllers...)
	if f.Layout != V2 {
		if os.Getenv("NUCLEUS_VM") != "" {
			t.Fatalf("the virtual machine has layout %s", f.Layout)
		}
		skip(t, "this host has cgroup layout "+string(f.Layout))
	}
	return f
}

func TestFDOnlyOnV2(t *testing.T) {
	g := newGroup(t, needs(t), nil)
	fd, err := g.FD()
	if g.rec.Layout == V2 {
		if err != nil {
			t.Fatal(err)
		}
		fd.Close()
		return
	}
	if fd != nil || !errors.Is(err, ErrNoFD) {
		t.Fatalf("FD = %v, %v; want ErrNoFD", fd, err)
	}
}

func TestCloneIntoTheGroup(t *testing.T) {
	f := needsV2(t, Memory, Pids)
	g := newGroup(t, f, memoryLimit(64<<20))
	fd, err := g.FD()
	if err != nil {
		t.Fatal(err)
	}
	defer fd.Close()
	p := start(t, "sleep", &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(fd.Fd())})
	pids, err := g.Procs()
	if err != nil || !slices.Equal(pids, []int{p.Process.Pid}) {
		t.Fatalf("Procs = %v, %v; want [%d]", pids, err, p.Process.Pid)
	}
}

func TestOOMKillTakesTheWholeSandbox(t *testing.T) {
	f := needsV2(t, Memory)
	g := newGroup(t, f, memoryLimit(64<<20))
	bystander := startIn(t, g, "sleep")
	bystander.open(t)
	hog := startIn(t, g, "hog:512")
	hog.open(t)
	_ = hog.Wait()
	err := bystander.Wait()
	if ws := bystander.ProcessState.Sys().(syscall.WaitStatus); !ws.Signaled() {
		t.Fatalf("the bystander ended with %v, want SIGKILL", err)
	}
}

func TestMemoryHighAndSwapAreTaken(t *testing.T) {
	// A bare root group cannot tell about swap beforehand; New lets it try.
	f := needsV2(t, Memory)
	if ft := f.Controllers[Swap]; ft.State == Unavailable {
		skip(t, ft.Why)
	}
	r := memoryLimit(64 << 20)
	r.Memory.Swap = ptr(int64(96 << 20))
	r.Unified = map[string]string{"memory.high": "33554432"}
	g := newGroup(t, f, r)
	for file, want := range map[string]string{"memory.max": "67108864", "memory.swap.max": "33554432", "memory.high": "33554432", "memory.oom.group": "1"} {
		b, err := os.ReadFile(filepath.Join(g.dirOf(Memory), file))
		if err != nil || strings.TrimSpace(string(b)) != want {
			t.Errorf("%s = %q, %v; want %s", file, b, err, want)
		}
	}
}

// W45: controllers are switched on for the groups, and only for them. A service
// manager that then tries to take one away from the parent is refused.
func TestControllersReachTheGroupOfASharedParent(t *testing.T) {
	f := needsV2(t, Memory, Pids, CPU)
	f.Shared = true
	parent := f.Parents[unified]
	g := newGroup(t, f, memoryLimit(64<<20))
	if err := os.WriteFile(filepath.Join(parent, subtreeControl), []byte("-memory"), 0); !errors.Is(err, unix.EBUSY) {
		t.Fatalf("taking memory away = %v, want EBUSY", err)
	}
	p := startIn(t, g, "hog:512")
	p.open(t)
	_ = p.Wait()
	if n, err := g.OOMKills(); err != nil || n == 0 {
		t.Errorf("OOMKills = %d, %v", n, err)
	}
	s, err := g.Stats()
	if err != nil || s.Memory == nil || s.Memory.Peak == nil && kernelAtLeast(5, 19) {
		t.Errorf("Stats = %+v, %v", s.Memory, err)
	}
}

func kernelAtLeast(major, minor int) bool {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return false
	}
	var a, b int
	_, _ = fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &a, &b)
	return a > major || a == major && b >= minor
}

// delegated makes a group marked as systemd marks it, and starts a child of the
// role in it, alone. Without controllers for its children, as systemd leaves it.
func delegated(t *testing.T, f Facts, role string) (dir string, p *proc) {
	t.Helper()
	dir = filepath.Join(f.Parents[unified], fmt.Sprintf("delegated-%d-%d", os.Getpid(), time.Now().UnixNano()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := (&tree{}).removeTree(within(t, 5*time.Second), dir); err != nil {
			t.Error(err)
		}
	})
	if err := unix.Setxattr(dir, "user.delegate", []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	fd, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer fd.Close()
	return dir, start(t, role, &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(fd.Fd())})
}

// As in `systemd-run --scope -p Delegate=yes nucleus run`: the supervisor is the
// one process of the delegated group, which has to become an inner one.
func TestSupervisorMovesAsideInADelegatedGroup(t *testing.T) {
	f := needsV2(t, Memory, Pids)
	dir, p := delegated(t, f, "selfmove:run")
	p.open(t)
	if got := p.line(t); got != "ok" {
		t.Fatal(got)
	}
	// Restored: the child is back, no leaf and no controllers are left.
	subs, err := subdirs(dir)
	if err != nil || len(subs) != 0 {
		t.Errorf("left in the delegated group: %v, %v", subs, err)
	}
	if c := words(filepath.Join(dir, subtreeControl)); len(c) != 0 {
		t.Errorf("controllers left on: %v", c)
	}
	if pids := words(filepath.Join(dir, "cgroup.procs")); !slices.Equal(pids, []string{fmt.Sprint(p.Process.Pid)}) {
		t.Errorf("processes %v, want the child back", pids)
	}
}

// A supervisor that was killed leaves its leaf; whoever collects the sandbox
// takes that too.
func TestLeafOfADeadSupervisorIsCollected(t *testing.T) {
	f := needsV2(t, Memory, Pids)
	dir, p := delegated(t, f, "selfmove:die")
	p.open(t)
	if got := p.line(t); got != "ok" {
		t.Fatal(got)
	}
	_ = p.Process.Kill()
	_ = p.Wait()
	r := Record{
		Layout: V2, Name: Prefix + "selfmove", Leaf: filepath.Join(dir, leafName),
		Paths: map[string]string{unified: filepath.Join(dir, Prefix+"selfmove")},
	}
	if _, err := os.Stat(r.Leaf); err != nil {
		t.Fatal("the child made no leaf")
	}
	if err := Remove(within(t, 5*time.Second), r); err != nil {
		t.Fatal(err)
	}
	if subs, err := subdirs(dir); err != nil || len(subs) != 0 {
		t.Errorf("left in the delegated group: %v, %v", subs, err)
	}
}

func TestRestoreLeavesOtherSandboxesAlone(t *testing.T) {
	f := needsV2(t, Memory, Pids)
	dir, p := delegated(t, f, "selfmove:die")
	p.open(t)
	if got := p.line(t); got != "ok" {
		t.Fatal(got)
	}
	restore(filepath.Join(dir, leafName)) // the child's sandbox is still there
	if c := words(filepath.Join(dir, subtreeControl)); !slices.Contains(c, Memory) {
		t.Errorf("memory was taken away from a live sandbox: %v", c)
	}
}

// In a delegated group that has other processes, we are refused, with a remedy,
// or go beside it where that is allowed; the others stay where they are.
func TestOtherProcessesInTheDelegatedGroup(t *testing.T) {
	f := needsV2(t, Memory, Pids)
	dir, shell := delegated(t, f, "sleep")
	shell.open(t)
	fd, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer fd.Close()
	p := start(t, "selfmove:facts", &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(fd.Fd())})
	p.open(t)
	if got, want := p.line(t), "parent "+f.Parents[unified]+" leaf  delegated false"; got != want {
		t.Errorf("facts: %s, want %s", got, want)
	}
	if pids := words(filepath.Join(dir, "cgroup.procs")); len(pids) != 2 {
		t.Errorf("processes in the delegated group: %v, want both", pids)
	}
}

func selfMoveChild(what string) int {
	f, err := Detect("")
	if err != nil {
		fmt.Println(err)
		return 20
	}
	if what == "facts" {
		fmt.Println("parent", f.Parents[unified], "leaf", f.Leaf, "delegated", f.Delegated)
		time.Sleep(time.Minute)
		return 0
	}
	if f.Leaf != filepath.Join(f.Own[unified], leafName) || !f.Delegated || f.Shared {
		fmt.Printf("facts %+v\n", f)
		return 21
	}
	r := memoryLimit(64 << 20)
	r.Pids = pidsLimit(50).Pids
	g, err := New(f, Spec{Name: Prefix + "selfmove", Resources: r})
	if err != nil {
		fmt.Println(err)
		return 22
	}
	for _, step := range []func() error{g.Create, g.Limit, g.Create, g.Limit} {
		if err := step(); err != nil {
			fmt.Println(err)
			return 23
		}
	}
	// A second sandbox of the same process finds the leaf.
	again, err := Detect("")
	if err != nil || again.Leaf != f.Leaf || again.Parents[unified] != f.Parents[unified] {
		fmt.Printf("second look %+v, %v\n", again, err)
		return 24
	}
	if what == "die" {
		fmt.Println("ok")
		time.Sleep(time.Minute)
	}
	pid, err := syscall.ForkExec("/bin/sleep", []string{"sleep", "60"}, &syscall.ProcAttr{Env: []string{}})
	if err == nil {
		err = g.Attach(pid)
	}
	if err == nil {
		err = Remove(context.Background(), g.Record())
	}
	if err != nil {
		fmt.Println(err)
		return 25
	}
	_, _ = syscall.Wait4(pid, nil, 0, nil)
	fmt.Println("ok")
	time.Sleep(time.Minute)
	return 0
}
