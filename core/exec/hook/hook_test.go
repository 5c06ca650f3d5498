package hook

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/plan"
	"github.com/nucleus-runtime/nucleus/internal/tail"
)

// script makes a hook's program.
func script(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "hook.sh")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func run(t *testing.T, h plan.Hook) error {
	t.Helper()
	f, err := Open(h)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	state, err := State("id", "creating", 7, "/bundle", "name")
	if err != nil {
		t.Fatal(err)
	}
	return Run(context.Background(), h, f, state)
}

func TestRunGivesStateArgumentsAndEnvironment(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out")
	path := script(t, `{ echo "$@"; env; cat; } >`+out)
	t.Setenv("HOOK_CANARY", "1")
	if err := run(t, plan.Hook{Phase: plan.HookCreateRuntime, Command: []string{path, "a", "b c"}, Env: []string{"K=v"}, Timeout: time.Minute}); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	if lines[0] != "a b c" || !slices.Contains(lines, "K=v") || strings.Contains(string(b), "HOOK_CANARY") {
		t.Errorf("the hook saw %q", b)
	}
	var state struct {
		ID, Status, Bundle string
		Pid                int
	}
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &state); err != nil || state.ID != "id" || state.Status != "creating" || state.Pid != 7 || state.Bundle != "/bundle" {
		t.Errorf("state %+v, %v", state, err)
	}
}

func TestRunTellsTheEndOfTheOutput(t *testing.T) {
	path := script(t, `i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done; echo last words >&2; exit 9`)
	err := run(t, plan.Hook{Phase: plan.HookPoststart, Command: []string{path}, Timeout: time.Minute})
	var he *Error
	if !errors.As(err, &he) || !strings.Contains(he.Error(), "exit status 9") || !strings.HasSuffix(he.Output, "last words") || len(he.Output) > tail.Size {
		t.Errorf("error %v", err)
	}
}

// What a hook leaves behind may keep its output open: that is no reason to wait.
func TestRunDoesNotWaitForWhatIsLeft(t *testing.T) {
	note := filepath.Join(t.TempDir(), "pid")
	path := script(t, "sleep 60 & echo $! >"+note)
	began := time.Now()
	if err := run(t, plan.Hook{Phase: plan.HookPoststart, Command: []string{path}, Timeout: time.Minute}); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("waited %s", took)
	}
	b, err := os.ReadFile(note)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Errorf("what it left behind: %v", err)
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	path := script(t, "exec sleep 60")
	f, err := Open(plan.Hook{Command: []string{path}})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cause := errors.New("not wanted any more")
	ctx, cancel := context.WithCancelCause(context.Background())
	time.AfterFunc(50*time.Millisecond, func() { cancel(cause) })
	if err := Run(ctx, plan.Hook{Command: []string{path}, Timeout: time.Minute}, f, nil); !errors.Is(err, cause) {
		t.Errorf("error %v, want %v", err, cause)
	}
}

func TestEnvKeepsAPath(t *testing.T) {
	if got := Env(plan.Hook{Env: []string{"PATH=/x"}}); !slices.Equal(got, []string{"PATH=/x"}) {
		t.Errorf("environment %q", got)
	}
	if got := Env(plan.Hook{}); !slices.Equal(got, []string{path}) {
		t.Errorf("environment %q", got)
	}
}
