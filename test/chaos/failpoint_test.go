package chaos

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// instants asks the build for the failpoints that a run passes.
func (s *site) instants(nucleus string, args ...string) []string {
	s.t.Helper()
	code, out := s.tryWith(nucleus, "NUCLEUS_FAIL_AT=?", args...)
	if code != 0 {
		s.t.Fatalf("exit code %d: %s", code, out)
	}
	var names []string
	for line := range strings.Lines(out) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "failpoint: "); ok {
			names = append(names, name)
		}
	}
	for _, must := range []string{"name reserved", "directory made", "directory locked", "init cloned", "init unrecorded", "gate opened", "all undone", "name freed"} {
		if !slices.Contains(names, must) {
			s.t.Errorf("no failpoint %q on the way: %q", must, names)
		}
	}
	if s.limits && !slices.Contains(names, "cgroup unlimited") {
		s.t.Errorf("no failpoint between a control group and its limits: %q", names)
	}
	return names
}

// maxRecords is more than the journal of a run has.
const maxRecords = 50

// The promise of the journal: wherever the supervisor dies, gc leaves nothing.
func TestSupervisorDiesAtEachJournalRecord(t *testing.T) {
	sites(t, func(s *site) {
		nucleus := s.failing()
		for name, args := range s.jobs("true") {
			for n := 1; ; n++ {
				when := fmt.Sprintf("%s, killed after record %d", name, n)
				code, out := s.tryWith(nucleus, fmt.Sprintf("NUCLEUS_FAIL_AFTER=%d", n), args...)
				s.gc(when)
				if code == 0 {
					if least := map[bool]int{true: 5, false: 2}[strings.Contains(when, "limits")]; n-1 < least {
						s.t.Errorf("%s: the journal has only %d records, want %d at least: nothing was tested", name, n-1, least)
					}
					break
				}
				if code != -int(unix.SIGKILL) || n > maxRecords {
					s.t.Fatalf("%s: exit code %d, want death by SIGKILL: %s", when, code, out)
				}
			}
		}
	})
}

func TestSupervisorDiesBetweenRecords(t *testing.T) {
	sites(t, func(s *site) {
		nucleus := s.failing()
		for name, args := range s.jobs("true") {
			if name != "plain" && name != "everything" && name != "hooks" && name != "plugins" && name != "network" {
				continue
			}
			for _, at := range s.instants(nucleus, args...) {
				when := fmt.Sprintf("%s, killed at %q", name, at)
				code, out := s.tryWith(nucleus, "NUCLEUS_FAIL_AT="+at, args...)
				if code != -int(unix.SIGKILL) {
					s.t.Errorf("%s: exit code %d, want death by SIGKILL: %s", when, code, out)
				}
				s.gc(when)
			}
		}
	})
}

// A collector that dies leaves the rest to the next.
func TestCollectorDiesAtEachRecord(t *testing.T) {
	sites(t, func(s *site) {
		nucleus := s.failing()
		args := s.jobs("true")["everything"]
		for n := 1; ; n++ {
			if code, out := s.tryWith(nucleus, "NUCLEUS_FAIL_AT=posture verified", args...); code != -int(unix.SIGKILL) {
				s.t.Fatalf("exit code %d, want death by SIGKILL: %s", code, out)
			}
			s.quiet()
			code, out := s.tryWith(nucleus, fmt.Sprintf("NUCLEUS_FAIL_AFTER=%d", n), "gc")
			s.gc(fmt.Sprintf("gc killed after its record %d", n))
			if code == 0 {
				if n == 1 {
					s.t.Errorf("gc wrote no record: nothing was tested")
				}
				return
			}
			if code != -int(unix.SIGKILL) || n > maxRecords {
				s.t.Fatalf("gc, killed after its record %d: exit code %d: %s", n, code, out)
			}
		}
	})
}

func TestCollectorDiesWhileItRemoves(t *testing.T) {
	sites(t, func(s *site) {
		nucleus := s.failing()
		_, _ = s.tryWith(nucleus, "NUCLEUS_FAIL_AT=posture verified", s.jobs("true")["plain"]...)
		s.quiet()
		if code, out := s.tryWith(nucleus, "NUCLEUS_FAIL_AT=name freed", "gc"); code != -int(unix.SIGKILL) {
			s.t.Errorf("gc: exit code %d, want death by SIGKILL: %s", code, out)
		}
		s.gc("gc killed after it freed the name")
	})
}

// DESIGN 5: a run collects dead sandboxes first.
func TestRunCollectsTheDead(t *testing.T) {
	sites(t, func(s *site) {
		nucleus := s.failing()
		for _, at := range []string{"directory made", "cgroup made", "posture verified", "workload running", "all undone"} {
			if code, out := s.tryWith(nucleus, "NUCLEUS_FAIL_AT="+at, s.jobs("sleep 0.2")["everything"]...); code != -int(unix.SIGKILL) {
				s.t.Fatalf("exit code %d, want death by SIGKILL at %q: %s", code, at, out)
			}
			s.quiet()
			if code, out := s.try("run", "--", "/bin/true"); code != 0 {
				s.t.Errorf("the run after: exit code %d: %s", code, out)
			}
			s.nothingLeft("killed at " + at + ", then another run")
		}
	})
}
