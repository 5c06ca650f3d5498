package chaos

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

// The journal of a sandbox that is paused has records that no start has.
func TestSupervisorDiesAtEachRecordOfAPause(t *testing.T) {
	sites(t, func(s *site) {
		if !s.limits {
			return // nor a freezer
		}
		nucleus := s.failing()
		path := s.shell("target", "sleep 300 & wait", "")
		met := 0
		for n := 1; ; n++ {
			when := fmt.Sprintf("killed after record %d", n)
			if n > maxRecords {
				s.t.Fatalf("%s, and still no end", when)
			}
			if code, _ := s.tryWith(nucleus, fmt.Sprintf("NUCLEUS_FAIL_AFTER=%d", n), "run", "-detach", "-name", "target", "-config", path); code != 0 {
				s.gc(when) // it was one of the start
				continue
			}
			died := false
			for _, do := range []string{"pause", "resume", "pause", "stop"} {
				code, out := s.try(do, "target")
				if code == 0 {
					continue
				}
				if code != 125 || !strings.Contains(out, "nucleus: hint: nucleus gc") {
					s.t.Errorf("%s: %s: exit code %d: %s", when, do, code, out)
				}
				if died = true; do != "stop" {
					met++
				}
				break
			}
			if x, listed := s.ps()["target"]; listed {
				s.t.Errorf("%s: ps says %+v", when, x)
			}
			s.gc(when)
			if !died {
				break
			}
		}
		if met < 2 {
			s.t.Errorf("it died at %d records of pauses, want one for each: nothing was tested", met)
		}
	})
}

// Init's death is nobody's wish: the record says so, whatever the sandbox was at.
func TestInitOfDetachedKilled(t *testing.T) {
	sites(t, func(s *site) {
		for _, at := range []string{"created", "running", "paused", "with commands"} {
			if at == "paused" && !s.limits {
				continue
			}
			verb := []string{"run", "-detach"}
			if at == "created" {
				verb = []string{"create"}
			}
			s.must(append(verb, "-keep", "-name", "target", "-config", s.shell("target", "sleep 300 & wait", ""))...)
			x := s.inspect("target")
			var client running
			switch at {
			case "paused":
				s.must("pause", "target")
			case "with commands":
				client = s.start("exec", "target", "/bin/sleep", "300")
				s.until("the command", func() bool { return len(s.below(x.InitPid)) == 2 })
			}
			s.signal(x.InitPid, unix.SIGKILL)
			if client.cmd != nil {
				if code := s.wait(client); code != 125 && code != 137 {
					s.t.Errorf("%s: its command: exit code %d: %s", at, code, client.out)
				}
			}
			switch at {
			case "created":
				// Nobody has asked for anything: the supervisor waits until somebody does.
				if code, out := s.try("start", "target"); code != 125 || !strings.Contains(out, "nucleus: error: ") {
					s.t.Errorf("%s: start: exit code %d: %s", at, code, out)
				}
			case "paused":
				// Below a v1 freezer it dies when it is let go.
				s.must("resume", "target")
			}
			s.until(at+": its end", func() bool { _, listed := s.ps()["target"]; return !listed })
			if kept, there := s.ps("-a")["target"]; there {
				if kept.Status != "stopped" || kept.Result == nil || kept.Result.Cause != "runtime" || kept.Result.ExitCode != 125 {
					s.t.Errorf("%s: %s with %+v, want stopped, with cause runtime and code 125", at, kept.Status, kept.Result)
				}
				s.must("rm", "target")
			} else if at != "created" {
				s.t.Errorf("%s: it was not kept", at)
			}
			s.nothingLeft(at + ": init killed")
		}
	})
}

// gc at any time beside sandboxes that begin, run commands and end: it takes the one
// whose supervisor is killed, and touches no other.
func TestCollectorBesideDetached(t *testing.T) {
	sites(t, func(s *site) {
		const live, rounds = 10, 2
		stop := make(chan struct{})
		var collectors, all sync.WaitGroup
		var collected sync.Map
		for range 2 {
			collectors.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					out, err := s.output("gc")
					if err != nil {
						s.t.Errorf("gc: %v", err)
						return
					}
					for id := range strings.FieldsSeq(string(out)) {
						collected.Store(id, true)
					}
				}
			})
		}
		for n := range live {
			path := s.shell(fmt.Sprintf("live-%d", n), "trap 'exit 3' TERM; while :; do sleep 0.02; done", "")
			all.Go(func() {
				for round := range rounds {
					if err := s.lifeOfOne(fmt.Sprintf("live-%d", n), path); err != nil {
						s.t.Errorf("sandbox %d, round %d: %v", n, round, err)
						return
					}
				}
			})
		}
		id := s.must("run", "-detach", "-name", "dead", "--", "/bin/sleep", "300")
		s.signal(s.inspect("dead").Supervisor, unix.SIGKILL)
		s.until("the dead one to be collected", func() bool { _, yes := collected.Load(id); return yes || len(s.ps("-a")) == 0 })
		all.Wait()
		close(stop)
		collectors.Wait()
		collected.Range(func(got, _ any) bool {
			if got != id {
				s.t.Errorf("gc has collected %s, which was alive", got)
			}
			return true
		})
		s.nothingLeft("gc beside them")
	})
}

// lifeOfOne starts one, runs commands in it and ends it, beside others.
func (s *site) lifeOfOne(name, path string) error {
	if err := s.ask("run", "-detach", "-keep", "-name", name, "-config", path); err != nil {
		return err
	}
	for range 3 {
		if err := s.ask("exec", name, "/bin/true"); err != nil {
			return err
		}
	}
	if err := s.ask("stop", name); err != nil {
		return err
	}
	x, err := s.told(name)
	if err != nil {
		return err
	}
	if x.Result == nil || x.Result.Cause != "stopped" || x.Result.ExitCode != 3 {
		return fmt.Errorf("ended with %+v, want cause stopped and code 3", x.Result)
	}
	return s.ask("rm", name)
}

