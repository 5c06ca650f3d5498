package security

import (
	"fmt"
	"strings"
	"testing"

	"github.com/moby/sys/capability"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/initproto"
	"github.com/nucleus-runtime/nucleus/core/plan"
)

func TestCapBits(t *testing.T) {
	for _, c := range []struct {
		names []string
		want  uint64
		err   string
	}{
		{nil, 0, ""},
		{[]string{"CAP_CHOWN"}, 1 << unix.CAP_CHOWN, ""},
		{[]string{"CAP_NET_BIND_SERVICE", "CAP_SYS_TIME"}, 1<<unix.CAP_NET_BIND_SERVICE | 1<<unix.CAP_SYS_TIME, ""},
		{[]string{"CAP_CHOWN", "CAP_CHOWN"}, 1, ""},
		{[]string{"CAP_NOTHING"}, 0, `capability "CAP_NOTHING": unknown`},
		{[]string{"cap_chown"}, 0, "unknown"},
		{[]string{"CHOWN"}, 0, "unknown"},
		{[]string{""}, 0, "unknown"},
	} {
		got, err := capBits(c.names)
		if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) || got != c.want {
			t.Errorf("%v: %#x, %v", c.names, got, err)
		}
	}
}

// TestEveryCapabilityHasItsBit compares with the numbers of the kernel's header.
func TestEveryCapabilityHasItsBit(t *testing.T) {
	seen := uint64(0)
	for _, c := range capability.ListKnown() {
		if uint64(c) > LastCap() {
			continue
		}
		name := "CAP_" + strings.ToUpper(c.String())
		bits, err := capBits([]string{name})
		if err != nil || bits != 1<<uint(c) {
			t.Errorf("%s: %#x, %v", name, bits, err)
		}
		seen |= bits
	}
	if seen&(1<<unix.CAP_SYS_ADMIN|1<<unix.CAP_CHOWN) == 0 || LastCap() < unix.CAP_AUDIT_READ {
		t.Errorf("capabilities %#x up to %d", seen, LastCap())
	}
}

func planOf(change func(*plan.Plan)) *plan.Plan {
	umask := uint32(0o027)
	p := &plan.Plan{ExecPaths: []string{"/bin/a", "/usr/bin/a"}, IDs: plan.IDs{SetGroups: true}}
	p.Process = specs.Process{
		Args: []string{"a", "b"}, Env: []string{"A=1"}, Cwd: "/w", Terminal: true,
		User: specs.User{UID: 7, GID: 8, AdditionalGids: []uint32{9}, Umask: &umask}, Capabilities: &specs.LinuxCapabilities{},
	}
	if change != nil {
		change(p)
	}
	return p
}

func TestProcess(t *testing.T) {
	got, err := Process(planOf(nil))
	if err != nil {
		t.Fatal(err)
	}
	want := "[/bin/a /usr/bin/a] [a b] [A=1] /w 7:8 [9] true 27 true true"
	if text := fmt.Sprint(got.Paths, got.Args, got.Env, " ", got.Cwd, " ", got.UID, ":", got.GID, " ", got.Groups, " ", got.SetGroups, " ", fmt.Sprintf("%o", got.Umask), " ", got.TTY, " ", got.NewKeyring); strings.ReplaceAll(text, "][", "] [") != want {
		t.Errorf("got  %s\nwant %s", text, want)
	}
	if got.Caps != (initproto.Caps{}) {
		t.Errorf("capabilities are kept: %+v", got.Caps)
	}
}

// TestEachSetIsItsOwn: the five capability sets are not mixed up.
func TestEachSetIsItsOwn(t *testing.T) {
	got, err := Process(planOf(func(p *plan.Plan) {
		p.Process.Capabilities = &specs.LinuxCapabilities{
			Bounding: []string{"CAP_CHOWN"}, Effective: []string{"CAP_KILL"}, Permitted: []string{"CAP_SETUID"}, Inheritable: []string{"CAP_SETGID"}, Ambient: []string{"CAP_SYS_TIME"},
		}
	}))
	if err != nil {
		t.Fatal(err)
	}
	want := initproto.Caps{Bounding: 1 << unix.CAP_CHOWN, Effective: 1 << unix.CAP_KILL, Permitted: 1 << unix.CAP_SETUID, Inheritable: 1 << unix.CAP_SETGID, Ambient: 1 << unix.CAP_SYS_TIME}
	if got.Caps != want {
		t.Errorf("%+v", got.Caps)
	}
}

