package chaos

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A client that is killed takes its own command with it, and nothing of what others
// have; and nothing of it stays in the supervisor or in init.
func TestClientsKilledAtAnyTime(t *testing.T) {
	sites(t, func(s *site) {
		at := random(s.t)
		s.must("run", "-detach", "-name", "target", "--", "/bin/sleep", "300")
		x := s.inspect("target")
		other := s.command("nucleus", "exec", "target", "/bin/sh", "-c", "read line; exit 6")
		keys, err := other.StdinPipe()
		if err != nil {
			s.t.Fatal(err)
		}
		if err := other.Start(); err != nil {
			s.t.Fatal(err)
		}
		s.until("the other command", func() bool { return len(s.below(x.InitPid)) == 2 })
		before := map[string]held{}
		for who, pid := range map[string]int{"the supervisor": x.Supervisor, "init": x.InitPid} {
			before[who] = holds(s.t, pid)
		}
		for round := range 15 {
			var clients []*exec.Cmd
			for n := range 8 {
				args := []string{"exec", "target", "/bin/sleep", "300"}
				if n%2 == 1 {
					args = []string{"exec", "-tty", "target", "/bin/sleep", "300"}
				}
				c := s.command("nucleus", args...)
				if err := c.Start(); err != nil {
					s.t.Fatal(err)
				}
				clients = append(clients, c)
			}
			for n, c := range clients {
				if n == 0 || n == 4 {
					time.Sleep(at() / 2)
				}
				_ = c.Process.Kill() // it may have failed by itself, which its code tells
			}
			for _, c := range clients {
				if code := finish(s.t, c, c.Wait()); code != -int(unix.SIGKILL) {
					s.t.Errorf("round %d: a client's exit code is %d, want death by SIGKILL", round, code)
				}
			}
		}
		s.until("the commands of the killed clients to go", func() bool { return len(s.below(x.InitPid)) == 2 })
		for who, pid := range map[string]int{"the supervisor": x.Supervisor, "init": x.InitPid} {
			var after held
			for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
				after = holds(s.t, pid)
				if !after.grown(before[who]) || time.Now().After(deadline) {
					break
				}
			}
			if after.grown(before[who]) {
				s.t.Errorf("%s has grown from %+v to %+v: %s", who, before[who], after, strings.Join(open(pid), " "))
			}
		}
		if _, err := keys.Write([]byte("\n")); err != nil {
			s.t.Error(err)
		}
		if code := finish(s.t, other, other.Wait()); code != 6 {
			s.t.Errorf("the command of another client: exit code %d, want 6", code)
		}
		s.must("kill", "target")
	})
}

// below are the processes that init has, but those that have ended.
func (s *site) below(init int) []int {
	s.t.Helper()
	var pids []int
	for _, p := range processes(s.t) {
		if p.parent == init && p.state != "Z" {
			pids = append(pids, p.pid)
		}
	}
	return pids
}

// open lists what a process has open.
func open(pid int) (out []string) {
	dir := "/proc/" + strconv.Itoa(pid) + "/fd"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return []string{err.Error()}
	}
	for _, e := range entries {
		to, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err == nil {
			out = append(out, to)
		}
	}
	return out
}

// A workload that kills whatever it can reach at once can end each command beside it,
// and nothing more: neither init nor the supervisor takes it for the end.
func TestWorkloadThatKillsCommands(t *testing.T) {
	sites(t, func(s *site) {
		if !s.limits {
			return // a loop of kills has its bounds
		}
		s.must("run", "-detach", "-name", "target", "-config", s.shell("target", "while :; do kill -9 -1; done 2>/dev/null", limits))
		before := s.inspect("target")
		for range 60 {
			code, out := s.try("exec", "target", "/bin/true")
			if code != 0 && code != 137 && code != 125 || strings.Contains(out, "has ended") || strings.Contains(out, "is gone") {
				s.t.Fatalf("exit code %d: %s", code, out)
			}
		}
		if after := s.inspect("target"); after.Status != "running" || after.InitPid != before.InitPid {
			s.t.Errorf("%+v, before %+v", after, before)
		}
		s.must("kill", "target")
	})
}
