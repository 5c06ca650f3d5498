package script

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/nucleus-runtime/nucleus/core"
	"github.com/nucleus-runtime/nucleus/core/job"
	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

// W5 and W6: the predecessor's two-phase start could not work, and its workload
// was let go before its policy existed. Between Create and Start of ours
// everything is on, and the workload has not run.
func TestW05W06StartGate(t *testing.T) {
	testutil.Needs(t, testutil.UserNS)
	ctx := context.Background()
	s, work := created(t)
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.Pid()))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{`Seccomp:\t2`, `NoNewPrivs:\t1`, `CapEff:\t0{16}`, `CapBnd:\t0{16}`} {
		if !regexp.MustCompile(`(?m)^` + line + `$`).Match(status) {
			t.Errorf("before the start gate opens, status lacks %s:\n%s", line, status)
		}
	}
	if _, err := os.Stat(filepath.Join(work, "ran")); err == nil {
		t.Error("the workload ran before its start")
	}
	if err := s.Start(ctx); err != nil {
		t.Fatal(err)
	}
	result, err := s.Wait()
	if err != nil || result.ExitCode != 0 {
		t.Fatalf("exit code %d, cause %s: %v", result.ExitCode, result.Cause, err)
	}
	if _, err := os.Stat(filepath.Join(work, "ran")); err != nil {
		t.Errorf("the workload did not run: %v", err)
	}
}

// A sandbox that was created and is destroyed has never run its workload.
func TestDestroyedBeforeStart(t *testing.T) {
	testutil.Needs(t, testutil.UserNS)
	s, work := created(t)
	if err := s.Destroy(context.Background()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(work, "ran")); err == nil {
		t.Error("the workload ran")
	}
	if _, err := os.Stat(fmt.Sprintf("/proc/%d", s.Pid())); err == nil {
		t.Error("stage 2 is still there")
	}
}

// created makes a sandbox whose workload would leave a file in its workspace.
func created(t *testing.T) (*core.Sandbox, string) {
	t.Helper()
	self := testutil.Self(t)
	work := filepath.Join(self.Dir, "work")
	if err := os.Mkdir(work, 0o755); err != nil {
		t.Fatal(err)
	}
	state := filepath.Join(self.Dir, "state")
	rt, err := core.New(core.Options{StateRoot: state, Libexec: self.Bin})
	if err != nil {
		t.Fatal(err)
	}
	testutil.NoLeaks(t, testutil.Scope{Binaries: []string{self.Bin}, Files: []string{filepath.Join(state, "sandboxes"), filepath.Join(state, "names")}})
	src := fmt.Sprintf("job %q {\n  command = [\"touch\", \"/workspace/ran\"]\n  workspace { path = %q }\n}\n", "gate", work)
	j, diags := job.Parse("gate.hcl", []byte(src), job.Options{Dir: self.Dir})
	if diags.HasErrors() {
		t.Fatal(diags)
	}
	p, err := rt.Plan(j)
	if err != nil {
		t.Fatal(err)
	}
	s, err := rt.Create(context.Background(), p, core.RunOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return s, work
}
