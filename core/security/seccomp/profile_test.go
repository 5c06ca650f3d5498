package seccomp

import (
	"errors"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/nucleus-runtime/nucleus/core/security/seccomp/internal/sysno"
)

func parse(t *testing.T, text string) *Profile {
	t.Helper()
	p, err := ParseProfile("test.json", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func resolve(t *testing.T, r Request) Resolved {
	t.Helper()
	out, err := r.resolveFor("amd64")
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func evaluate(t *testing.T, p Policy, name string, args ...uint64) Action {
	t.Helper()
	n, ok := sysno.Number(p.Arch, name)
	if !ok {
		t.Fatalf("no system call %s", name)
	}
	var a [6]uint64
	copy(a[:], args)
	return p.Evaluate(n, a)
}

func TestParseProfileReportsTheLine(t *testing.T) {
	for name, tc := range map[string]struct {
		text string
		line int
		want string
	}{
		"empty":              {"", 1, "ends within"},
		"not an object":      {"[]", 1, `want "{"`},
		"cut off":            {"{\n\"defaultAction\": \"SCMP_ACT_ALLOW\",\n", 3, "ends within"},
		"syntax":             {"{\n\"defaultAction\": SCMP\n}", 2, "invalid character"},
		"unknown key":        {"{\n\"defaultActoin\": \"SCMP_ACT_ALLOW\"}", 2, `unknown key "defaultActoin"`},
		"repeated key":       {"{\"flags\": [],\n\n\"flags\": []}", 3, "twice"},
		"no default":         {"{}", 0, "defaultAction is missing"},
		"bad default":        {`{"defaultAction": "SCMP_ACT_DENY"}`, 1, "SCMP_ACT_DENY"},
		"trailing data":      {"{\"defaultAction\": \"SCMP_ACT_ALLOW\"}\n\n{}", 1, "more after"},
		"listener":           {"{\"defaultAction\": \"SCMP_ACT_ALLOW\",\n\"listenerPath\": \"/x\"}", 2, "listenerPath is not supported"},
		"listener metadata":  {`{"defaultAction": "SCMP_ACT_ALLOW", "listenerMetadata": "x"}`, 1, "not supported"},
		"unknown flag":       {`{"defaultAction": "SCMP_ACT_ALLOW", "flags": ["X"]}`, 1, `unknown flag "X"`},
		"listener flag":      {`{"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]}`, 1, "listener"},
		"both architectures": {`{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["A"], "archMap": [{}]}`, 1, "exclude"},
		"type of field":      {"{\n\"architectures\": 5}", 2, "number"},
		"rules not a list":   {"{\n\"syscalls\": {}}", 2, "not an array"},
		"notify":             {group(`"names": ["read"], "action": "SCMP_ACT_NOTIFY"`), 4, "SCMP_ACT_NOTIFY is not supported"},
		"unknown action":     {group(`"names": ["read"], "action": "ALLOW"`), 4, `"ALLOW"`},
		"key in rule":        {group(`"names": ["read"], "action": "SCMP_ACT_ALLOW", "arg": []`), 4, `unknown field "arg"`},
		"type in rule":       {group("\"names\": [\"read\"],\n\"action\": 1"), 5, "action holds a number"},
		"no names":           {group(`"action": "SCMP_ACT_ALLOW"`), 4, "no names"},
		"both names":         {group(`"name": "a", "names": ["b"], "action": "SCMP_ACT_ALLOW"`), 4, "exclude"},
		"argument index":     {group(`"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 6, "op": "SCMP_CMP_EQ"}]`), 4, "index 6"},
		"huge index":         {group(`"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 256, "op": "SCMP_CMP_EQ"}]`), 4, "index 256"},
		"comparison":         {group(`"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "op": "EQ"}]`), 4, `"EQ"`},
		"argument twice": {
			group(`"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 1, "op": "SCMP_CMP_GE"}, {"index": 1, "op": "SCMP_CMP_LE", "value": 9}]`),
			4, "two conditions on argument 1",
		},
		"errno too large":  {group(`"names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5000`), 4, "5000"},
		"errno name":       {group(`"names": ["read"], "action": "SCMP_ACT_ERRNO", "errno": "ENOPE"`), 4, `"ENOPE"`},
		"errno disagrees":  {group(`"names": ["read"], "action": "SCMP_ACT_ERRNO", "errno": "EPERM", "errnoRet": 2`), 4, "EPERM is 1"},
		"errno of allow":   {group(`"names": ["read"], "action": "SCMP_ACT_ALLOW", "errnoRet": 2`), 4, "takes no errno"},
		"kernel version":   {group(`"names": ["read"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "new"}`), 4, `"new"`},
		"negative errno":   {group(`"names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": -1`), 4, "number -1"},
		"argument too big": {group(`"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 18446744073709551616, "op": "SCMP_CMP_EQ"}]`), 4, "number"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseProfile("test.json", []byte(tc.text))
			var located *ProfileError
			if !errors.As(err, &located) {
				t.Fatalf("error %v", err)
			}
			if located.Line != tc.line || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("line %d: %v; want line %d with %q", located.Line, err, tc.line, tc.want)
			}
		})
	}
	if _, err := ParseProfile("big", make([]byte, maxProfileSize+1)); err == nil {
		t.Error("no limit on size")
	}
}

// group wraps a rule that starts on line 4.
func group(fields string) string {
	return "{\n\"defaultAction\": \"SCMP_ACT_ERRNO\",\n\"syscalls\": [\n{" + fields + "}\n]}"
}

// W27: default action, actions other than allow, and argument conditions of a profile were ignored.
func TestW27ProfileIsHonouredInFull(t *testing.T) {
	p := parse(t, `{
		"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 13,
		"flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_TSYNC"],
		"syscalls": [
			{"names": ["read", "write", "execve", "exit_group", "ioctl"], "action": "SCMP_ACT_ALLOW"},
			{"names": ["openat"], "action": "SCMP_ACT_LOG"},
			{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"},
			{"names": ["rmdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 30},
			{"names": ["unlink"], "action": "SCMP_ACT_ERRNO", "errno": "EROFS"},
			{"names": ["stat"], "action": "SCMP_ACT_TRAP"},
			{"names": ["lstat"], "action": "SCMP_ACT_TRACE", "errnoRet": 40000},
			{"names": ["link"], "action": "SCMP_ACT_KILL"},
			{"names": ["symlink"], "action": "SCMP_ACT_KILL_THREAD"},
			{"names": ["reboot"], "action": "SCMP_ACT_KILL_PROCESS"},
			{"name": "getpid", "action": "SCMP_ACT_ALLOW"},
			{"names": ["ioctl"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 1, "value": 4294967295, "valueTwo": 21522, "op": "SCMP_CMP_MASKED_EQ"}]},
			{"names": ["kill"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 7, "op": "SCMP_CMP_EQ"}, {"index": 1, "value": 9, "op": "SCMP_CMP_NE"}]},
			{"names": ["lseek"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 4, "op": "SCMP_CMP_LT"}]},
			{"names": ["dup"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 4, "op": "SCMP_CMP_LE"}]},
			{"names": ["dup3"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 4, "op": "SCMP_CMP_GT"}]},
			{"names": ["dup2"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 4, "op": "SCMP_CMP_GE"}]}
		]}`)
	out := resolve(t, Request{Profile: p})
	if out.Flags != flagLog|flagSpecAllow|flagTSync {
		t.Errorf("flags %#x", out.Flags)
	}
	if len(out.Added) != 0 || len(out.Ignored) != 0 {
		t.Errorf("added %v, ignored %v", out.Added, out.Ignored)
	}
	eacces, eperm := Errno(syscall.EACCES), Errno(syscall.EPERM)
	for _, tc := range []struct {
		name string
		args []uint64
		want Action
	}{
		{"read", nil, ActAllow},
		{"getpid", nil, ActAllow},
		{"clone3", nil, eacces},
		{"openat", nil, ActLog},
		{"mkdir", nil, eperm},
		{"rmdir", nil, Errno(syscall.EROFS)},
		{"unlink", nil, Errno(syscall.EROFS)},
		{"stat", nil, ActTrap},
		{"lstat", nil, ActTrace | 40000},
		{"link", nil, ActKillThread},
		{"symlink", nil, ActKillThread},
		{"reboot", nil, ActKillProcess},
		{"ioctl", []uint64{0, 1}, ActAllow},
		{"ioctl", []uint64{0, upper | 21522}, eperm},
		{"kill", []uint64{7, 15}, ActAllow},
		{"kill", []uint64{7, 9}, eacces},
		{"kill", []uint64{8, 15}, eacces},
		{"kill", []uint64{upper | 7, 15}, eacces},
		{"lseek", []uint64{3}, ActAllow},
		{"lseek", []uint64{4}, eacces},
		{"dup", []uint64{4}, ActAllow},
		{"dup", []uint64{5}, eacces},
		{"dup3", []uint64{5}, ActAllow},
		{"dup3", []uint64{4}, eacces},
		{"dup2", []uint64{4}, ActAllow},
		{"dup2", []uint64{3}, eacces},
	} {
		if got := evaluate(t, out.Policy, tc.name, tc.args...); got != tc.want {
			t.Errorf("%s %#x: %s, want %s", tc.name, tc.args, got, tc.want)
		}
	}
}

func TestIncludesAndExcludes(t *testing.T) {
	for name, tc := range map[string]struct {
		filter string
		caps   []string
		kernel Kernel
		want   bool
	}{
		"capability kept":        {`"includes": {"caps": ["CAP_SYS_CHROOT"]}`, []string{"SYS_CHROOT"}, Kernel{}, true},
		"capability not kept":    {`"includes": {"caps": ["CAP_SYS_CHROOT"]}`, nil, Kernel{}, false},
		"one of two kept":        {`"includes": {"caps": ["CAP_CHOWN", "CAP_KILL"]}`, []string{"CAP_KILL"}, Kernel{}, false},
		"excluded capability":    {`"excludes": {"caps": ["CAP_CHOWN", "CAP_KILL"]}`, []string{"CAP_KILL"}, Kernel{}, false},
		"excluded, not kept":     {`"excludes": {"caps": ["CAP_KILL"]}`, nil, Kernel{}, true},
		"architecture":           {`"includes": {"arches": ["arm", "amd64"]}`, nil, Kernel{}, true},
		"other architecture":     {`"includes": {"arches": ["arm64"]}`, nil, Kernel{}, false},
		"excluded architecture":  {`"excludes": {"arches": ["amd64"]}`, nil, Kernel{}, false},
		"kernel new enough":      {`"includes": {"minKernel": "4.8"}`, nil, Kernel{4, 8}, true},
		"kernel newer":           {`"includes": {"minKernel": "4.8"}`, nil, Kernel{5, 1}, true},
		"kernel too old":         {`"includes": {"minKernel": "4.8"}`, nil, Kernel{4, 7}, false},
		"kernel excluded":        {`"excludes": {"minKernel": "4.8"}`, nil, Kernel{6, 1}, false},
		"kernel below exclusion": {`"excludes": {"minKernel": "4.8"}`, nil, Kernel{3, 10}, true},
	} {
		t.Run(name, func(t *testing.T) {
			p := parse(t, group(`"names": ["chroot"], "action": "SCMP_ACT_ALLOW", `+tc.filter))
			out := resolve(t, Request{Profile: p, Caps: tc.caps, Kernel: tc.kernel})
			if got := evaluate(t, out.Policy, "chroot") == ActAllow; got != tc.want {
				t.Errorf("allowed %v, want %v", got, tc.want)
			}
		})
	}
}

func TestLauncherCallsAreAddedAndReported(t *testing.T) {
	out := resolve(t, Request{Profile: parse(t, group(`"names": ["read", "write"], "action": "SCMP_ACT_ALLOW"`))})
	if !slices.Equal(out.Added, []string{"execve", "exit_group"}) {
		t.Errorf("added %v", out.Added)
	}
	for _, name := range launcherCalls {
		if got := evaluate(t, out.Policy, name, ^uint64(0)); got != ActAllow {
			t.Errorf("%s: %s", name, got)
		}
	}
	out = resolve(t, Request{Profile: parse(t, group(`"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 0, "op": "SCMP_CMP_EQ"}]`))})
	if !slices.Contains(out.Added, "read") || evaluate(t, out.Policy, "read", 9) != ActAllow {
		t.Errorf("a conditional rule is not enough, and read was not added: %v", out.Added)
	}
	out = resolve(t, Request{Profile: parse(t, `{"defaultAction": "SCMP_ACT_ALLOW"}`)})
	if len(out.Added) != 0 {
		t.Errorf("added %v to a profile that allows everything", out.Added)
	}
}

func TestProfileThatRefusesTheLauncherIsAnError(t *testing.T) {
	for _, fields := range []string{
		`"names": ["execve"], "action": "SCMP_ACT_KILL"`,
		`"names": ["read"], "action": "SCMP_ACT_ERRNO"`,
		`"names": ["exit_group"], "action": "SCMP_ACT_TRAP", "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]`,
	} {
		_, err := Request{Profile: parse(t, group(fields))}.resolveFor("amd64")
		if err == nil || !strings.Contains(err.Error(), "every start needs") {
			t.Errorf("%s: error %v", fields, err)
		}
	}
}

func TestUnknownNames(t *testing.T) {
	out := resolve(t, Request{Profile: parse(t, group(`"names": ["read", "brandnew_call", "_llseek"], "action": "SCMP_ACT_ALLOW"`))})
	if !slices.Equal(out.Ignored, []string{`system call "brandnew_call": unknown`}) {
		t.Errorf("ignored %q", out.Ignored)
	}
	p := parse(t, group(`"names": ["ptrac"], "action": "SCMP_ACT_KILL"`))
	_, err := Request{Profile: p}.resolveFor("amd64")
	if err == nil || !strings.Contains(err.Error(), `line 4`) || !strings.Contains(err.Error(), `did you mean "ptrace"?`) {
		t.Errorf("error %v", err)
	}
	// A call of another architecture is no mistake.
	resolve(t, Request{Profile: parse(t, group(`"names": ["vm86", "oldstat"], "action": "SCMP_ACT_KILL"`))})
}

func TestForeignArchitecturesAreReported(t *testing.T) {
	for name, tc := range map[string]struct {
		fields string
		want   []string
	}{
		"list":   {`"architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]`, []string{"SCMP_ARCH_X86", "SCMP_ARCH_X32"}},
		"map":    {`"archMap": [{"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]}, {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}]`, []string{"SCMP_ARCH_X86"}},
		"native": {`"architectures": ["SCMP_ARCH_X86_64"]`, nil},
	} {
		t.Run(name, func(t *testing.T) {
			out := resolve(t, Request{Profile: parse(t, `{"defaultAction": "SCMP_ACT_ALLOW", `+tc.fields+`}`)})
			if len(out.Ignored) != len(tc.want) {
				t.Fatalf("ignored %q, want %q", out.Ignored, tc.want)
			}
			for i, arch := range tc.want {
				if !strings.Contains(out.Ignored[i], arch+":") {
					t.Errorf("ignored %q, want %q", out.Ignored[i], arch)
				}
			}
		})
	}
}

func TestContradictingRulesAreRefused(t *testing.T) {
	for name, rules := range map[string]string{
		"overlap on one argument": `{"names": ["kill"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 1, "value": 5, "op": "SCMP_CMP_GE"}]},
			{"names": ["kill"], "action": "SCMP_ACT_KILL", "args": [{"index": 1, "value": 9, "op": "SCMP_CMP_EQ"}]}`,
		"overlap across arguments": `{"names": ["kill"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 5, "op": "SCMP_CMP_EQ"}]},
			{"names": ["kill"], "action": "SCMP_ACT_KILL", "args": [{"index": 1, "value": 9, "op": "SCMP_CMP_EQ"}]}`,
	} {
		t.Run(name, func(t *testing.T) {
			p := parse(t, `{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [`+rules+`]}`)
			if _, err := (Request{Profile: p}).resolveFor("amd64"); !errors.Is(err, ErrAmbiguous) {
				t.Errorf("error %v", err)
			}
		})
	}
}

func TestFirstRuleForAllOfACallCounts(t *testing.T) {
	out := resolve(t, Request{Profile: parse(t, `{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
		{"names": ["mkdir"], "action": "SCMP_ACT_KILL"},
		{"names": ["mkdir", "read", "execve", "exit_group"], "action": "SCMP_ACT_ALLOW"},
		{"names": ["mkdir"], "action": "SCMP_ACT_KILL_THREAD"}]}`)})
	if got := evaluate(t, out.Policy, "mkdir"); got != ActKillThread {
		t.Errorf("mkdir: %s", got)
	}
	if len(out.Ignored) != 1 || !strings.Contains(out.Ignored[0], `line 3: "allow" for system call "mkdir": an earlier rule says "kill thread"`) {
		t.Errorf("ignored %q", out.Ignored)
	}
}

func TestManyRulesForOneCallAreBounded(t *testing.T) {
	many := func(n int) Policy {
		p := Policy{Arch: "amd64", Default: Errno(syscall.EPERM), Rules: []Rule{{Number: 16, Action: ActAllow}}}
		for i := range n {
			action := []Action{ActLog, ActTrap}[i%2]
			p.Rules = append(p.Rules, Rule{Number: 16, Action: action, Conds: []Cond{
				{Arg: 0, Op: OpEqual, Value: uint64(i) * 0x1_0000_0101}, {Arg: 1, Op: OpEqual, Value: uint64(i) * 7},
			}})
		}
		p.Normalize()
		return p
	}
	if err := many(200).Validate(); err != nil {
		t.Error(err)
	}
	if err := many(300).Validate(); err == nil {
		t.Error("300 rules pass")
	}
	p := many(200)
	p.Rules = append(p.Rules, Rule{Number: 16, Action: ActKillProcess, Conds: []Cond{{Arg: 1, Op: OpEqual, Value: 77 * 7}}})
	p.Normalize()
	if err := p.Validate(); !errors.Is(err, ErrAmbiguous) {
		t.Errorf("overlap of one among 200 rules: %v", err)
	}
}

func FuzzParseProfile(f *testing.F) {
	f.Add([]byte(`{"defaultAction": "SCMP_ACT_ALLOW"}`))
	f.Add([]byte(group(`"names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 2, "includes": {"minKernel": "4.8", "caps": ["CAP_KILL"]}`)))
	f.Add([]byte(group(`"names": ["kill", "clone"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 1, "value": 7, "valueTwo": 5, "op": "SCMP_CMP_MASKED_EQ"}]`)))
	f.Add([]byte(`{"defaultAction": "SCMP_ACT_KILL", "archMap": [{"architecture": "SCMP_ARCH_X86_64"}], "flags": ["SECCOMP_FILTER_FLAG_LOG"]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := ParseProfile("fuzz", data)
		if err != nil {
			var located *ProfileError
			if !errors.As(err, &located) || located.Line < 0 {
				t.Fatalf("error without a place: %v", err)
			}
			return
		}
		out, err := Request{Profile: p}.resolveFor("amd64")
		if err != nil {
			return
		}
		if err := out.Policy.Validate(); err != nil {
			t.Fatalf("resolved to an invalid policy: %v", err)
		}
		for _, name := range launcherCalls {
			n, _ := sysno.Number("amd64", name)
			if !out.Policy.Evaluate(n, [6]uint64{}).Admits() {
				t.Fatalf("%s is not admitted", name)
			}
		}
	})
}
