package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/netlab"
	"github.com/nucleus-runtime/nucleus/plugins/network/internal/probe"
)

// stack is three jobs of which one may reach another, on two of its ports.
const stack = `
job "db" {
  command = ["/probe/client", "/probe/db.json"]
  volume "probe" {
    source    = %[1]q
    target    = "/probe"
    read_only = true
  }
  network %[2]q {
    egress {}
  }
  readiness {
    tcp = 5432
  }
  stop {
    grace = "1s"
  }
}

job "web" {
  command = ["/probe/client", "/probe/idle.json"]
  volume "probe" {
    source    = %[1]q
    target    = "/probe"
    read_only = true
  }
  network %[2]q {
    egress {
      allow {
        jobs  = ["db"]
        ports = ["5432/tcp", "5433/udp"]
      }
    }
  }
  depends_on {
    job       = "db"
    condition = "ready"
  }
  stop {
    grace = "1s"
  }
}

job "cron" {
  command = ["/probe/client", "/probe/idle.json"]
  volume "probe" {
    source    = %[1]q
    target    = "/probe"
    read_only = true
  }
  network %[2]q {
    egress {}
  }
  stop {
    grace = "1s"
  }
}
`

// probes writes a list of them where sandboxes find it.
func (s *site) probes(name string, all ...probe.Probe) {
	s.t.Helper()
	list, err := json.Marshal(all)
	if err == nil {
		err = os.WriteFile(filepath.Join(s.stuff, name), list, 0o644)
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// stackFile writes the stack and what its jobs run.
func (s *site) stackFile() string {
	s.t.Helper()
	s.probes("idle.json", probe.Probe{ID: "idle", Kind: probe.Sleep, Wait: patience})
	s.probes("db.json",
		probe.Probe{ID: "allowed", Kind: probe.Serve, To: "[::]:5432", Wait: patience},
		probe.Probe{ID: "udp", Kind: probe.Serve, To: "[::]:5433", Wait: patience},
		probe.Probe{ID: "other", Kind: probe.Serve, To: "[::]:9999", Wait: patience})
	path := filepath.Join(s.who.dir, "shop.hcl")
	if err := os.WriteFile(path, fmt.Appendf(nil, stack, s.stuff, s.backend), 0o644); err != nil {
		s.t.Fatal(err)
	}
	return path
}

// must runs a command of nucleus and gives what it printed.
func (s *site) must(args ...string) string {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := s.nucleus(ctx, append(args[:1:1], append([]string{"-host-config", s.conf}, args[1:]...)...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if code := exitCode(s.t, cmd, err); code != 0 {
		s.t.Fatalf("nucleus %s: exit code %d: %s%s", strings.Join(args, " "), code, out, stderr.String())
	}
	return string(out)
}

// in tries probes in a sandbox that runs.
func (s *site) in(sandbox string, all ...probe.Probe) map[string]probe.Result {
	s.t.Helper()
	file := sandbox + "-ask.json"
	s.probes(file, all...)
	results := map[string]probe.Result{}
	for line := range strings.Lines(s.must("exec", sandbox, "--", "/probe/client", "/probe/"+file)) {
		var r probe.Result
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			s.t.Fatalf("result %q: %v", line, err)
		}
		results[r.ID] = r
	}
	if len(results) != len(all) {
		s.t.Fatalf("%s: %d of %d probes have a result", sandbox, len(results), len(all))
	}
	return results
}

// addressesOf are those of a sandbox, as it sees them.
func (s *site) addressesOf(sandbox string) []string {
	s.t.Helper()
	return s.in(sandbox, probe.Probe{ID: "self", Kind: probe.Self})["self"].Addresses
}

// passes tries probes of which those pass that say so in their names.
func (s *site) passes(sandbox string, all ...probe.Probe) map[string]probe.Result {
	s.t.Helper()
	results := s.in(sandbox, all...)
	for id, r := range results {
		if want := strings.HasPrefix(id, "open"); r.OK != want {
			s.t.Errorf("%s, %s: passed: %t, want %t: %s", sandbox, id, r.OK, want, r.Err)
		}
	}
	return results
}

// reached is the address that an echo server says it was reached at.
func reached(t *testing.T, r probe.Result) string {
	t.Helper()
	_, at, _, err := netlab.ParseEcho(r.Line)
	if err != nil {
		t.Fatal(err)
	}
	return at.Addr().Unmap().String()
}

func tcp(id, to string) probe.Probe { return probe.Probe{ID: id, Kind: probe.TCP, To: to} }

func TestJobsOfAStack(t *testing.T) {
	sitesOf(t, []string{"netbridge/root"}, func(t *testing.T, s *site) {
		before, files := s.settled()
		path := s.stackFile()
		s.must("up", "-config", path)
		s.must("up", "-config", path, "-stack", "twin")
		db, web, twin := s.addressesOf("shop-db"), s.addressesOf("shop-web"), s.addressesOf("twin-db")

		got := s.passes("shop-web",
			probe.Probe{ID: "open 4", Kind: probe.TCP, Family: "4", To: "db:5432"},
			probe.Probe{ID: "open 6", Kind: probe.TCP, Family: "6", To: "db:5432"},
			probe.Probe{ID: "open udp", Kind: probe.UDP, To: "db:5433"},
			tcp("another port", "db:9999"),
			probe.Probe{ID: "another protocol", Kind: probe.UDP, To: "db:5432"},
			probe.Probe{ID: "ping", Kind: probe.ICMP, To: "db"},
			tcp("open address 4", netip.AddrPortFrom(netip.MustParseAddr(of(db, 4)), 5432).String()),
			tcp("open address 6", netip.AddrPortFrom(netip.MustParseAddr(of(db, 6)), 5432).String()),
			tcp("a job that no rule has", "cron:5432"),
			tcp("of the other stack", netip.AddrPortFrom(netip.MustParseAddr(of(twin, 4)), 5432).String()))
		for _, id := range []string{"open 4", "open 6"} {
			if at := reached(t, got[id]); !slices.Contains(db, at) {
				t.Errorf("%s reached %s, and the job has %q", id, at, db)
			}
		}
		// Each stack has its own.
		if at := reached(t, s.passes("twin-web", tcp("open", "db:5432"))["open"]); !slices.Contains(twin, at) {
			t.Errorf("the second stack reached %s, and its job has %q", at, twin)
		}
		// Who reaches is not reached, and others of the stack have nothing of it.
		s.passes("shop-db", tcp("back by name", "web:5432"), tcp("back by address", of(web, 4)+":5432"))
		s.passes("shop-cron", tcp("by name", "db:5432"), tcp("by address", of(db, 4)+":5432"))

		var refused []string
		for line := range strings.Lines(s.must("events", "shop-web")) {
			var e event
			if err := json.Unmarshal([]byte(line), &e); err == nil && e.Type == "network.denied" {
				d := e.Detail
				refused = append(refused, fmt.Sprint(d.Protocol, " ", d.Name, " ", d.Reason, " ", d.Where))
			}
		}
		for _, want := range []string{"tcp db port " + path + ":29", "dns cron default " + path + ":28"} {
			if !slices.ContainsFunc(refused, func(s string) bool { return strings.HasPrefix(s, want) }) {
				t.Errorf("no denial %q among %q", want, refused)
			}
		}

		// A sandbox of no stack, even one that may go to every private address.
		o := s.run(job{
			network: "egress {\nallow {\ncidrs = [\"10.0.0.0/8\", \"172.16.0.0/12\"]\nnames = [\"db\"]\n}\n}\n",
			probes:  []probe.Probe{tcp("by name", "db:5432"), tcp("by address", of(db, 4)+":5432")},
		})
		for id, r := range o.results {
			if r.OK {
				t.Errorf("outside the stack, %s: passed", id)
			}
		}

		// The name follows.
		s.must("restart", "shop-db")
		next := s.addressesOf("shop-db")
		if at := reached(t, s.passes("shop-web", tcp("open", "db:5432"))["open"]); !slices.Contains(next, at) {
			t.Errorf("after the restart %s was reached, and the job has %q", at, next)
		}
		s.must("stop", "shop-db")
		start := time.Now()
		s.passes("shop-web", tcp("while it is away", "db:5432"))
		if took := time.Since(start); took > time.Second {
			t.Errorf("the refusal took %s", took)
		}
		s.must("up", "-config", path)
		s.passes("shop-web", tcp("open", "db:5432"))

		s.must("down", "-config", path)
		s.passes("twin-web", tcp("open", "db:5432"))
		s.kill("twin")
		s.left(before, files)
	})
}

// of picks the address of a family.
func of(all []string, family int) string {
	for _, a := range all {
		if strings.Contains(a, ":") == (family == 6) {
			return a
		}
	}
	return ""
}

// kill ends the supervisors of a stack as a crash would, and waits until they are gone.
func (s *site) kill(stack string) {
	s.t.Helper()
	var ps struct {
		Jobs []struct{ Record struct{ Supervisor int } }
	}
	if err := json.Unmarshal([]byte(s.must("ps", "-json", "-config", filepath.Join(s.who.dir, "shop.hcl"), "-stack", stack)), &ps); err != nil {
		s.t.Fatal(err)
	}
	for _, j := range ps.Jobs {
		if err := unix.Kill(j.Record.Supervisor, unix.SIGKILL); err != nil {
			s.t.Fatalf("killing %d: %v", j.Record.Supervisor, err)
		}
	}
	for end := time.Now().Add(patience); s.anyProcess(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			s.t.Fatal("processes of the stack are still there")
		}
	}
}

// Two state roots of one host have a stack of the same name each: neither has anything of
// the other's.
func TestStacksOfTwoStateRoots(t *testing.T) {
	sitesOf(t, []string{"netbridge/root"}, func(t *testing.T, s *site) {
		before, files := s.settled()
		both := []*site{s, s.otherRoot()}
		paths := make([]string, len(both))
		dbs := make([][]string, len(both))
		for i, o := range both {
			paths[i] = o.stackFile()
			o.must("up", "-config", paths[i])
			dbs[i] = o.addressesOf("shop-db")
		}
		for i, o := range both {
			got := o.passes("shop-web", tcp("open", "db:5432"), tcp("of the other state root", of(dbs[1-i], 4)+":5432"))
			if at := reached(t, got["open"]); !slices.Contains(dbs[i], at) {
				t.Errorf("state root %d: db was reached at %s, and has %q", i, at, dbs[i])
			}
		}
		for i, o := range both {
			o.must("down", "-config", paths[i])
		}
		s.left(before, files)
	})
}

// What cannot be had is refused at the line of the rule, before anything is started and,
// once it is known what the plugin can do, by plan.
func TestJobsThatCannotBeReached(t *testing.T) {
	const alone, bare = "within a stack alone", `job "db" has no init`
	for name, c := range map[string]struct {
		setup, want string
		init        bool
		line        string
	}{
		"by itself, netbridge":        {"netbridge/root", alone, true, ":30"},
		"by itself, netuserspace":     {"netuserspace/root", alone, true, ":30"},
		"without init, netuserspace":  {"netuserspace/user", bare, false, ":29"},
		"without init, and connected": {"netbridge/root", "", false, ""},
	} {
		t.Run(name, func(t *testing.T) {
			netlab.Needs(t)
			s := newSite(t, setups[c.setup])
			path := s.stackFile()
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			args := []string{"run", "-host-config", s.conf, "-config", path, "-job", "web"}
			if !c.init {
				text, err := os.ReadFile(path)
				if err == nil {
					// A job without an init has no probes.
					bare := strings.Replace(string(text), "readiness {\n    tcp = 5432\n  }\n", "", 1)
					bare = strings.Replace(strings.Replace(bare, "job \"db\" {", "job \"db\" {\n  init = false\n", 1), "\"ready\"", "\"started\"", 1)
					err = os.WriteFile(path, []byte(bare), 0o644)
				}
				if err != nil {
					t.Fatal(err)
				}
				args = []string{"up", "-host-config", s.conf, "-config", path}
			}
			out, err := s.nucleus(ctx, args...).CombinedOutput()
			if c.want == "" {
				if err != nil {
					t.Fatalf("%v: %s", err, out)
				}
				s.passes("shop-web", probe.Probe{ID: "open", Kind: probe.TCP, To: "db:5432", Wait: patience})
				s.must("down", "-config", path)
				return
			}
			if !strings.Contains(string(out), c.want) || !strings.Contains(string(out), path+c.line) {
				t.Errorf("%v: %s; want %q at %s", err, out, c.want, c.line)
			}
			s.must("down", "-config", path)
			if c.init {
				return
			}
			out, err = s.nucleus(ctx, "plan", "-host-config", s.conf, "-config", path, "-job", "web").CombinedOutput()
			if err == nil || !strings.Contains(string(out), c.want) || !strings.Contains(string(out), "shop.hcl line "+c.line[1:]+":") {
				t.Errorf("plan: %v: %s; want %q at %s", err, out, c.want, c.line)
			}
		})
	}
}

func TestExampleOfAStack(t *testing.T) {
	sitesOf(t, append([]string{"netbridge/root"}, dialled...), func(t *testing.T, s *site) {
		text, err := os.ReadFile("../../../examples/stack/network.hcl")
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(s.who.dir, "network.hcl")
		if err := os.WriteFile(path, []byte(strings.ReplaceAll(string(text), `network "netuserspace"`, fmt.Sprintf("network %q", s.backend))), 0o644); err != nil {
			t.Fatal(err)
		}
		s.must("up", "-config", path)
		s.must("wait", "network-web")
		const want = "db:5432: 200 OK\ndb:22: no rule lists this port\ncron: no rule names it\n"
		if got := s.must("logs", "network-web"); got != want {
			t.Errorf("web says %q, want %q", got, want)
		}
		s.must("down", "-config", path)
	})
}
