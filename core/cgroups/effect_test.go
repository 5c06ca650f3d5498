package cgroups

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// These tests use the cgroups of the host that they run on, whatever layout it
// has, below the groups that they were started in.

func TestMemoryLimitKillsAHogAndTellsSo(t *testing.T) {
	f := needs(t, Memory)
	g := newGroup(t, f, memoryLimit(48<<20))
	p := startIn(t, g, "hog:512")
	p.open(t)
	err := p.Wait()
	ws, ok := p.ProcessState.Sys().(syscall.WaitStatus)
	if !ok || !ws.Signaled() || ws.Signal() != syscall.SIGKILL {
		t.Fatalf("the hog ended with %v, want SIGKILL", err)
	}
	s, err := g.Stats()
	if err != nil {
		t.Fatal(err)
	}
	if s.Memory == nil || s.Memory.OOMKills == 0 {
		t.Fatalf("no OOM kill counted: %+v", s.Memory)
	}
	if s.Memory.Peak != nil && (*s.Memory.Peak < 32<<20 || *s.Memory.Peak > 49<<20) {
		t.Errorf("peak = %d, want about the limit (charges in flight may pass it)", *s.Memory.Peak)
	}
	if s.Memory.Limit == nil || *s.Memory.Limit != 48<<20 {
		t.Errorf("limit = %v, want that of the group", s.Memory.Limit)
	}
	if s.Memory.Swap != nil && *s.Memory.Swap != 0 {
		t.Errorf("swap = %d, want 0: a memory limit allows none by default", *s.Memory.Swap)
	}
	want := Peaks{Memory: s.Memory.Peak, OOMKills: s.Memory.OOMKills}
	if s.Pids != nil {
		want.Pids = s.Pids.Peak
	}
	if s.CPU != nil {
		want.CPUUsec = s.CPU.UsageUsec
	}
	if got, err := g.Peaks(); err != nil || !reflect.DeepEqual(got, want) || want.CPUUsec == 0 && s.CPU != nil {
		t.Errorf("peaks = %+v, %v; the accounts have %+v", got, err, want)
	}
}

func TestNoOOMKillIsCountedForAnExit(t *testing.T) {
	g := newGroup(t, needs(t, Memory), memoryLimit(128<<20))
	p := startIn(t, g, "hog:16")
	p.open(t)
	if err := p.Wait(); err != nil {
		t.Fatal(err)
	}
	n, err := g.OOMKills()
	if err != nil || n != 0 {
		t.Fatalf("OOMKills = %d, %v; want 0", n, err)
	}
}

// OOM truth also covers groups that the workload makes below its own.
func TestOOMKillInANestedGroupIsCounted(t *testing.T) {
	f := needs(t, Memory)
	g := newGroup(t, f, memoryLimit(64<<20))
	p := startIn(t, g, "nest:"+g.home(g.dirOf(Memory)))
	p.open(t)
	if got := p.line(t); got != "nested" {
		t.Fatal(got)
	}
	_ = p.Wait()
	n, err := g.OOMKills()
	if err != nil || n == 0 {
		t.Fatalf("OOMKills = %d, %v; want at least 1", n, err)
	}
}

// nestChild moves itself to a new group below dir and runs out of memory there.
func nestChild(dir string) int {
	sub := filepath.Join(dir, "made-by-workload")
	if err := os.Mkdir(sub, 0o755); err != nil {
		fmt.Println(err)
		return 8
	}
	if err := os.WriteFile(filepath.Join(sub, "cgroup.procs"), []byte("0"), 0); err != nil {
		fmt.Println(err)
		return 9
	}
	fmt.Println("nested")
	var keep [][]byte
	for {
		keep = append(keep, slices.Repeat([]byte{1}, 1<<20))
		_ = keep
	}
}

