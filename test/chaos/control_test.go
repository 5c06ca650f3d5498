package chaos

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// talk is one request of the control protocol, with all of its messages.
type talk struct {
	name  string
	setup []string // the sandbox is there, and first this is done to it
	do    []string // about a sandbox that is called target
	held  bool     // it waits for its start
	ends  bool     // the request ends it
	anew  bool     // the request makes another run of it
	// meanwhile lets a request go on that waits for something.
	meanwhile func(s *site, client running)
	// within are instants in the supervisor between its messages.
	within  []string
	freezer bool
	user    bool // also as an ordinary user, which takes its time
}

var talks = []talk{
	{name: "state", do: []string{"inspect", "target"}},
	{name: "start", do: []string{"start", "target"}, held: true, user: true},
	{name: "signal", do: []string{"kill", "-signal", "URG", "target"}},
	{name: "stats", do: []string{"stats", "target"}},
	{name: "restart", do: []string{"restart", "target"}, within: []string{"restarting", "made again"}, anew: true, user: true},
	{name: "exec", do: []string{"exec", "target", "/bin/sh", "-c", "sleep 0.05; exit 3"}, user: true},
	{name: "exec with a terminal", do: []string{"exec", "-tty", "target", "/bin/sh", "-c", "sleep 0.05; exit 3"}},
	{name: "exec detached", do: []string{"exec", "-detach", "target", "/bin/sleep", "60"}},
	{name: "exec with a signal", do: []string{"exec", "target", "/bin/sh", "-c", "trap 'exit 3' USR1; echo up >&2; while :; do sleep 0.01; done"}, meanwhile: signalIt},
	{name: "wait", do: []string{"wait", "target"}, meanwhile: stopIt, ends: true},
	{name: "attach", do: []string{"attach", "target"}, meanwhile: stopIt, ends: true},
	{name: "stop", do: []string{"stop", "target"}, ends: true, user: true},
	{name: "kill", do: []string{"kill", "target"}, ends: true},
	{name: "rm", do: []string{"rm", "-force", "target"}, ends: true},
	{name: "rm before the start", do: []string{"rm", "target"}, held: true, ends: true},
	{name: "pause", do: []string{"pause", "target"}, within: []string{"frozen"}, freezer: true},
	{name: "resume", setup: []string{"pause", "target"}, do: []string{"resume", "target"}, within: []string{"thawed"}, freezer: true},
	{name: "stop while paused", setup: []string{"pause", "target"}, do: []string{"stop", "target"}, within: []string{"thawed"}, ends: true, freezer: true},
}

// stopIt ends the sandbox whose end a client waits for.
func stopIt(s *site, _ running) {
	time.Sleep(50 * time.Millisecond) // the client is there first, mostly
	_, _ = s.try("stop", "target")    // its supervisor may be dead by now
}

// signalIt signals a client whose command is ready for that.
func signalIt(s *site, client running) {
	out := client.cmd.Stderr.(*mark)
	select {
	case <-out.seen:
		_ = client.cmd.Process.Signal(unix.SIGUSR1) // it may have been killed
	case <-time.After(time.Second): // nor will it be
	}
}

// mark sees the word that a command is up.
type mark struct {
	seen chan struct{}
	text strings.Builder
}

func (m *mark) Write(b []byte) (int, error) {
	was := strings.Contains(m.text.String(), "up\n")
	m.text.Write(b)
	if !was && strings.Contains(m.text.String(), "up\n") {
		close(m.seen)
	}
	return len(b), nil
}

// begin makes the sandbox with a build of nucleus, unless an earlier one lives, and
// does to it what comes first.
func (k talk) begin(s *site, nucleus, variable string) {
	s.t.Helper()
	if s.written("target").Supervisor == 0 {
		k.make(s, nucleus, variable)
	}
	if k.setup != nil {
		s.must(k.setup...)
	}
}

func (k talk) make(s *site, nucleus, variable string) {
	s.t.Helper()
	args := []string{"run", "-detach"}
	if k.held {
		args = []string{"create"}
	}
	args = append(args, "-name", "target", "-config", s.shell("target", "sleep 300 & wait", "  stop {\n    grace = \"100ms\"\n  }\n"))
	if code, out := s.tryWith(nucleus, variable, args...); code != 0 {
		s.t.Fatalf("%s: making the sandbox: exit code %d: %s", k.name, code, out)
	}
}

// ask makes the request, and gives the client's exit code and what it said.
func (k talk) ask(s *site, nucleus, variable string) (int, string) {
	s.t.Helper()
	out := &mark{seen: make(chan struct{})}
	r := running{cmd: s.command(nucleus, k.do...)}
	r.cmd.Env = append(r.cmd.Env, variable)
	r.cmd.Stderr = out
	if err := r.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	if k.meanwhile != nil {
		k.meanwhile(s, r)
	}
	code := s.wait(r)
	return code, out.text.String()
}

