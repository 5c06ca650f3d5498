package cgroups

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	oc "github.com/opencontainers/cgroups"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// able is a host that can do everything.
func able(l Layout) Facts {
	f := Facts{Layout: l, Controllers: map[string]Feature{}, Parents: map[string]string{unified: "/cg"}}
	if l != V2 {
		f.Parents = map[string]string{}
		for _, n := range v1Names {
			f.Parents[n] = "/cg/" + n
		}
	}
	for _, c := range Controllers() {
		f.Controllers[c] = Feature{State: Available}
	}
	return f
}

func TestResourcesThatAreRefused(t *testing.T) {
	for name, c := range map[string]struct {
		layout      Layout
		r           specs.LinuxResources
		limit       string // of a LimitError
		unsupported string // or the controller of an UnsupportedError
	}{
		"memory below what a start needs": {V2, *memoryLimit(1 << 20), Memory, ""},
		"negative memory":                 {V2, *memoryLimit(-5), Memory, ""},
		"swap without memory":             {V2, specs.LinuxResources{Memory: &specs.LinuxMemory{Swap: ptr(int64(1 << 30))}}, Swap, ""},
		"swap below memory":               {V2, specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(1 << 30)), Swap: ptr(int64(1 << 29))}}, Swap, ""},
		"too few pids":                    {V1, *pidsLimit(1), Pids, ""},
		"tiny quota":                      {V2, specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr(int64(10))}}, CPU, ""},
		"long period":                     {V2, specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr(int64(5000)), Period: ptr(uint64(2_000_000))}}, CPU, ""},
		"shares out of range":             {V1, specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: ptr(uint64(1))}}, "cpu shares", ""},
		"weight out of range":             {V1, specs.LinuxResources{Unified: map[string]string{"cpu.weight": "10001"}}, "cpu.weight", ""},
		"weight is no number":             {V2, specs.LinuxResources{Unified: map[string]string{"cpu.weight": "a\x1b"}}, "cpu.weight", ""},
		"memory.high on v1":               {V1, specs.LinuxResources{Unified: map[string]string{"memory.high": "99999999"}}, "", Memory},
		"memory.high below a start":       {V2, specs.LinuxResources{Unified: map[string]string{"memory.high": "9"}}, "memory.high", ""},
		"unified that would stop us":      {V2, specs.LinuxResources{Unified: map[string]string{"cgroup.freeze": "1"}}, "", "cgroup.freeze"},
		"unified with a path":             {V2, specs.LinuxResources{Unified: map[string]string{"../x": "1"}}, "", "../x"},
		"cpuset":                          {V2, specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "0"}}, "", "cpuset"},
		"realtime":                        {V1, specs.LinuxResources{CPU: &specs.LinuxCPU{RealtimeRuntime: ptr(int64(1))}}, "", CPU},
		"reservation":                     {V2, specs.LinuxResources{Memory: &specs.LinuxMemory{Reservation: ptr(int64(1))}}, "", Memory},
		"huge pages":                      {V2, specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{}}}, "", "hugetlb"},
		"devices":                         {V2, specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{}}}, "", "devices"},
		"io weight":                       {V2, specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{Weight: ptr(uint16(10))}}, "", IO},
		"io rate of nothing":              {V2, specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{ThrottleReadBpsDevice: make([]specs.LinuxThrottleDevice, 1)}}, "io 0:0", ""},
	} {
		_, err := New(able(c.layout), Spec{Name: Prefix + "a", Resources: &c.r})
		var le *LimitError
		var ue *UnsupportedError
		switch {
		case c.limit != "" && (!errors.As(err, &le) || le.Limit != c.limit):
			t.Errorf("%s: %v, want a LimitError of %s", name, err, c.limit)
		case c.unsupported != "" && (!errors.As(err, &ue) || ue.Controller != c.unsupported):
			t.Errorf("%s: %v, want an UnsupportedError of %s", name, err, c.unsupported)
		}
	}
}