// A state root that fills up while sandboxes live takes nothing from them: they run
// commands and are stopped, and what cannot be written down is said.
func TestStateRootFillsUpBesideTheLiving(t *testing.T) {
	testutil.Needs(t, testutil.Root, testutil.Program("unshare"), testutil.Program("setpriv"))
	sites(t, func(s *site) {
		mount := filepath.Join(s.who.Dir, "full")
		if err := os.Mkdir(mount, 0o755); err != nil {
			s.t.Fatal(err)
		}
		path := s.shell("chatty", "while :; do echo line; sleep 0.01; done", "")
		pause := ""
		if s.limits {
			pause = `as nucleus pause a; as nucleus inspect a | jq -r '"TOLD " + .status'
as nucleus ps -json | jq -r '.sandboxes[] | select(.name == "a") | "LISTED " + .status'
as nucleus resume a; echo "RESUME $?"`
		}
		script := fmt.Sprintf(`
mount -t tmpfs -o size=256k,nr_inodes=80,mode=0700,uid=%[1]d,gid=%[2]d tmpfs %[3]q || exit 1
as() { setpriv --reuid %[1]d --regid %[2]d --clear-groups "$@"; }
export NUCLEUS_STATE_ROOT=%[3]q/root
as nucleus run -detach -name a -config %[4]q >/dev/null && as nucleus run -detach -keep -name b -config %[4]q >/dev/null || exit 1
dd if=/dev/zero of=%[3]q/fill bs=4096 2>/dev/null
i=0; while as touch %[3]q/file-$i 2>/dev/null; do i=$((i + 1)); done
%[5]s
as nucleus exec a /bin/sh -c 'exit 4'; echo "EXEC $?"
as nucleus run -detach -- /bin/true; echo "RUN $?"
as nucleus kill b; echo "KILL $?"
as nucleus stop a; echo "STOP $?"
as nucleus ps | sed 1d
as nucleus gc; echo "GC $?"
as nucleus rm b 2>/dev/null
find %[3]q/root -mindepth 2 | sed 's/^/LEFT /'
`, s.who.UID, s.who.GID, mount, path, pause)
		cmd := exec.Command("unshare", "-m", "--propagation", "private", "bash", "-c", script)
		cmd.Env, cmd.Dir = s.who.Env(), s.who.Dir
		out, err := cmd.CombinedOutput()
		text := string(out)
		if err != nil {
			s.t.Fatalf("%v: %s", err, text)
		}
		wants := []string{"EXEC 4\n", "RUN 125\n", "no space left on device", "nucleus: hint: make room", "KILL 0\n", "STOP 0\n", "GC 0\n"}
		if s.limits {
			wants = append(wants, "RESUME 0\n")
		}
		for _, want := range wants {
			if !strings.Contains(text, want) {
				s.t.Errorf("no %q", want)
			}
		}
		// A pause may need a record that there is no room for. Either way it is told.
		if s.limits && !strings.Contains(text, "TOLD paused\nLISTED paused\n") && !strings.Contains(text, "TOLD running\nLISTED running\n") {
			s.t.Error("ps and inspect differ")
		}
		if strings.Contains(text, "LEFT ") || strings.Contains(text, " running ") {
			s.t.Error("something is left")
		}
		if s.t.Failed() {
			s.t.Log(text)
		}
	})
}

// Whoever asks for a detached sandbox may be killed before it is told of it: a sandbox
// that nobody knows is ended by its supervisor. One that is dies with its supervisor.
func TestDetachedStartThatIsCutOff(t *testing.T) {
	sites(t, func(s *site) {
		nucleus := s.failing()
		for _, verb := range [][]string{{"run", "-detach"}, {"create"}, {"run", "-detach", "-keep"}} {
			args := append(slices.Clone(verb), "-name", "target", "-config", s.shell("target", "sleep 300 & wait", ""))
			if code, out := s.tryWith(nucleus, "NUCLEUS_FAIL_AT=supervisor started", args...); code != -int(unix.SIGKILL) {
				s.t.Errorf("%q: the caller's exit code is %d, want death by SIGKILL: %s", verb, code, out)
			}
			if slices.Contains(verb, "-keep") {
				// It has run: that it was ended is on record.
				s.until("its end", func() bool { return s.ps("-a")["target"].Status == "stopped" })
				s.must("rm", "target")
			}
			s.nothingLeft(fmt.Sprintf("%q: its caller killed", verb))

			// Told, or not: what the caller says is true.
			code, out := s.tryWith(nucleus, "NUCLEUS_FAIL_AT=ready told", args...)
			if code != 0 {
				s.t.Errorf("%q: killed when it was told: exit code %d: %s", verb, code, out)
			}
			s.gc(fmt.Sprintf("%q: the supervisor killed", verb))
		}
		// Everything is undone, and it dies before it could write down how it was.
		if code, out := s.tryWith(nucleus, "NUCLEUS_FAIL_AT=all undone", "run", "-detach", "-keep", "-name", "target", "--", "/bin/sleep", "300"); code != 0 {
			s.t.Errorf("exit code %d: %s", code, out)
		}
		if code, out := s.try("stop", "target"); code != 125 || !strings.Contains(out, "nucleus: hint: nucleus gc") {
			s.t.Errorf("stop: exit code %d: %s", code, out)
		}
		if x := s.ps("-a")["target"]; x.Status != "dead" {
			s.t.Errorf("ps -a says %q", x.Status)
		}
		s.gc("killed when all was undone")
	})
}