// instants are those at which the client, and the supervisor, can die: around each of
// their messages.
func (k talk) instants(s *site, nucleus string) (client, supervisor []string) {
	s.t.Helper()
	k.begin(s, "nucleus", "")
	_, out := k.ask(s, nucleus, "NUCLEUS_FAIL_AT=?")
	k.clear(s)
	add := func(to *[]string, names ...string) {
		for _, name := range names {
			if !slices.Contains(*to, name) {
				*to = append(*to, name)
			}
		}
	}
	for line := range strings.Lines(out) {
		name, ok := strings.CutPrefix(strings.TrimSpace(line), "failpoint: ")
		if !ok {
			continue
		}
		add(&client, name)
		// What one side has sent, the other has received.
		if kind, ok := strings.CutPrefix(name, "sent "); ok {
			add(&supervisor, "received "+kind)
		}
		if kind, ok := strings.CutPrefix(name, "received "); ok {
			if k.setup != nil && kind == "ok" {
				continue // the answer to what comes first is the same
			}
			add(&supervisor, "sending "+kind, "sent "+kind)
		}
	}
	add(&supervisor, k.within...)
	if len(client) < 3 {
		s.t.Fatalf("%s: the client passes only %q: %s", k.name, client, out)
	}
	return client, supervisor
}

// clear removes the sandbox, if it is there still.
func (k talk) clear(s *site) {
	s.t.Helper()
	if s.written("target").Supervisor != 0 {
		if code, out := s.try("rm", "-force", "target"); code != 0 && !strings.Contains(out, "no sandbox") {
			s.t.Errorf("%s: rm: exit code %d: %s", k.name, code, out)
		}
	}
	s.nothingLeft(k.name + ": removed")
}

// Whichever side dies, at whichever message: what is left is either a sandbox that
// lives and obeys, or nothing that gc would not find.
func TestEitherSideDiesAtEachMessage(t *testing.T) {
	sites(t, func(s *site) {
		s.must("run", "-detach", "-name", "beside", "--", "/bin/sleep", "300")
		s.beside()
		nucleus := s.failing()
		for _, k := range talks {
			if k.freezer && !s.limits || s.who.UID != 0 && !k.user {
				continue
			}
			client, supervisor := k.instants(s, nucleus)
			for _, at := range client {
				k.clientDies(s, nucleus, at)
			}
			k.clear(s)
			for _, at := range supervisor {
				k.supervisorDies(s, nucleus, at)
			}
		}
		if code, out := s.try("exec", "beside", "/bin/sh", "-c", "exit 4"); code != 4 {
			s.t.Errorf("the sandbox beside: exit code %d, want 4: %s", code, out)
		}
		s.must("rm", "-force", "beside")
	})
}

func (k talk) clientDies(s *site, nucleus, at string) {
	s.t.Helper()
	when := fmt.Sprintf("%s, its client killed at %q", k.name, at)
	k.begin(s, "nucleus", "")
	pids := s.written("target")
	code, out := k.ask(s, nucleus, "NUCLEUS_FAIL_AT="+at)
	if code != -int(unix.SIGKILL) {
		s.t.Errorf("%s: exit code %d, want death by SIGKILL: %s", when, code, out)
	}
	if k.ends || k.held { // it may have been asked to, or not
		defer k.clear(s)
	}
	if k.ends {
		return
	}
	if k.anew { // it was asked to, or it was not
		s.until(when+": to run", func() bool {
			code, _ := s.try("exec", "target", "/bin/sh", "-c", "exit 6")
			pids = s.written("target")
			return code == 6 && s.inspect("target").Pid == pids.Pid
		})
	}
	listed, told := s.ps()["target"], s.inspect("target")
	for range 100 { // it may be on its way from one state to the next
		if listed.Status == told.Status {
			break
		}
		listed, told = s.ps()["target"], s.inspect("target")
	}
	if listed.Status != told.Status || listed.Pid != told.Pid || listed.Supervisor != told.Supervisor {
		s.t.Errorf("%s: ps says %+v, its supervisor %+v", when, listed, told)
	}
	// Whatever the request has come to, the sandbox obeys.
	switch told.Status {
	case "created":
		s.must("start", "target")
	case "paused":
		s.must("resume", "target")
	}
	if code, out := s.try("exec", "target", "/bin/sh", "-c", "exit 5"); code != 5 {
		s.t.Errorf("%s: a command after that: exit code %d, want 5: %s", when, code, out)
	}
	if k.name == "exec detached" {
		return // its command stays
	}
	// The client has taken its command with it, and nothing else.
	want := []int{pids.InitPid, pids.Pid}
	s.until(when+": its command to go", func() bool {
		var below []int
		for _, p := range processes(s.t) {
			if p.parent == pids.InitPid && p.state != "Z" {
				below = append(below, p.pid)
			}
		}
		return len(below) == 1 && below[0] == want[1]
	})
}

func (k talk) supervisorDies(s *site, nucleus, at string) {
	s.t.Helper()
	when := fmt.Sprintf("%s, the supervisor killed at %q", k.name, at)
	k.begin(s, nucleus, "NUCLEUS_FAIL_AT="+at)
	pid := s.written("target").Supervisor
	code, out := k.ask(s, "nucleus", "")
	if code < 0 {
		s.t.Errorf("%s: its client ended by signal %d: %s", when, -code, out)
	}
	if code == 125 && (!strings.Contains(out, "nucleus: error: ") || !strings.Contains(out, "supervisor is gone") && !strings.Contains(out, "has ended")) {
		s.t.Errorf("%s: its client says %q", when, out)
	}
	s.until(when+": its death", func() bool {
		reapAdopted(s.t)
		return unix.Kill(pid, 0) != nil
	})
	if x, listed := s.ps("-a")["target"]; listed && x.Status != "dead" {
		s.t.Errorf("%s: ps -a says %+v", when, x)
	}
	if code, out := s.try("stop", "target"); code != 125 || !strings.Contains(out, "nucleus: hint: ") {
		s.t.Errorf("%s: stop after that: exit code %d: %s", when, code, out)
	}
	s.gc(when) // of its name, too
}
