package core_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nucleus-runtime/nucleus/core"
	"github.com/nucleus-runtime/nucleus/core/exec/hook"
	"github.com/nucleus-runtime/nucleus/core/plan"
	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

// TestHooksOfManySandboxes: each sandbox has its own hooks, whatever runs beside,
// and a kill ends those that hang.
func TestHooksOfManySandboxes(t *testing.T) {
	testutil.Needs(t, testutil.UserNS)
	rt, err := core.New(options)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	phases := []string{plan.HookCreateRuntime, plan.HookCreateContainer, plan.HookStartContainer, plan.HookPoststart, plan.HookPoststop}
	var runs sync.WaitGroup
	for i := range 8 {
		runs.Go(func() {
			p := planOf(t, rt, "/bin/true")
			log := filepath.Join(dir, fmt.Sprint(i))
			for n, phase := range phases {
				script := "echo " + phase + " >>" + log
				if phase == plan.HookCreateContainer || phase == plan.HookStartContainer { // with the ids of the sandbox
					script = ":"
				}
				p.Hooks = append(p.Hooks, plan.Hook{Phase: phase, Command: []string{"/bin/sh", "-c", script}, Timeout: time.Minute, Origin: fmt.Sprintf("hook[%d]", n)})
			}
			if res, err := rt.Run(t.Context(), p, core.RunOptions{}); err != nil || res.ExitCode != 0 || res.HooksError != "" {
				t.Errorf("%d: %+v, %v", i, res, err)
			}
			b, err := os.ReadFile(log)
			if got, want := strings.Fields(string(b)), "createRuntime poststart poststop"; err != nil || strings.Join(got, " ") != want {
				t.Errorf("%d: hooks %q, %v; want %q", i, got, err, want)
			}
		})
		runs.Go(func() {
			p := planOf(t, rt, "/bin/true")
			p.Hooks = []plan.Hook{{Phase: phases[i%4], Command: []string{"/bin/sh", "-c", "exec sleep 60"}, Timeout: 200 * time.Millisecond, Origin: "hook[0]"}}
			_, err := rt.Run(t.Context(), p, core.RunOptions{})
			var he *hook.Error
			if !errors.As(err, &he) || he.Hook.Phase != phases[i%4] {
				t.Errorf("%s: error %v", phases[i%4], err)
			}
		})
	}
	runs.Wait()
}

// TestStopWhileStartHooksRun ends them, and the start.
func TestStopWhileStartHooksRun(t *testing.T) {
	testutil.Needs(t, testutil.UserNS)
	rt, err := core.New(options)
	if err != nil {
		t.Fatal(err)
	}
	p := planOf(t, rt, "/bin/true")
	p.Hooks = []plan.Hook{{Phase: plan.HookStartContainer, Command: []string{"/bin/sh", "-c", "exec sleep 60"}, Timeout: time.Minute, Origin: "hook[0]"}}
	s, err := rt.Create(t.Context(), p, core.RunOptions{})
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(100*time.Millisecond, s.Stop)
	if err := s.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "stopped before the workload ran") {
		t.Errorf("error %v", err)
	}
}
