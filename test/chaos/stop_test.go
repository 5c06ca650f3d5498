package chaos

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// asked are ways of ending a sandbox that was detached.
var asked = []struct {
	name   string
	paused bool
	verb   string
}{
	{"stop", false, "stop"},
	{"stop while paused", true, "stop"},
	{"kill", false, "kill"},
	{"kill while paused", true, "kill"},
}

// Whatever the workload does, and whatever runs beside it, one that is asked to end
// has ended when the verb returns, and all that it had is gone: its processes, its
// control group. Its record tells that it was stopped, and with which code.
func TestDetachedIsEndedWhateverItDoes(t *testing.T) {
	sites(t, func(s *site) {
		work := maps.Clone(stops)
		work["TERM handled"] = `trap 'exit 3' TERM; while :; do sleep 0.02; done`
		work["TERM kills"] = `exec sleep 300`
		if s.limits {
			work["fork storm"] = storm
		}
		for _, how := range asked {
			if how.paused && !s.limits {
				continue
			}
			names := map[string]string{}
			var all sync.WaitGroup
			for name, script := range work {
				id := strings.ReplaceAll(strings.ToLower(name), " ", "-")
				names[name] = id
				s.deaf(id, script)
				all.Go(func() { s.endIt(id, how.verb, how.paused) })
			}
			all.Wait()
			if s.t.Failed() {
				return
			}
			for name, id := range names {
				x := s.inspect(id)
				code := 137
				if how.verb == "stop" {
					code = cmp.Or(map[string]int{"TERM handled": 3, "TERM kills": 143}[name], code)
				}
				if x.Status != "stopped" || x.Result == nil || x.Result.Cause != "stopped" || x.Result.ExitCode != code {
					s.t.Errorf("%s, %s: %s with %+v, want stopped, with cause stopped and code %d", name, how.name, x.Status, x.Result, code)
				}
				s.must("rm", id)
			}
			s.nothingLeft(how.name)
		}
	})
}

// deaf makes a sandbox that is kept, with a command beside the workload that ignores
// what would end it.
func (s *site) deaf(id, script string) {
	s.t.Helper()
	more := "  stop {\n    grace = \"300ms\"\n  }\n"
	if s.limits {
		more += "  resources {\n    pids = 200\n    cpus = 1\n  }\n"
	}
	s.must("run", "-detach", "-keep", "-name", id, "-config", s.shell(id, script, more))
	if script != storm { // in which there may be no room for one more
		s.must("exec", "-detach", id, "/bin/sh", "-c", `trap "" TERM INT HUP; while :; do sleep 1; done`)
	}
}

// endIt ends one and tells how long it took. It is called beside others of its kind.
func (s *site) endIt(id, verb string, paused bool) {
	x, err := s.told(id)
	inside := append(s.below(x.InitPid), x.InitPid)
	if err == nil && paused {
		err = s.ask("pause", id)
	}
	began := time.Now()
	if err == nil {
		err = s.ask(verb, id)
	}
	took := time.Since(began)
	if err != nil {
		s.t.Errorf("%s, %s (paused: %t): %v", id, verb, paused, err)
		return
	}
	s.t.Logf("%s, %s (paused: %t): %s", id, verb, paused, took.Round(time.Millisecond))
	for _, dir := range x.Cgroup {
		if _, err := os.Stat(dir); err == nil {
			s.t.Errorf("%s, %s: %s is there still", id, verb, dir)
		}
	}
	for _, pid := range inside {
		if alive(pid) {
			s.t.Errorf("%s, %s: process %d lives", id, verb, pid)
		}
	}
}

// alive says that a process has not ended.
func alive(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(b[strings.LastIndexByte(string(b), ')'):]), " ")
	return !strings.HasPrefix(rest, "Z") && !strings.HasPrefix(rest, "X")
}