func TestWhatCannotBeCompiledIsAnError(t *testing.T) {
	if _, err := Process(planOf(func(p *plan.Plan) { p.Process.Capabilities.Ambient = []string{"CAP_X"} })); err == nil {
		t.Error("an unknown capability is left out")
	}
	if _, err := Process(planOf(func(p *plan.Plan) { p.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_X"}} })); err == nil || !strings.Contains(err.Error(), `"RLIMIT_X": unknown`) {
		t.Errorf("an unknown limit: %v", err)
	}
}

func TestRlimitNumbers(t *testing.T) {
	for name, want := range map[string]uint32{"RLIMIT_CPU": 0, "RLIMIT_FSIZE": 1, "RLIMIT_DATA": 2, "RLIMIT_STACK": 3, "RLIMIT_CORE": 4, "RLIMIT_RSS": 5, "RLIMIT_NPROC": 6, "RLIMIT_NOFILE": 7, "RLIMIT_MEMLOCK": 8, "RLIMIT_AS": 9, "RLIMIT_LOCKS": 10, "RLIMIT_SIGPENDING": 11, "RLIMIT_MSGQUEUE": 12, "RLIMIT_NICE": 13, "RLIMIT_RTPRIO": 14, "RLIMIT_RTTIME": 15} {
		got, err := Process(planOf(func(p *plan.Plan) { p.Process.Rlimits = []specs.POSIXRlimit{{Type: name, Soft: 1, Hard: 2}} }))
		if err != nil || len(got.Rlimits) == 0 || got.Rlimits[0] != (initproto.Rlimit{Resource: want, Soft: 1, Hard: 2}) {
			t.Errorf("%s: %+v, %v", name, got.Rlimits, err)
		}
		if limitNames[want] == "" {
			t.Errorf("%s has no row in /proc/PID/limits", name)
		}
	}
}

func TestWhatTheCallerSharesIsLowered(t *testing.T) {
	const all = unix.RLIM_INFINITY
	for _, x := range []struct {
		resource  uint32
		own, want unix.Rlimit
	}{
		{unix.RLIMIT_NOFILE, unix.Rlimit{Cur: 1024, Max: 1 << 20}, unix.Rlimit{Cur: 1024, Max: 1<<20 - reservedFiles}},
		{unix.RLIMIT_NOFILE, unix.Rlimit{Cur: 20000, Max: 20000}, unix.Rlimit{Cur: 20000 - reservedFiles, Max: 20000 - reservedFiles}},
		{unix.RLIMIT_NOFILE, unix.Rlimit{Cur: 1024, Max: 1024}, unix.Rlimit{Cur: 768, Max: 768}},
		{unix.RLIMIT_NOFILE, unix.Rlimit{Cur: 64, Max: all}, unix.Rlimit{Cur: 64, Max: all}},
		{unix.RLIMIT_SIGPENDING, unix.Rlimit{Cur: 96365, Max: 96365}, unix.Rlimit{Cur: 1024, Max: 1024}},
		{unix.RLIMIT_SIGPENDING, unix.Rlimit{Cur: 10, Max: 3900}, unix.Rlimit{Cur: 10, Max: 128}},
		{unix.RLIMIT_SIGPENDING, unix.Rlimit{Cur: 16000, Max: 16000}, unix.Rlimit{Cur: 250, Max: 250}},
		{unix.RLIMIT_SIGPENDING, unix.Rlimit{Cur: all, Max: all}, unix.Rlimit{Cur: 1024, Max: 1024}},
		{unix.RLIMIT_SIGPENDING, unix.Rlimit{Cur: 5, Max: 7}, unix.Rlimit{Cur: 5, Max: 7}},
		{unix.RLIMIT_MSGQUEUE, unix.Rlimit{Cur: 819200, Max: 819200}, unix.Rlimit{Cur: 204800, Max: 204800}},
		{unix.RLIMIT_MSGQUEUE, unix.Rlimit{Cur: all, Max: all}, unix.Rlimit{Cur: all, Max: all}},
		{unix.RLIMIT_CPU, unix.Rlimit{Cur: 5, Max: all}, unix.Rlimit{Cur: 5, Max: all}},
	} {
		if got := lower(x.resource, x.own); got != x.want {
			t.Errorf("of limit %d, %v: %v, want %v", x.resource, x.own, got, x.want)
		}
	}
	for what, rs := range map[string][]specs.POSIXRlimit{"none": nil, "another": {{Type: "RLIMIT_CORE"}}} {
		got, err := Process(planOf(func(p *plan.Plan) { p.Process.Rlimits = rs }))
		if err != nil || len(got.Rlimits) != len(rs)+len(lowered) {
			t.Errorf("%s: %+v, %v", what, got.Rlimits, err)
			continue
		}
		for i, name := range []string{"RLIMIT_NOFILE", "RLIMIT_SIGPENDING", "RLIMIT_MSGQUEUE"} {
			soft, hard, ok := Inherited(name)
			if r := got.Rlimits[len(rs)+i]; !ok || r != (initproto.Rlimit{Resource: rlimits[name], Soft: soft, Hard: hard}) {
				t.Errorf("%s: %s is %+v, and what is inherited %d, %d", what, name, r, soft, hard)
			}
		}
	}
	got, err := Process(planOf(func(p *plan.Plan) {
		p.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_SIGPENDING", Soft: 5, Hard: 90000}}
	}))
	if err != nil || len(got.Rlimits) != len(lowered) || got.Rlimits[0].Hard != 90000 {
		t.Errorf("what the job says: %+v, %v", got.Rlimits, err)
	}
}

// TestInitKeepsWhatSpawningNeeds, and what its children are to have.
func TestInitKeepsWhatSpawningNeeds(t *testing.T) {
	p := initproto.Process{Caps: initproto.Caps{Bounding: 1 << unix.CAP_NET_BIND_SERVICE, Permitted: 1 << unix.CAP_SYS_TIME}}
	got := InitCaps(p)
	for _, c := range []uint{unix.CAP_SETUID, unix.CAP_SETGID, unix.CAP_SETPCAP, unix.CAP_KILL, unix.CAP_NET_BIND_SERVICE, unix.CAP_SYS_TIME} {
		if got&(1<<c) == 0 {
			t.Errorf("capability %d is missing", c)
		}
	}
	for _, c := range []uint{unix.CAP_SYS_ADMIN, unix.CAP_SYS_PTRACE, unix.CAP_DAC_OVERRIDE, unix.CAP_NET_ADMIN, unix.CAP_MKNOD} {
		if InitCaps(initproto.Process{})&(1<<c) != 0 {
			t.Errorf("init keeps capability %d", c)
		}
	}
}

func TestLandlockIsCompiled(t *testing.T) {
	p := &plan.Plan{Landlock: plan.Landlock{
		ABI: 7, HandledFS: 0xffff, Scoped: 3, HandledNet: 3,
		Rules: []plan.LandlockRule{{Path: "/", Rights: 5, Entries: true}, {Path: "/data", Rights: 6}, {Path: "/opt", Rights: 7, Optional: true}},
		Ports: []plan.LandlockPort{{Port: 443, Rights: 2}},
	}}
	got := Landlock(p, []string{"/bin", "/etc"})
	want := []initproto.PathRule{{Path: "/bin", Access: 5, Optional: true}, {Path: "/etc", Access: 5, Optional: true}, {Path: "/data", Access: 6}, {Path: "/opt", Access: 7, Optional: true}}
	if fmt.Sprint(got.Rules) != fmt.Sprint(want) {
		t.Errorf("got  %v\nwant %v", got.Rules, want)
	}
	if got.ABI != 7 || got.HandledFS != 0xffff || got.Scoped != 3 || got.HandledNet != 3 || len(got.Ports) != 1 || got.Ports[0] != (initproto.PortRule{Port: 443, Access: 2}) {
		t.Errorf("%+v", got)
	}
	for _, r := range Landlock(p, nil).Rules {
		if r.Path == "/" {
			t.Error("a rule for the entries of the root became one for the root (W32)")
		}
	}
}
