package seccomp

import (
	"reflect"
	"slices"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/security/seccomp/internal/sysno"
)

func TestTraceFilterAsks(t *testing.T) {
	for _, filter := range []string{"trace", "traceinit"} {
		otherwise := map[string]Action{"trace": ActNotify, "traceinit": ActAllow}[filter]
		forBoth(t, filter, func(t *testing.T, b built) {
			for _, c := range sysno.Table(b.arch) {
				want := otherwise
				if slices.Contains(killed.names, c.Name) {
					want = ActKillProcess
				}
				if got := b.verdict(c.Name); got != want {
					t.Errorf("%s: %s, want %s", c.Name, got, want)
				}
			}
		})
	}
}

func TestTraceDecides(t *testing.T) {
	const arch = "amd64"
	tr := NewTrace(DefaultPolicy(arch))
	call := func(name string, args ...uint64) syscall.Errno {
		n, ok := sysno.Number(arch, name)
		if !ok {
			t.Fatal(name)
		}
		var six [6]uint64
		copy(six[:], args)
		return tr.Decide(n, six)
	}
	for _, tc := range []struct {
		name string
		args []uint64
		want syscall.Errno
	}{
		{"read", nil, 0},
		{"read", nil, 0},
		{"ptrace", nil, 0},                                  // allow can open it
		{"socket", []uint64{unix.AF_UNIX}, 0},               // admitted
		{"socket", []uint64{unix.AF_VSOCK}, 0},              // allow can open it
		{"clone", []uint64{uint64(syscall.SIGCHLD)}, 0},     // admitted
		{"clone", []uint64{unix.CLONE_NEWUSER}, unix.EPERM}, // no job can have it
		{"clone3", nil, unix.ENOSYS},
		{"setns", nil, unix.EPERM},
		{"io_uring_setup", nil, unix.ENOSYS}, // it is not traced
		{"fcntl", []uint64{0, setLease}, unix.EACCES},
		{"prlimit64", []uint64{0}, 0},
		{"prlimit64", []uint64{1}, unix.EPERM},
	} {
		if got := call(tc.name, tc.args...); got != tc.want {
			t.Errorf("%s%v: %v, want %v", tc.name, tc.args, got, tc.want)
		}
	}
	for n := range uint32(1000) {
		if got := tr.Decide(100000+n, [6]uint64{}); got != unix.ENOSYS {
			t.Fatalf("call %d: %v", 100000+n, got)
		}
	}
	want := []Traced{
		{Name: "clone", Count: 2, Refused: 1, Answer: "EPERM", Args: []uint64{unix.CLONE_NEWUSER}, Closed: true},
		{Name: "clone3", Count: 1, Refused: 1, Answer: "ENOSYS", Closed: true},
		{Name: "fcntl", Count: 1, Refused: 1, Answer: "EACCES", Args: []uint64{0, setLease}, Closed: true},
		{Name: "io_uring_setup", Count: 1, Refused: 1, Answer: "ENOSYS", Closed: true},
		{Name: "prlimit64", Count: 2, Refused: 1, Answer: "EPERM", Args: []uint64{1}, Closed: true},
		{Name: "ptrace", Count: 1, Refused: 1, Answer: "EPERM"},
		{Name: "read", Count: 2},
		{Name: "setns", Count: 1, Refused: 1, Answer: "EPERM", Closed: true},
		{Name: "socket", Count: 2, Refused: 1, Answer: "EAFNOSUPPORT", Args: []uint64{unix.AF_VSOCK, 0, 0}},
		{Name: "unknown", Count: 1000, Refused: 1000, Answer: "ENOSYS", Closed: true},
	}
	if got := tr.Calls(); !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
}

// A policy that kills has nobody killed from outside.
func TestTraceOfAKillingPolicy(t *testing.T) {
	number, _ := sysno.Number("amd64", "setns")
	tr := NewTrace(Policy{Arch: "amd64", Default: ActKillProcess})
	if got := tr.Decide(number, [6]uint64{}); got != unix.EPERM {
		t.Error(got)
	}
}

// TestTracedProfile: under the profile everything that was called has the answers of the policy, and what was not called
// is refused.
func TestTracedProfile(t *testing.T) {
	const arch = "amd64"
	execve, _ := sysno.Number(arch, "execve")
	for name, p := range map[string]Policy{
		"default": DefaultPolicy(arch),
		"caps":    builtin(arch, []string{"CAP_SYS_PTRACE"}, []string{"io_uring_setup"}),
		"admits":  {Arch: arch, Default: ActAllow, Rules: []Rule{{Number: 59, Action: ActAllow}}},
		"kills":   {Arch: arch, Default: ActKillProcess, Rules: []Rule{{Number: 0, Action: ActAllow}, {Number: 59, Action: ActLog}, {Number: 231, Action: ActAllow}}},
	} {
		t.Run(name, func(t *testing.T) {
			p.Normalize()
			tr := NewTrace(p)
			called := map[uint32]bool{0: true, execve: true, 231: true, 60: true, 219: true, 15: true} // the launcher's, and the late ones
			for i, c := range sysno.Table(arch) {
				if i%2 == 0 || c.Name == "clone" || c.Name == "ioctl" || c.Name == "socket" {
					continue
				}
				called[c.Number] = true
				_ = tr.Decide(c.Number, [6]uint64{})
			}
			for _, name := range []string{"clone", "ioctl"} { // as far as they are admitted
				n, _ := sysno.Number(arch, name)
				called[n] = true
				_ = tr.Decide(n, [6]uint64{})
			}
			raw, err := tr.Profile()
			if err != nil {
				t.Fatal(err)
			}
			profile, err := ParseProfile("traced", raw)
			if err != nil {
				t.Fatalf("%v\n%s", err, raw)
			}
			resolved, err := Request{Profile: profile}.resolveFor(arch)
			if err != nil {
				t.Fatalf("%v\n%s", err, raw)
			}
			if len(resolved.Ignored) > 0 || len(resolved.Added) > 0 {
				t.Errorf("ignored %v, added %v", resolved.Ignored, resolved.Added)
			}
			for _, c := range sysno.Table(arch) {
				for _, args := range append(witnesses(p.rulesOf(c.Number)), [6]uint64{}) {
					got, want := resolved.Policy.Evaluate(c.Number, args), p.Evaluate(c.Number, args)
					if !called[c.Number] {
						if got.Admits() {
							t.Errorf("%s%v was not called: %s", c.Name, args, got)
						}
						continue
					}
					if got != want {
						t.Errorf("%s%v: %s, want %s", c.Name, args, got, want)
					}
				}
			}
		})
	}
}