func TestResourcesAreTranslated(t *testing.T) {
	dev := specs.LinuxThrottleDevice{Rate: 7}
	dev.Major, dev.Minor = 8, 16
	r := &specs.LinuxResources{
		Memory:  &specs.LinuxMemory{Limit: ptr(int64(64 << 20))},
		CPU:     &specs.LinuxCPU{Quota: ptr(int64(150_000)), Shares: ptr(uint64(1024))},
		Pids:    &specs.LinuxPids{Limit: ptr(int64(99))},
		BlockIO: &specs.LinuxBlockIO{ThrottleWriteIOPSDevice: []specs.LinuxThrottleDevice{dev}},
	}
	want := oc.Resources{
		SkipDevices: true, Unified: map[string]string{},
		Memory: 64 << 20, MemorySwap: 64 << 20, // memory plus swap: no swap
		CpuQuota: 150_000, CpuPeriod: 100_000, PidsLimit: ptr(int64(99)),
		BlkioThrottleWriteIOPSDevice: []*oc.ThrottleDevice{oc.NewThrottleDevice(8, 16, 7)},
	}
	for _, layout := range []Layout{V1, V2} {
		want := want
		if layout == V2 {
			want.CpuWeight = 100
		} else {
			want.CpuShares = 1024
		}
		l, err := translate(r, layout)
		if err != nil || !reflect.DeepEqual(l.res, want) {
			t.Errorf("%s: %+v, %v\nwant %+v", layout, l.res, err, want)
		}
	}
	for weight, shares := range map[string]uint64{"1": 10, "100": 1024, "10000": 102400} {
		l, err := translate(&specs.LinuxResources{Unified: map[string]string{"cpu.weight": weight}}, Hybrid)
		if err != nil || l.res.CpuShares != shares {
			t.Errorf("weight %s: %d shares, %v; want %d", weight, l.res.CpuShares, err, shares)
		}
	}
}

// All that is wrong is told at once.
func TestErrorsAreCollected(t *testing.T) {
	f := able(V2)
	f.Controllers[CPU] = Feature{State: Unavailable, Why: "not passed on", Remedy: "pass it on"}
	r := memoryLimit(1)
	r.CPU = &specs.LinuxCPU{Quota: ptr(int64(5000))}
	_, err := New(f, Spec{Name: Prefix + "a", Resources: r})
	if err == nil || !strings.Contains(err.Error(), "at least") || !strings.Contains(err.Error(), "not passed on") {
		t.Errorf("%v", err)
	}
}

// A kernel that takes a write and does not act on it is found out.
func TestLimitFailsIfTheKernelDidNotTakeIt(t *testing.T) {
	oc.TestMode = true // the library then accepts files outside cgroupfs
	t.Cleanup(func() { oc.TestMode = false })
	for takes, want := range map[bool]bool{true: true, false: false} {
		g, err := New(able(V2), Spec{Name: Prefix + "a", Resources: pidsLimit(50)})
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		g.rec.Paths[unified] = dir
		write(t, filepath.Join(dir, "cgroup.controllers"), "pids\n")
		if !takes {
			if err := os.Symlink("/dev/null", filepath.Join(dir, "pids.max")); err != nil {
				t.Fatal(err)
			}
		}
		err = g.Limit()
		var le *LimitError
		if (err == nil) != want || err != nil && (!errors.As(err, &le) || le.Limit != Pids) {
			t.Errorf("taken %v: %v", takes, err)
		}
	}
}

// Could not tell never means available, except that Limit reads swap back.
func TestUnknownIsNotAvailable(t *testing.T) {
	f := able(V2)
	f.Controllers[Pids] = Feature{State: Unknown, Why: "odd"}
	f.Controllers[Swap] = Feature{State: Unknown, Why: "odd"}
	if _, err := New(f, Spec{Name: Prefix + "a", Resources: pidsLimit(50)}); err == nil {
		t.Error("pids accepted")
	}
	r := memoryLimit(64 << 20)
	r.Memory.Swap = ptr(int64(-1))
	if _, err := New(f, Spec{Name: Prefix + "a", Resources: r}); err != nil {
		t.Errorf("swap: %v", err)
	}
}

func TestNames(t *testing.T) {
	for _, bad := range []string{
		"", Prefix, "memory.max", "nucleus", Prefix + "a/b", Prefix + "..", Prefix + "a.scope", Prefix + "a\n", Prefix + strings.Repeat("x", 200), leafName,
	} {
		if _, err := New(able(V2), Spec{Name: bad}); err == nil {
			t.Errorf("%q accepted", bad)
		}
	}
}

func TestRecordSurvivesJSON(t *testing.T) {
	f := able(V2)
	f.Leaf = "/cg/" + leafName
	g, err := New(f, Spec{Name: Prefix + "0123abc"})
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(g.Record())
	if err != nil {
		t.Fatal(err)
	}
	var r Record
	if err := json.Unmarshal(b, &r); err != nil || !reflect.DeepEqual(r, g.Record()) {
		t.Errorf("%s: %+v, %v", b, r, err)
	}
}

func TestNoPlaceAtAll(t *testing.T) {
	f := Facts{Layout: V2, Controllers: map[string]Feature{}}
	f.unusable("no group was delegated", delegateRemedy)
	_, err := New(f, Spec{Name: Prefix + "a"})
	var ue *UnsupportedError
	if !errors.As(err, &ue) || ue.Controller != anyController || ue.Remedy != delegateRemedy {
		t.Errorf("%v", err)
	}
}
