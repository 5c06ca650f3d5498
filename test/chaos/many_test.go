package chaos

import (
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

func TestThousandInARow(t *testing.T) {
	sites(t, func(s *site) {
		runs := 1000
		if strings.HasSuffix(s.t.Name(), "/plain") {
			runs = 200 // another ordinary user has had its thousand
		}
		began := time.Now()
		for i := range runs {
			if code, out := s.try("run", "--", "/bin/sh", "-c", "exit "+strconv.Itoa(i%126)); code != i%126 {
				s.t.Fatalf("run %d: exit code %d, want %d: %s", i, code, i%126, out)
			}
		}
		s.t.Logf("%d runs in %s", runs, time.Since(began))
		s.nothingLeft("after all runs")
	})
}

func TestSixtyFourAtOnce(t *testing.T) {
	sites(t, func(s *site) {
		var runs [64]running
		for i := range runs {
			runs[i] = s.start("run", "--", "/bin/sh", "-c", fmt.Sprintf("echo %d; sleep 0.3; exit %d", i, i))
		}
		for i, r := range runs {
			if code, out := s.wait(r), strings.TrimSpace(r.out.String()); code != i || out != strconv.Itoa(i) {
				s.t.Errorf("sandbox %d: exit code %d, output %q", i, code, out)
			}
		}
		s.nothingLeft("after all runs")
	})
}

// gc and the start of others do no harm to the living, and two collectors none
// to each other.
func TestCollectorsBesideTheLiving(t *testing.T) {
	sites(t, func(s *site) {
		var live [8]running
		for i := range live {
			live[i] = s.start("run", "-name", "live-"+strconv.Itoa(i), "--", "/bin/sh", "-c", fmt.Sprintf("sleep 1.5 & wait; exit %d", 40+i))
			s.workload(live[i])
		}
		stop := make(chan struct{})
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					cmd := s.who.Command("nucleus", "gc")
					cmd.Env = append(cmd.Env, "NUCLEUS_STATE_ROOT="+s.root)
					if out, err := cmd.CombinedOutput(); err != nil {
						s.t.Errorf("gc: %v: %s", err, out)
						return
					}
				}
			})
		}
		dead := s.start("run", "--", "/bin/sh", "-c", "sleep 20")
		s.workload(dead)
		_ = dead.cmd.Process.Kill()
		_ = s.wait(dead)
		for i, r := range live {
			if code := s.wait(r); code != 40+i {
				s.t.Errorf("sandbox %d: exit code %d, want %d: %s", i, code, 40+i, r.out)
			}
		}
		close(stop)
		wg.Wait()
		s.gc("one killed among eight")
	})
}

func TestCollectorOfAnotherUser(t *testing.T) {
	testutil.Needs(t, testutil.Root)
	owner := newSite(t, testutil.Self(t))
	other := newSite(t, testutil.User(t))
	r := owner.start("run", "--", "/bin/sh", "-c", "sleep 20")
	owner.workload(r)
	_ = r.cmd.Process.Kill()
	_ = owner.wait(r)
	owner.quiet()
	// An open door to the directory's place does not help, either.
	for _, args := range [][]string{{"gc"}, {"-state-root", owner.root, "gc"}} {
		code, out := other.try(args...)
		if strings.Contains(strings.Join(args, " "), "state-root") != (code == 125) {
			t.Errorf("nucleus %q as another user: exit code %d: %s", args, code, out)
		}
	}
	if dead := owner.dead(); len(dead) != 1 {
		t.Errorf("another user's gc: %d dead sandboxes are left, want 1", len(dead))
	}
	owner.gc("killed")
}