func TestPidsLimitMakesForkFail(t *testing.T) {
	f := needs(t, Pids)
	g := newGroup(t, f, &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr(int64(24))}})
	p := startIn(t, g, "fork:200")
	p.open(t)
	var got int
	if _, err := fmt.Sscanf(p.line(t), "forked %d", &got); err != nil {
		t.Fatal(err)
	}
	if got == 0 || got >= 24 {
		t.Fatalf("forked %d times under a limit of 24 tasks", got)
	}
	s, err := g.Stats()
	if err != nil {
		t.Fatal(err)
	}
	if s.Pids.Limit == nil || *s.Pids.Limit != 24 {
		t.Errorf("limit = %v, want 24", s.Pids.Limit)
	}
	if s.Pids.Peak != nil && (*s.Pids.Peak <= uint64(got) || *s.Pids.Peak > 24) {
		t.Errorf("peak = %d tasks after %d forks, want at most 24", *s.Pids.Peak, got)
	}
}

// W19: the limit counts tasks of the sandbox, not of the user.
func TestPidsLimitIsPerSandbox(t *testing.T) {
	f := needs(t, Pids)
	r := &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr(int64(40))}}
	for range 2 {
		p := startIn(t, newGroup(t, f, r), "fork:20")
		p.open(t)
		if got := p.line(t); got != "forked 20" {
			t.Fatalf("%s, want 20 in each sandbox of the same user", got)
		}
	}
}

func TestCPUQuotaThrottles(t *testing.T) {
	f := needs(t, CPU)
	g := newGroup(t, f, &specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr(int64(10_000)), Period: ptr(uint64(100_000))}})
	p := startIn(t, g, "spin:1000")
	begin := time.Now()
	before, err := g.Stats()
	if err != nil {
		t.Fatal(err)
	}
	p.open(t)
	if err := p.Wait(); err != nil {
		t.Fatal(err)
	}
	took := time.Since(begin)
	s, err := g.Stats()
	if err != nil {
		t.Fatal(err)
	}
	// Still there: a service manager may have taken the controller away.
	if err := g.verify(&g.limits.res); err != nil {
		t.Error(err)
	}
	if s.CPU.ThrottledPeriods == 0 || s.CPU.ThrottledUsec == 0 {
		t.Errorf("not throttled: %+v", s.CPU)
	}
	// Against the time that passed, since a slow machine makes a long second.
	used := time.Duration(s.CPU.UsageUsec-before.CPU.UsageUsec) * time.Microsecond
	if used == 0 || used > took/4 {
		t.Errorf("used %v of CPU in %v at 10%%: %+v", used, took, s.CPU)
	}
}

func TestWeightIsTaken(t *testing.T) {
	f := needs(t, CPU)
	for _, r := range []*specs.LinuxResources{
		{CPU: &specs.LinuxCPU{Shares: ptr(uint64(512))}},
		{Unified: map[string]string{"cpu.weight": "50"}},
	} {
		g := newGroup(t, f, r) // Limit reads it back
		file, want := "cpu.shares", "512"
		if f.Layout == V2 {
			file = "cpu.weight"
			want = "50"
			if r.CPU != nil {
				want = "59" // the OCI runtimes' conversion of 512 shares
			}
		}
		got, err := os.ReadFile(filepath.Join(g.dirOf(CPU), file))
		if err != nil || strings.TrimSpace(string(got)) != want {
			t.Errorf("%s = %q, %v; want %s", file, got, err, want)
		}
	}
}

