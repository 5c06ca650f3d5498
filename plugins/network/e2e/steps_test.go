package e2e

import (
	"context"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/probe"
)

// failing is the build of nucleus that dies at the step that it is told.
func (s *site) failing() string {
	s.t.Helper()
	program := filepath.Join(s.who.bins, "nucleus-failpoint")
	build := exec.Command("go", "-C", "../../..", "build", "-tags", "failpoint,plugins,grpcnotrace", "-trimpath", "-o", program, "./cmd/nucleus")
	build.Env = append(build.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		s.t.Fatalf("%s: %v\n%s", build, err, out)
	}
	return program
}

// Wherever the supervisor dies, on the way up and down, gc leaves nothing of the bridge's
// network. (What netuserspace does is inside the sandbox, and is killed in test/chaos.)
func TestSupervisorDiesAtEachStep(t *testing.T) {
	sitesOf(t, []string{"netbridge/root"}, func(t *testing.T, s *site) {
		publish(s.lab)
		program := s.failing()
		before, files := s.settled()
		path := s.write(job{network: policy + published("127.0.0.1:8081", 8080, "tcp"), probes: []probe.Probe{{ID: "self", Kind: probe.Self}}})
		dies := func(t *testing.T, at string) (int, string) {
			t.Helper()
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			cmd := s.lab.Host.CommandAs(ctx, s.who.uid, s.who.gid, program, "run", "-host-config", s.conf, "-config", path)
			cmd.Env = append(s.who.env(), "NUCLEUS_FAIL_AT="+at)
			cmd.WaitDelay = 5 * time.Second
			out, err := cmd.CombinedOutput()
			return exitCode(t, cmd, err), string(out)
		}
		code, text := dies(t, "?")
		if code != 0 {
			t.Fatalf("exit code %d: %s", code, text)
		}
		var steps []string
		for line := range strings.Lines(text) {
			if step, ok := strings.CutPrefix(strings.TrimSpace(line), "failpoint: "); ok {
				steps = append(steps, step)
			}
		}
		if all := strings.Join(steps, ","); !strings.Contains(all, "network attaching") || !strings.Contains(all, "network attached") {
			t.Fatalf("no steps of the network's: %q", steps)
		}
		slices.Sort(steps)
		for _, step := range slices.Compact(steps) {
			t.Run(strings.ReplaceAll(step, " ", "-"), func(t *testing.T) {
				if code, text := dies(t, step); code != -int(unix.SIGKILL) {
					t.Errorf("exit code %d, want death by SIGKILL: %s", code, text)
				}
				step := *s
				step.t = t
				step.gone()
				step.left(before, files)
			})
		}
	})
}

// gone waits until nothing of the account runs any more.
func (s *site) gone() {
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end) && s.anyProcess(); {
		time.Sleep(20 * time.Millisecond)
	}
}
