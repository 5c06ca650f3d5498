package compile

import (
	"bytes"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	libseccomp "github.com/seccomp/libseccomp-golang"

	"github.com/nucleus-runtime/nucleus/core/security/seccomp"
	"github.com/nucleus-runtime/nucleus/core/security/seccomp/internal/sysno"
)

// The filters in the repository must be what their policies compile to. Another release of libseccomp may arrange a
// filter differently; then the committed one must still mean the same, and `go generate` brings the bytes up to date.
func TestEmbeddedFiltersAreNotStale(t *testing.T) {
	for _, goarch := range []string{"amd64", "arm64"} {
		def := seccomp.DefaultPolicy(goarch)
		for name, policy := range map[string]seccomp.Policy{"default": def, "init": seccomp.InitPolicy(def), "setid": seccomp.SetIDPolicy(goarch), "local": seccomp.LocalPolicy(goarch), "tcp": seccomp.TCPPolicy(goarch)} {
			t.Run(name+"_"+goarch, func(t *testing.T) {
				committed, err := os.ReadFile(filepath.Join("..", "filters", name+"_"+goarch+".bpf"))
				if err != nil {
					t.Fatal(err)
				}
				if err := seccomp.Verify(policy, committed); err != nil {
					t.Fatalf("run go generate in core/security/seccomp: %v", err)
				}
				if err := crossable(goarch); err != nil {
					return // verified above; only amd64 makes both
				}
				compiled, err := Policy(policy)
				if err != nil {
					t.Fatal(err)
				}
				if Version() == "2.5.4" && !bytes.Equal(compiled, committed) {
					t.Error("bytes differ from the committed filter: run go generate in core/security/seccomp")
				}
				again, err := Policy(policy)
				if err != nil || !bytes.Equal(compiled, again) {
					t.Errorf("compiling twice gives two filters (error %v)", err)
				}
			})
		}
	}
}

func TestTableAgreesWithLibseccomp(t *testing.T) {
	compared := 0
	for goarch, arch := range map[string]libseccomp.ScmpArch{"amd64": libseccomp.ArchAMD64, "arm64": libseccomp.ArchARM64} {
		for _, c := range sysno.Table(goarch) {
			number, err := libseccomp.GetSyscallFromNameByArch(c.Name, arch)
			if err != nil || number < 0 {
				continue // newer than this libseccomp
			}
			compared++
			if uint32(number) != c.Number {
				t.Errorf("%s %s: %d here, %d in libseccomp", goarch, c.Name, c.Number, number)
			}
		}
	}
	if compared < 600 {
		t.Errorf("only %d calls compared", compared)
	}
}

func number(t *testing.T, name string) uint32 {
	t.Helper()
	n, ok := sysno.Number(runtime.GOARCH, name)
	if !ok {
		t.Fatalf("no system call %s", name)
	}
	return n
}

// libseccomp drops conditional rules beside an unconditional one, and refuses rules with the default action. A policy may
// have both; Policy verifies what comes out.
func TestConditionsBesideAnUnconditionalRule(t *testing.T) {
	eperm := seccomp.Errno(syscall.EPERM)
	masked := func(arg uint8, value uint64) seccomp.Cond {
		return seccomp.Cond{Arg: arg, Op: seccomp.OpMaskedEqual, Value: 0xffffffff, Value2: value}
	}
	kill := number(t, "kill")
	for name, tc := range map[string]struct {
		defaultAction seccomp.Action
		rules         []seccomp.Rule
	}{
		"exception with default action": {eperm, []seccomp.Rule{
			{Number: kill, Action: seccomp.ActAllow},
			{Number: kill, Action: eperm, Conds: []seccomp.Cond{masked(1, 9)}},
		}},
		"exceptions on two arguments": {seccomp.Errno(syscall.ENOSYS), []seccomp.Rule{
			{Number: kill, Action: seccomp.ActAllow},
			{Number: kill, Action: eperm, Conds: []seccomp.Cond{masked(0, 1)}},
			{Number: kill, Action: eperm, Conds: []seccomp.Cond{masked(1, 9)}},
		}},
		"exception to a kill": {seccomp.ActAllow, []seccomp.Rule{
			{Number: kill, Action: seccomp.ActKillProcess},
			{Number: kill, Action: seccomp.ActAllow, Conds: []seccomp.Cond{masked(0, 1), masked(1, 9)}},
		}},
		"equality": {eperm, []seccomp.Rule{
			{Number: kill, Action: seccomp.ActLog},
			{Number: kill, Action: eperm, Conds: []seccomp.Cond{{Arg: 1, Op: seccomp.OpEqual, Value: 9}}},
			{Number: kill, Action: eperm, Conds: []seccomp.Cond{{Arg: 1, Op: seccomp.OpEqual, Value: 15}}},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			p := seccomp.Policy{Arch: runtime.GOARCH, Default: tc.defaultAction, Rules: tc.rules}
			if _, err := Policy(p); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestPolicyRefusesWhatItCannotCompile(t *testing.T) {
	kill := number(t, "kill")
	twice := []seccomp.Cond{{Arg: 1, Op: seccomp.OpGreater, Value: 1}, {Arg: 1, Op: seccomp.OpLess, Value: 9}}
	for name, tc := range map[string]struct {
		policy seccomp.Policy
		want   string
	}{
		"architecture":   {seccomp.Policy{Arch: "mips"}, "architecture"},
		"default action": {seccomp.Policy{Arch: runtime.GOARCH, Default: 0x12345678}, "default action"},
		"action":         {seccomp.Policy{Arch: runtime.GOARCH, Rules: []seccomp.Rule{{Number: kill, Action: 0x7fc00000}}}, "kill: action"},
		"argument":       {seccomp.Policy{Arch: runtime.GOARCH, Rules: []seccomp.Rule{{Number: kill, Conds: []seccomp.Cond{{Arg: 6, Op: seccomp.OpEqual}}}}}, "above 5"},
		"comparison":     {seccomp.Policy{Arch: runtime.GOARCH, Rules: []seccomp.Rule{{Number: kill, Conds: []seccomp.Cond{{}}}}}, "comparison 0"},
		"two conditions": {seccomp.Policy{Arch: runtime.GOARCH, Rules: []seccomp.Rule{{Number: kill, Conds: twice}}}, "two conditions"},
		"number":         {seccomp.Policy{Arch: runtime.GOARCH, Rules: []seccomp.Rule{{Number: 1 << 30}}}, "native table"},
		"order":          {seccomp.Policy{Arch: runtime.GOARCH, Rules: []seccomp.Rule{{Number: 5}, {Number: 4}}}, "order"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Policy(tc.policy)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want one with %q", err, tc.want)
			}
		})
	}
}
