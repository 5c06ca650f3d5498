package chaos

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

// sitesOfGVisor are for tests of jobs that runsc runs: more of it can break than of a
// native one. Of the accounts that are no root's, the one without subordinate ids has
// what the other has, and less.
func sitesOfGVisor(t *testing.T, test func(*site)) {
	t.Helper()
	for _, kind := range []struct {
		name string
		make func(testing.TB) *testutil.Account
	}{{"self", testutil.Self}, {"plain", testutil.PlainUser}} {
		t.Run(kind.name, func(t *testing.T) {
			test(newSite(t, kind.make(t)))
		})
	}
}

// underGVisor is a run of a script, with what leaves traces.
func (s *site) underGVisor(script string) []string {
	s.t.Helper()
	data := filepath.Join(s.who.Dir, "data")
	if err := os.MkdirAll(data, 0o755); err != nil {
		s.t.Fatal(err)
	}
	s.who.Own(s.t, data)
	more := "  runtime \"gvisor\" {}\n  volume \"data\" {\n    source = \"" + data + "\"\n    target = \"/data\"\n    read_only = false\n  }\n" +
		"  network \"netuserspace\" {\n    publish {\n      host      = 47081\n      container = 80\n    }\n  }\n  stop {\n    grace = \"300ms\"\n  }\n"
	if s.limits {
		more += limits
	}
	return []string{"run", "-host-config", s.host, "-config", s.shell("gvisor", script, more)}
}

func TestSupervisorOfGVisorDies(t *testing.T) {
	sitesOfGVisor(t, func(s *site) {
		nucleus, args := s.failing(), s.underGVisor("true")
		for n := 1; ; n++ {
			when := fmt.Sprintf("killed after record %d", n)
			code, out := s.tryWith(nucleus, fmt.Sprintf("NUCLEUS_FAIL_AFTER=%d", n), args...)
			s.gc(when)
			if code == 0 {
				if n < 6 {
					s.t.Errorf("the journal has only %d records: nothing was tested", n-1)
				}
				break
			}
			if code != -int(unix.SIGKILL) || n > maxRecords {
				s.t.Fatalf("%s: exit code %d, want death by SIGKILL: %s", when, code, out)
			}
		}
		if s.who.UID != 0 {
			return
		}
		// What comes before is the same under any runtime.
		names := s.instants(nucleus, args...)
		for _, at := range names[slices.Index(names, "setup sent")+1:] {
			code, out := s.tryWith(nucleus, "NUCLEUS_FAIL_AT="+at, args...)
			if code != -int(unix.SIGKILL) {
				s.t.Errorf("killed at %q: exit code %d, want death by SIGKILL: %s", at, code, out)
			}
			s.gc("killed at " + at)
		}
	})
}

// slowVersion is how long this test binary thinks about its version where it serves for
// a runsc.
const slowVersion = 30 * time.Second

// Of a plugin that dies while it is asked the run fails, and what it had started to
// answer goes with it.
func TestGVisorsPluginKilled(t *testing.T) {
	sitesOfGVisor(t, func(s *site) {
		self, err := os.ReadFile("/proc/self/exe")
		if err != nil {
			s.t.Fatal(err)
		}
		slow, plugin := filepath.Join(s.who.Bin, "slow"), filepath.Join(s.who.Bin, "plugins", "nucleus-plugin-gvisor")
		if err := os.WriteFile(slow, self, 0o755); err != nil {
			s.t.Fatal(err)
		}
		r := s.start("run", "-config", s.shell("asked", "true", "  runtime \"gvisor\" {\n    config {\n      runsc = \""+slow+"\"\n    }\n  }\n"))
		ended := make(chan int, 1)
		go func() { ended <- s.wait(r) }()
		for killed := 0; ; time.Sleep(time.Millisecond) {
			select {
			case code := <-ended:
				if code != 125 || killed == 0 || !strings.Contains(r.out.String(), `plugin "gvisor"`) {
					s.t.Errorf("%d killed: exit code %d, want 125 and a word about the plugin: %s", killed, code, r.out)
				}
				s.nothingLeft("plugin killed")
				return
			default:
			}
			// It is asked once more.
			if pid := child(s.t, r.cmd.Process.Pid, plugin); pid != 0 && child(s.t, pid, "") != 0 && unix.Kill(pid, unix.SIGKILL) == nil {
				killed++
			}
		}
	})
}

