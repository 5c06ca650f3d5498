package security

import (
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/initproto"
	"github.com/nucleus-runtime/nucleus/core/plan"
	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

// subject is a process with known properties: what setpriv(1) was told.
type subject struct {
	args  []string // of setpriv
	attr  syscall.SysProcAttr
	dir   string
	extra int // descriptors beside 0, 1, 2
}

// all lets go of everything that a sandbox's workload lets go of.
var all = []string{"--reuid=1234", "--regid=1235", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all", "--no-new-privs"}

func without(args []string, prefix string) []string {
	var out []string
	for _, a := range args {
		if !strings.HasPrefix(a, prefix) {
			out = append(out, a)
		}
	}
	return out
}

func (s subject) start(t *testing.T) int {
	t.Helper()
	cmd := exec.Command("setpriv", append(s.args, "sh", "-c", "umask 0022; exec sleep 60")...)
	attr := s.attr
	attr.Pdeathsig = syscall.SIGKILL
	cmd.SysProcAttr, cmd.Dir = &attr, s.dir
	for range s.extra {
		f, err := os.Open("/dev/null")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	}
	// Who started the tests may have left descriptors open.
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	for range 500 {
		if comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", cmd.Process.Pid)); err == nil && string(comm) == "sleep\n" {
			return cmd.Process.Pid
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("the process did not come up")
	return 0
}

// expected is what all of it looks like.
func expected(t *testing.T) Expected {
	t.Helper()
	own, err := ReadOwn()
	if err != nil {
		t.Fatal(err)
	}
	return Expected{
		Own:     own,
		Plan:    &plan.Plan{IDs: plan.IDs{Kind: "none"}},
		Process: initproto.Process{UID: 1234, GID: 1235, SetGroups: true, Umask: 0o022},
	}
}

// hostRoot is the one difference that all subjects have: they have no root of
// their own.
const hostRoot = "the root is the host's"

// TestPosture: any difference between a real process and what was planned is
// reported, and nothing else is.
func TestPosture(t *testing.T) {
	testutil.Needs(t, testutil.Root)
	uts := specs.LinuxNamespace{Type: specs.UTSNamespace}
	for _, c := range []struct {
		name    string
		subject subject
		want    func(*Expected)
		differs string // beside the root
	}{
		{"as planned", subject{args: all, extra: 1}, nil, ""},
		{"another uid", subject{args: append(without(all, "--reuid"), "--reuid=7"), extra: 1}, nil, "uid is 7\t7\t7\t7, want 1234\t1234\t1234\t1234"},
		{"another gid", subject{args: append(without(all, "--regid"), "--regid=7"), extra: 1}, nil, "gid is 7\t7\t7\t7, want 1235\t1235\t1235\t1235"},
		{"groups", subject{args: append(without(all, "--clear"), "--groups=5,3"), extra: 1}, nil, "supplementary groups is 3 5, want "},
		{"groups in another order", subject{args: append(without(all, "--clear"), "--groups=5,3"), extra: 1}, func(e *Expected) { e.Process.Groups = []uint32{5, 3} }, ""},
		{"groups that cannot be set", subject{args: append(without(all, "--clear"), "--groups=5"), extra: 1}, func(e *Expected) { e.Process.SetGroups = false }, ""},
		{"a capability in the bounding set", subject{args: append(without(all, "--bounding"), "--bounding-set=-all,+chown"), extra: 1}, nil, "bounding set is 0000000000000001, want 0000000000000000"},
		{
			"capabilities to use",
			subject{args: []string{"--reuid=1234", "--regid=1235", "--clear-groups", "--inh-caps=-all,+kill", "--ambient-caps=-all,+kill", "--bounding-set=-all,+kill", "--no-new-privs"}, extra: 1},
			nil,
			"bounding set is 0000000000000020, want 0000000000000000; permitted set is 0000000000000020, want 0000000000000000; effective set is 0000000000000020, want 0000000000000000; inheritable set is 0000000000000020, want 0000000000000000; ambient set is 0000000000000020, want 0000000000000000",
		},
		{"those that were planned", subject{args: []string{"--reuid=1234", "--regid=1235", "--clear-groups", "--inh-caps=-all,+kill", "--ambient-caps=-all,+kill", "--bounding-set=-all,+kill", "--no-new-privs"}, extra: 1}, func(e *Expected) {
			e.Process.Caps = initproto.Caps{Bounding: 32, Permitted: 32, Effective: 32, Inheritable: 32, Ambient: 32}
		}, ""},
		{"new privileges", subject{args: without(all, "--no-new-privs"), extra: 1}, nil, "no_new_privs is 0, want 1"},
		{"another umask", subject{args: all, extra: 1}, func(e *Expected) { e.Process.Umask = 0o077 }, "umask is 0022, want 0077"},
		{"one descriptor too many (W28)", subject{args: all, extra: 2}, nil, "open descriptors is 0 1 2 3 4, want 0 1 2 3"},
		{"no gate", subject{args: all}, nil, "open descriptors is 0 1 2, want 0 1 2 3"},
		{"a namespace that is the host's", subject{args: all, extra: 1}, func(e *Expected) { e.Plan.Namespaces = append(e.Plan.Namespaces, uts) }, "the uts namespace is the host's"},
		{"one that nobody planned", subject{args: all, extra: 1, attr: syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUTS}}, nil, "the uts namespace is not the host's"},
		{"one that was planned", subject{args: all, extra: 1, attr: syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUTS}}, func(e *Expected) { e.Plan.Namespaces = append(e.Plan.Namespaces, uts) }, ""},
		{"a working directory of another mount namespace (CVE-2024-21626)", subject{args: all, extra: 1, dir: "/proc/self/fd/HOST", attr: syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}}, func(e *Expected) {
			e.Plan.Namespaces = append(e.Plan.Namespaces, specs.LinuxNamespace{Type: specs.MountNamespace})
		}, `the working directory "/" is on no mount of the sandbox`},
		{"one of its own", subject{args: all, extra: 1, dir: "/", attr: syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}}, func(e *Expected) {
			e.Plan.Namespaces = append(e.Plan.Namespaces, specs.LinuxNamespace{Type: specs.MountNamespace})
		}, ""},
		{"a limit", subject{args: all, extra: 1}, func(e *Expected) {
			e.Process.Rlimits = []initproto.Rlimit{{Resource: unix.RLIMIT_CORE, Soft: 12345, Hard: 12345}}
		}, ", want 12345:12345"},
		{"a group of another sandbox", subject{args: all, extra: 1}, func(e *Expected) { e.Cgroup = map[string]string{"nosuch": "/sys/fs/cgroup/x/y"} }, `the nosuch group is "", want the end of "/sys/fs/cgroup/x/y"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.subject.dir == "/proc/self/fd/HOST" {
				host, err := os.Open("/")
				if err != nil {
					t.Fatal(err)
				}
				defer host.Close()
				c.subject.dir = fmt.Sprintf("/proc/self/fd/%d", host.Fd())
			}
			pid := c.subject.start(t)
			want := expected(t)
			if c.want != nil {
				c.want(&want)
			}
			want.InitPid = pid
			err := ReadPosture(pid, want)
			var pe *PostureError
			if !errors.As(err, &pe) {
				t.Fatalf("%v", err)
			}
			var differs []string
			root := false
			for _, d := range pe.Differences {
				if d == hostRoot {
					root = true
					continue
				}
				differs = append(differs, d)
			}
			got := strings.Join(differs, "; ")
			if shared := len(want.Plan.Namespaces) == 0 || want.Plan.Namespaces[0].Type != specs.MountNamespace; shared && !root {
				t.Errorf("the host's root is not noticed: %v", pe.Differences)
			}
			if got != c.differs && (c.name != "a limit" || !strings.HasSuffix(got, c.differs)) {
				t.Errorf("got  %q\nwant %q", got, c.differs)
			}
		})
	}
}

// TestPostureWithoutFilter: a process whose filter is not on is never taken for ready.
func TestPostureWithoutFilter(t *testing.T) {
	testutil.Needs(t, testutil.Root)
	pid := subject{args: all, extra: 1}.start(t)
	want := expected(t)
	want.InitPid, want.Process.Filter = pid, []byte{1}
	err := ReadPosture(pid, want)
	if err == nil || !strings.Contains(err.Error(), "seccomp mode 0, want 2") {
		t.Error(err)
	}
}

func TestPostureOfTheDead(t *testing.T) {
	cmd := exec.Command("/bin/true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	want := expected(t)
	want.InitPid = cmd.Process.Pid
	time.Sleep(50 * time.Millisecond)
	if err := ReadPosture(cmd.Process.Pid, want); err == nil {
		t.Error("a zombie has the planned posture")
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if err := ReadPosture(cmd.Process.Pid, want); err == nil {
		t.Error("nobody has the planned posture")
	}
}
