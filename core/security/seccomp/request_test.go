package seccomp

import (
	"errors"
	"slices"
	"strings"
	"syscall"
	"testing"
)

func TestAllowOpensNamedCalls(t *testing.T) {
	out := resolve(t, Request{Allow: []string{"io_uring_setup", "ptrace", "socket", "read"}})
	for _, name := range []string{"io_uring_setup", "ptrace", "socket"} {
		if got := evaluate(t, out.Policy, name, 40, ^uint64(0)); got != ActAllow {
			t.Errorf("%s: %s", name, got)
		}
	}
	if got := evaluate(t, out.Policy, "io_uring_enter"); got != Errno(syscall.ENOSYS) {
		t.Errorf("io_uring_enter came along: %s", got)
	}
	if out.Name != "default+allow" || len(out.Added) != 0 {
		t.Errorf("%q added %v", out.Name, out.Added)
	}
	onARM, err := Request{Allow: []string{"open"}}.resolveFor("arm64")
	if err != nil || len(onARM.Ignored) != 1 || onARM.Policy.Digest() != DefaultPolicy("arm64").Digest() {
		t.Errorf("a call that arm64 lacks: ignored %q, error %v", onARM.Ignored, err)
	}
}

func TestAllowRefusesAndReportsEachName(t *testing.T) {
	_, err := Request{Allow: []string{"kexec_load", "unshare", "clone3", "ptrce", "init_module", "setns", "clone", "ioctl", "bpf"}}.resolveFor("amd64")
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{
		`"kexec_load": it acts on the whole machine`, `"init_module"`, `"unshare": it makes user namespaces`, `"setns"`,
		`"clone3": its flags are in memory`, `"clone": it is already allowed`, `"ioctl"`, `"ptrce": there is no such call; did you mean "ptrace"?`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error lacks %q:\n%v", want, err)
		}
	}
	if strings.Contains(err.Error(), `"bpf"`) {
		t.Errorf("bpf is refused: %v", err)
	}
	var refused *AllowError
	if !errors.As(err, &refused) {
		t.Errorf("error of type %T", err)
	}
}

func TestCapabilitiesOpenTheirCalls(t *testing.T) {
	for capability, opened := range map[string]string{
		"SYS_CHROOT": "chroot", "CAP_SYS_PTRACE": "ptrace", "sys_nice": "mbind", "SYS_TIME": "clock_settime",
		"SYSLOG": "syslog", "SYS_TTY_CONFIG": "vhangup",
	} {
		if got := evaluate(t, resolve(t, Request{}).Policy, opened); got.Admits() {
			t.Errorf("%s is open without %s", opened, capability)
		}
		if got := evaluate(t, resolve(t, Request{Caps: []string{capability}}).Policy, opened); got != ActAllow {
			t.Errorf("%s with %s: %s", opened, capability, got)
		}
	}
	// The doors out of a sandbox stay shut for the capabilities that are broad.
	out := resolve(t, Request{Caps: []string{"SYS_ADMIN", "BPF", "DAC_READ_SEARCH", "SYS_MODULE", "SYS_BOOT", "PERFMON"}})
	if out.Policy.Digest() != DefaultPolicy("amd64").Digest() {
		t.Error("broad capabilities open calls")
	}
}

func TestRequestDigest(t *testing.T) {
	profile := func(text string) *Profile { return parse(t, text) }
	const text = `{"defaultAction": "SCMP_ACT_ALLOW"}`
	base := Request{Profile: profile(text), Allow: []string{"bpf", "ptrace"}, Caps: []string{"KILL"}}
	same := Request{Profile: profile(text), Allow: []string{"ptrace", "bpf", "bpf"}, Caps: []string{"CAP_KILL"}}
	same.Profile.Name = "elsewhere.json"
	if base.Digest() != same.Digest() {
		t.Error("order, spelling or the file's name change the digest")
	}
	different := []Request{
		{},
		{Profile: base.Profile, Allow: base.Allow},
		{Profile: base.Profile, Allow: base.Allow, Caps: base.Caps, Kernel: Kernel{6, 1}},
		{Profile: profile(`{"defaultAction": "SCMP_ACT_LOG"}`), Allow: base.Allow, Caps: base.Caps},
		{Profile: base.Profile, Allow: []string{"bpf"}, Caps: base.Caps},
	}
	seen := []string{base.Digest()}
	for i, r := range different {
		if slices.Contains(seen, r.Digest()) {
			t.Errorf("request %d has the digest of another", i)
		}
		seen = append(seen, r.Digest())
	}
}

func TestInitPolicyGivesWay(t *testing.T) {
	kills := parse(t, group(`"names": ["reboot", "read"], "action": "SCMP_ACT_ALLOW"`))
	own := InitPolicy(resolve(t, Request{Profile: kills}).Policy)
	for name, want := range map[string]Action{
		"reboot":      ActAllow,              // the profile allows it
		"init_module": Errno(syscall.EPERM),  // the profile fails it, so init must not kill
		"unshare":     Errno(syscall.EPERM),  // both fail it
		"keyctl":      Errno(syscall.ENOSYS), // both fail it
	} {
		if got := evaluate(t, own, name); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	own = InitPolicy(resolve(t, Request{Allow: []string{"ptrace"}}).Policy)
	if got := evaluate(t, own, "ptrace"); got != ActAllow {
		t.Errorf("ptrace is allowed to the workload, and init says %s", got)
	}
	own = InitPolicy(resolve(t, Request{Profile: parse(t, `{"defaultAction": "SCMP_ACT_ALLOW"}`)}).Policy)
	if len(own.Rules) != 0 {
		t.Errorf("a workload without a filter is under %d rules of init", len(own.Rules))
	}
}

func TestParseKernel(t *testing.T) {
	for text, want := range map[string]Kernel{
		"6.1.0-13-amd64": {6, 1}, "4.8": {4, 8}, "5.10.1": {5, 10}, "6.18-rc1": {6, 18},
	} {
		if got, err := ParseKernel(text); err != nil || got != want {
			t.Errorf("%s: %v %v", text, got, err)
		}
	}
	for _, text := range []string{"", "6", "6.", "x.y", "-1.2", "999999.1"} {
		if got, err := ParseKernel(text); err == nil {
			t.Errorf("%q is read as %v", text, got)
		}
	}
}

func BenchmarkResolveDefault(b *testing.B) {
	for b.Loop() {
		if _, err := (Request{}).Resolve(); err != nil {
			b.Fatal(err)
		}
	}
}