// tree gives the processes below one, by what they were started as.
func tree(t *testing.T, root int) map[string]int {
	t.Helper()
	out, below := map[string]int{}, []int{root}
	all := processes(t)
	for len(below) > 0 {
		parent := below[0]
		below = below[1:]
		for _, p := range all {
			if p.parent != parent {
				continue
			}
			below = append(below, p.pid)
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.pid))
			if name, _, _ := bytes.Cut(b, []byte{0}); err == nil && out[string(name)] == 0 {
				out[string(name)] = p.pid
			}
		}
	}
	return out
}

// Whatever of a running sandbox dies, its end is told as one that was no success, and
// takes the rest along.
func TestPartsOfGVisorDie(t *testing.T) {
	sitesOfGVisor(t, func(s *site) {
		for _, c := range []struct {
			part  string
			sig   unix.Signal
			code  int
			cause string
		}{
			{"nucleus-init", unix.SIGKILL, 125, "error"},
			{"runsc", unix.SIGKILL, 125, "error"},
			{"runsc-sandbox", unix.SIGKILL, 137, "signal"},
			{"runsc-sandbox", unix.SIGSEGV, 139, "signal"},
			{"runsc-gofer", unix.SIGKILL, 137, "signal"},
			{"nucleus", unix.SIGKILL, -9, ""},
		} {
			what := fmt.Sprintf("%s, signal %d", c.part, c.sig)
			events := filepath.Join(s.who.Home, "events")
			args := s.underGVisor(up)
			args = append([]string{"run", "-events", events}, args[1:]...)
			r := s.start(args...)
			parts := s.up(r)
			parts["nucleus"] = r.cmd.Process.Pid
			s.signal(parts[c.part], c.sig)
			began := time.Now()
			if code := s.wait(r); code != c.code {
				s.t.Errorf("%s: exit code %d, want %d: %s", what, code, c.code, r.out)
			}
			if took := time.Since(began); took > 5*time.Second {
				s.t.Errorf("%s: the end took %s", what, took)
			}
			s.gc(what)
			if c.cause != "" {
				if got := cause(s.t, events); got != c.cause {
					s.t.Errorf("%s: the cause is %q, want %q", what, got, c.cause)
				}
			}
			if err := os.Remove(events); err != nil {
				s.t.Fatal(err)
			}
		}
	})
}

// up is a script that tells when it runs.
const up = "touch /data/up; sleep 20"

// up waits for that script, and gives the processes of its sandbox.
func (s *site) up(r running) map[string]int {
	s.t.Helper()
	mark := filepath.Join(s.who.Dir, "data", "up")
	defer os.Remove(mark)
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		parts := tree(s.t, r.cmd.Process.Pid)
		if _, err := os.Stat(mark); err == nil {
			return parts
		}
	}
	s.t.Fatal("no sandbox of gVisor's")
	return nil
}

// cause is what the events say of the end.
func cause(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(b) {
		var e struct {
			Type   string
			Detail struct{ Cause string }
		}
		if err := json.Unmarshal(line, &e); err != nil {
			t.Fatal(err)
		}
		switch e.Type {
		case "workload.exited":
			return e.Detail.Cause
		case "sandbox.failed":
			return "error"
		}
	}
	return ""
}

// A sentry that does nothing any more delivers no signal, and is no reason to live on.
func TestStopOfAStoppedSentry(t *testing.T) {
	sitesOfGVisor(t, func(s *site) {
		r := s.start(s.underGVisor(up)...)
		s.signal(s.up(r)["runsc-sandbox"], unix.SIGSTOP)
		s.signal(r.cmd.Process.Pid, unix.SIGTERM)
		began := time.Now()
		if code := s.wait(r); code != 137 && code != 143 {
			s.t.Errorf("exit code %d, want 137 or 143: %s", code, r.out)
		}
		if took := time.Since(began); took > 3*time.Second {
			s.t.Errorf("stopped in %s", took)
		}
		s.nothingLeft("a stopped sentry")
	})
}