func TestIOThrottleSlowsReads(t *testing.T) {
	f := needs(t, IO)
	const dev = "/dev/vda"
	var st syscall.Stat_t
	if err := syscall.Stat(dev, &st); err != nil {
		skip(t, "no block device to read: "+err.Error())
	}
	if file, err := os.Open(dev); err != nil {
		skip(t, "no block device that this user may read: "+err.Error())
	} else {
		file.Close()
	}
	major, minor := int64(st.Rdev>>8&0xfff), int64(st.Rdev&0xff)
	r := &specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{}}
	d := specs.LinuxThrottleDevice{Rate: 2 << 20}
	d.Major, d.Minor = major, minor
	r.BlockIO.ThrottleReadBpsDevice = []specs.LinuxThrottleDevice{d}
	g := newGroup(t, f, r)
	p := startIn(t, g, "read:"+dev+",4")
	begin := time.Now()
	p.open(t)
	if err := p.Wait(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took < time.Second {
		t.Errorf("4 MiB at 2 MiB/s took %v", took)
	}
	s, err := g.Stats()
	if err != nil {
		t.Fatal(err)
	}
	if s.IO == nil || s.IO.ReadBytes < 4<<20 {
		t.Errorf("read bytes: %+v, want 4 MiB", s.IO)
	}
}

func TestIOLimitOfNoDeviceIsAnError(t *testing.T) {
	f := needs(t, IO)
	r := &specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{}}
	d := specs.LinuxThrottleDevice{Rate: 1 << 20}
	d.Major, d.Minor = 4000, 1
	r.BlockIO.ThrottleReadBpsDevice = []specs.LinuxThrottleDevice{d}
	g, err := New(f, Spec{Name: fmt.Sprintf("%stest-nodev-%d", Prefix, os.Getpid()), Resources: r})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Remove(t.Context())
	if err := g.Create(); err != nil {
		t.Fatal(err)
	}
	if err := g.Limit(); err == nil {
		t.Fatal("a limit on a device that does not exist was taken")
	}
}

// A limit that the kernel does not hold afterwards is an error, not a warning.
func TestLimitIsReadBack(t *testing.T) {
	f := needs(t, Memory)
	g := newGroup(t, f, memoryLimit(64<<20+100)) // rounded to a page: taken
	file := "memory.limit_in_bytes"
	if f.Layout == V2 {
		file = "memory.max"
	}
	if err := os.WriteFile(filepath.Join(g.dirOf(Memory), file), []byte("33554432"), 0); err != nil {
		t.Fatal(err)
	}
	var le *LimitError
	if err := g.verify(&g.limits.res); !errors.As(err, &le) || le.Limit != Memory {
		t.Fatalf("verify = %v, want a LimitError for memory", err)
	}
}

func TestAccountsWithoutLimits(t *testing.T) {
	g := newGroup(t, needs(t), nil)
	p := startIn(t, g, "spin:50")
	pids, err := g.Procs()
	if err != nil || !slices.Equal(pids, []int{p.Process.Pid}) {
		t.Fatalf("Procs = %v, %v; want [%d]", pids, err, p.Process.Pid)
	}
	p.open(t)
	if err := p.Wait(); err != nil {
		t.Fatal(err)
	}
	s, err := g.Stats()
	if err != nil {
		t.Fatal(err)
	}
	if s.CPU == nil || s.CPU.UsageUsec == 0 {
		t.Errorf("CPU: %+v", s.CPU)
	}
	if s.Memory != nil && s.Memory.Limit != nil || s.Pids != nil && s.Pids.Limit != nil {
		t.Errorf("limits that nobody has set: %+v %+v", s.Memory, s.Pids)
	}
}

// Where the kernel tells how long tasks had to wait, so do we.
func TestPressureIsToldWhereTheKernelDoes(t *testing.T) {
	f := needs(t, CPU)
	g := newGroup(t, f, nil)
	startIn(t, g, "spin:50")
	s, err := g.Stats()
	if err != nil {
		t.Fatal(err)
	}
	_, err = os.ReadFile(filepath.Join(g.dirOf(CPU), "cpu.pressure")) // v2, and not switched off (psi=0)
	if told := s.CPU.Pressure != nil; told != (err == nil) {
		t.Fatalf("pressure %+v; cpu.pressure: %v", s.CPU.Pressure, err)
	}
}

// dirOf is the group's directory for a controller.
func (g *Group) dirOf(controller string) string {
	if g.rec.Layout == V2 {
		return g.rec.Paths[unified]
	}
	return g.rec.Paths[controller]
}
