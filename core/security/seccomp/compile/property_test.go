package compile

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/nucleus-runtime/nucleus/core/security/seccomp"
	"github.com/nucleus-runtime/nucleus/core/security/seccomp/internal/bpf"
)

const childEnv = "NUCLEUS_TEST_COMPILE"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) == "" {
		os.Exit(m.Run())
	}
	input, err := io.ReadAll(os.Stdin)
	if err == nil {
		var raw []byte
		if raw, err = seccomp.ServeHelper(input, Policy); err == nil {
			_, err = os.Stdout.Write(raw)
		}
	}
	if err != nil {
		fmt.Fprint(os.Stderr, err)
		os.Exit(1)
	}
}

// inChild compiles in a process of its own, as nucleus does: for some sets of overlapping ranges libseccomp 2.5 never
// returns from seccomp_rule_add.
func inChild(p seccomp.Policy) ([]byte, error) {
	input, err := json.Marshal(p)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = []string{childEnv + "=1"}
	cmd.Stdin = bytes.NewReader(input)
	var diag strings.Builder
	cmd.Stderr = &diag
	raw, err := cmd.Output()
	switch {
	case ctx.Err() != nil:
		return nil, errors.New("libseccomp hangs")
	case strings.Contains(diag.String(), seccomp.ErrAmbiguous.Error()):
		return nil, seccomp.ErrAmbiguous
	case strings.Contains(diag.String(), "compiled another policy"):
		return nil, errors.New("libseccomp compiles another policy")
	case err != nil:
		return nil, fmt.Errorf("%w: %s", err, diag.String())
	}
	return raw, nil
}

// Whatever rules go in: either an error comes out or a filter that agrees with the policy, also on arguments that Verify
// does not try.
func TestCompiledFilterMeansItsPolicy(t *testing.T) {
	actions := []seccomp.Action{
		seccomp.ActAllow, seccomp.ActLog, seccomp.Errno(syscall.EPERM), seccomp.Errno(syscall.ENOSYS), seccomp.ActTrap, seccomp.ActKillProcess,
	}
	arch := uint32(0xc000003e)
	if runtime.GOARCH == "arm64" {
		arch = 0xc00000b7
	}
	compiled, refused := 0, map[string]int{}
	rapid.Check(t, func(t *rapid.T) {
		value := rapid.SampledFrom([]uint64{0, 1, 2, 7, 8, 0x5412, 1 << 31, 0xffffffff, 1 << 32, 1<<32 | 7, 1 << 63, ^uint64(0)})
		cond := rapid.Custom(func(t *rapid.T) seccomp.Cond {
			c := seccomp.Cond{Arg: rapid.Uint8Range(0, 2).Draw(t, "arg"), Op: seccomp.Op(rapid.IntRange(1, 7).Draw(t, "op")), Value: value.Draw(t, "value")}
			if c.Op == seccomp.OpMaskedEqual {
				c.Value2 = value.Draw(t, "value2") & c.Value
			}
			return c
		})
		p := seccomp.Policy{Arch: runtime.GOARCH, Default: rapid.SampledFrom(actions).Draw(t, "default")}
		for _, n := range rapid.SliceOfNDistinct(rapid.Uint32Range(0, 300), 1, 6, rapid.ID[uint32]).Draw(t, "numbers") {
			// Conditional rules of one call mostly agree, or nearly all policies would be ambiguous.
			often := rapid.SampledFrom(actions).Draw(t, "often")
			for range rapid.IntRange(1, 4).Draw(t, "rules") {
				r := seccomp.Rule{Number: n, Action: often, Conds: rapid.SliceOfNDistinct(cond, 0, 2, func(c seccomp.Cond) uint8 { return c.Arg }).Draw(t, "conds")}
				if len(r.Conds) == 0 || rapid.IntRange(0, 9).Draw(t, "differ") == 0 {
					r.Action = rapid.SampledFrom(actions).Draw(t, "action")
				}
				p.Rules = append(p.Rules, r)
			}
		}
		p.Normalize()
		raw, err := inChild(p)
		if err != nil {
			refused[err.Error()]++
			return
		}
		compiled++
		program, err := bpf.Parse(raw)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range p.Rules {
			for range 20 {
				var args [6]uint64
				for i := range 3 {
					args[i] = value.Draw(t, "try")
				}
				got, _ := program.Run(bpf.Data{Number: r.Number, Arch: arch, Args: args})
				if want := p.Evaluate(r.Number, args); seccomp.Action(got) != want {
					t.Fatalf("call %d %#x: filter %s, policy %s", r.Number, args, seccomp.Action(got), want)
				}
			}
		}
	})
	t.Logf("compiled %d; refused %v", compiled, refused)
	if compiled == 0 {
		t.Error("nothing was compiled")
	}
}
