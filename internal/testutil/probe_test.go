package testutil

import (
	"os"
	"testing"
)

// Which way a probe falls depends on the host; that it can tell does not.
func TestProbesCanTellHere(t *testing.T) {
	for _, req := range []Requirement{
		Root, Unprivileged, UserNS, SubID, CgroupV2, VM, Landlock(1), Landlock(6), Kernel(5, 13), Program("sh"),
		CgroupController("memory"), CgroupController("pids"), CgroupController("cpu"),
		CgroupController("cpuset"), CgroupController("io"), CgroupController("freezer"),
	} {
		found := req.Probe()
		t.Logf("%-18s %d %s", req.Name, found.State, found.Why)
		if found.State == Unknown {
			t.Errorf("%s: could not tell: %s", req.Name, found.Why)
		}
		if (found.State == Available) != (found.Why == "") {
			t.Errorf("%s: state %d with reason %q", req.Name, found.State, found.Why)
		}
	}
}

func TestProbesAnswerWhatIsKnown(t *testing.T) {
	for _, test := range []struct {
		req  Requirement
		want State
	}{
		{Program("sh"), Available},
		{Program("no-such-program-anywhere"), Missing},
		{Kernel(2, 6), Available},
		{Kernel(999, 0), Missing},
		{Landlock(999), Missing},
		{CgroupController("no-such-controller"), Unknown},
	} {
		if got := test.req.Probe(); got.State != test.want {
			t.Errorf("%s: state %d (%s), want %d", test.req.Name, got.State, got.Why, test.want)
		}
	}
	if root := Root.Probe(); os.Geteuid() != 0 && root.State != Missing {
		t.Errorf("root: state %d as uid %d", root.State, os.Geteuid())
	}
}

func TestControllerDirs(t *testing.T) {
	const (
		v2     = "30 29 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
		hybrid = "31 29 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n" +
			"32 29 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
	)
	for _, test := range []struct {
		what, mountinfo, groups, controller string
		dirs                                []string
		version                             int
	}{
		{"v2", v2, "0::/user.slice/a.scope\n", "memory", []string{"/sys/fs/cgroup/user.slice/a.scope", "/sys/fs/cgroup/user.slice"}, 0},
		{"v2 root", v2, "0::/\n", "memory", []string{"/sys/fs/cgroup"}, 0},
		{"hybrid, on v1", hybrid, "5:memory:/x/y\n0::/\n", "memory", []string{"/sys/fs/cgroup/memory/x/y"}, 1},
		{"hybrid, not on v1", hybrid, "5:memory:/x/y\n0::/z\n", "cpu", []string{"/sys/fs/cgroup/unified/z", "/sys/fs/cgroup/unified"}, 0},
		{"nothing mounted", "", "0::/\n", "memory", nil, 0},
	} {
		t.Run(test.what, func(t *testing.T) {
			dirs, version := controllerDirs(test.mountinfo, test.groups, test.controller)
			if version != test.version || len(dirs) != len(test.dirs) {
				t.Fatalf("got %q (version %d), want %q (%d)", dirs, version, test.dirs, test.version)
			}
			for i := range dirs {
				if dirs[i] != test.dirs[i] {
					t.Errorf("got %q, want %q", dirs, test.dirs)
				}
			}
		})
	}
}
