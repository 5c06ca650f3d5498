package core_test

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/nucleus-runtime/nucleus/core"
	"github.com/nucleus-runtime/nucleus/core/plan"
	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

// restarted makes and starts a sandbox that fails each time, and tells what the caller
// was told.
func restarted(t *testing.T, policy plan.Restart, again func(*core.Sandbox, core.Restarting)) (core.Result, []string) {
	t.Helper()
	testutil.Needs(t, testutil.UserNS)
	rt, err := core.New(options)
	if err != nil {
		t.Fatal(err)
	}
	p := planOf(t, rt, "/bin/sh", "-c", "exit 7")
	p.Restart = &policy
	var told []string
	made := make(chan *core.Sandbox, 1)
	s, err := rt.Create(t.Context(), p, core.RunOptions{
		Pid: func(pid int) error {
			if pid == 0 {
				told = append(told, "gone")
				return nil
			}
			if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err != nil {
				return err
			}
			told = append(told, "pid")
			return nil
		},
		Again: func(r core.Restarting) {
			told = append(told, fmt.Sprintf("%d exit %d, %s", r.Count, r.Result.ExitCode, r.Wait))
			s := <-made
			made <- s
			again(s, r)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	made <- s
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	res, err := s.Wait()
	if err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(options.StateRoot + "/sandboxes/" + s.ID()); err == nil {
		t.Error("its directory is left")
	}
	return res, told
}

func TestRestartsAreTold(t *testing.T) {
	res, told := restarted(t, plan.Restart{On: "failure", Attempts: 2, Backoff: time.Millisecond}, func(*core.Sandbox, core.Restarting) {})
	if res.Cause != "exit" || res.ExitCode != 7 || res.Restarts != 2 {
		t.Errorf("%+v", res)
	}
	if got, want := fmt.Sprint(told), "[pid gone 1 exit 7, 1ms pid gone 2 exit 7, 2ms pid gone]"; got != want {
		t.Errorf("told %s\nwant %s", got, want)
	}
}

// A stop while there is no workload ends the sandbox at once, with the truth of its last run.
func TestStopBetweenTwoRuns(t *testing.T) {
	res, told := restarted(t, plan.Restart{On: "failure", Attempts: 2, Backoff: time.Hour}, func(s *core.Sandbox, _ core.Restarting) { s.Stop() })
	if res.Cause != "exit" || res.ExitCode != 7 || res.Restarts != 0 {
		t.Errorf("%+v", res)
	}
	if got, want := fmt.Sprint(told), "[pid gone 1 exit 7, 1h0m0s gone]"; got != want {
		t.Errorf("told %s\nwant %s", got, want)
	}
}

// Who asks for a restart does not wait for the policy, and the next end is the policy's
// again.
func TestRestartIsAskedForOnce(t *testing.T) {
	asked := make(chan error, 1)
	res, _ := restarted(t, plan.Restart{On: "failure", Attempts: 2, Backoff: time.Hour}, func(s *core.Sandbox, r core.Restarting) {
		if r.Count == 1 {
			go func() { asked <- s.Restart(context.Background()) }()
			return
		}
		s.Kill()
	})
	if err := <-asked; err != nil {
		t.Error(err)
	}
	if res.ExitCode != 7 || res.Restarts != 1 {
		t.Errorf("%+v", res)
	}
}
