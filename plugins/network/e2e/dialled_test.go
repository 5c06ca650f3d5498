package e2e

import (
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

// dialled are the setups in which the core makes the connections between jobs.
var dialled = []string{"netuserspace/user", "netuserspace/root", "netstack/user", "netstack/root"}

// known is longer than it is remembered that a job is not there.
const known = 200 * time.Millisecond

// dialledStack is the stack, whose rule has ports more: one at which the job serves its
// loopback alone, one at which nobody listens, and two at which it serves one family.
func (s *site) dialledStack() string {
	s.t.Helper()
	path := s.stackFile()
	s.probes("db.json",
		probe.Probe{ID: "allowed", Kind: probe.Serve, To: "[::]:5432", Wait: patience},
		probe.Probe{ID: "udp", Kind: probe.Serve, To: "[::]:5433", Wait: patience},
		probe.Probe{ID: "other", Kind: probe.Serve, To: "[::]:9999", Wait: patience},
		probe.Probe{ID: "loopback", Kind: probe.Serve, To: "127.0.0.1:6000", Wait: patience},
		probe.Probe{ID: "4 alone", Kind: probe.Serve, To: "192.0.0.2:6004", Wait: patience},
		probe.Probe{ID: "6 alone", Kind: probe.Serve, To: "[fd6e:7563:6c75::2]:6006", Wait: patience})
	text, err := os.ReadFile(path)
	if err == nil {
		ports := strings.ReplaceAll(string(text), `"5433/udp"`, `"5433/udp", "6000/tcp", "6001/tcp", "6001/udp", "6004/tcp", "6006/tcp"`)
		err = os.WriteFile(path, []byte(strings.ReplaceAll(ports, "  stop {", s.more+"  stop {")), 0o644)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return path
}

// refusals are the denials that a sandbox's events tell of.
func (s *site) refusals(sandbox string) (all []string) {
	s.t.Helper()
	for line := range strings.Lines(s.must("events", sandbox)) {
		var e event
		if err := json.Unmarshal([]byte(line), &e); err == nil && e.Type == "network.denied" {
			d := e.Detail
			all = append(all, fmt.Sprint(d.Protocol, " ", d.Name, " ", d.Reason, " ", d.Where))
		}
	}
	return all
}

func TestJobsThatTheCoreConnects(t *testing.T) {
	sitesOf(t, dialled, func(t *testing.T, s *site) {
		before, files := s.settled()
		path := s.dialledStack()
		s.must("up", "-config", path)
		s.must("up", "-config", path, "-stack", "twin")
		db := s.addressesOf("shop-db")

		got := s.passes("shop-web",
			probe.Probe{ID: "open 4", Kind: probe.TCP, Family: "4", To: "db:5432"},
			probe.Probe{ID: "open 6", Kind: probe.TCP, Family: "6", To: "db:5432"},
			probe.Probe{ID: "open udp 4", Kind: probe.UDP, Family: "4", To: "db:5433"},
			probe.Probe{ID: "open udp 6", Kind: probe.UDP, Family: "6", To: "db:5433"},
			probe.Probe{ID: "open bulk", Kind: probe.Bulk, To: "db:5432", Size: 8 << 20, Wait: patience},
			probe.Probe{ID: "open 4 alone by 6", Kind: probe.TCP, Family: "6", To: "db:6004"},
			probe.Probe{ID: "open 6 alone by 4", Kind: probe.TCP, Family: "4", To: "db:6006"},
			tcp("another port", "db:9999"),
			probe.Probe{ID: "another protocol", Kind: probe.UDP, To: "db:5432"},
			probe.Probe{ID: "ping", Kind: probe.ICMP, To: "db"},
			tcp("loopback of the job", "db:6000"),
			tcp("nobody", "db:6001"),
			probe.Probe{ID: "nobody udp", Kind: probe.UDP, To: "db:6001"},
			tcp("a job that no rule has", "cron:5432"),
			tcp("an address of the job", netip.AddrPortFrom(netip.MustParseAddr(of(db, 4)), 9999).String()))
		for _, id := range []string{"open 4", "open 6"} {
			if at := reached(t, got[id]); !slices.Contains(db, at) {
				t.Errorf("%s reached %s, and the job has %q", id, at, db)
			}
		}
		for _, id := range []string{"loopback of the job", "nobody", "nobody udp"} {
			if got[id].Errno != int(unix.ECONNREFUSED) {
				t.Errorf("%s: %s (errno %d), want a refused connection", id, got[id].Err, got[id].Errno)
			}
		}
		s.passes("shop-db", tcp("back by name", "web:5432"))
		s.passes("shop-cron", tcp("by name", "db:5432"))
		s.passes("twin-web", tcp("open", "db:5432"))
		refused := s.refusals("shop-web")
		for _, want := range []string{"tcp db port " + path + ":29", "dns cron default " + path + ":28"} {
			if !slices.ContainsFunc(refused, func(s string) bool { return strings.HasPrefix(s, want) }) {
				t.Errorf("no denial %q among %q", want, refused)
			}
		}
		// A sandbox of no stack.
		o := s.run(job{network: "egress {\nallow {\nnames = [\"db\"]\n}\n}\n", probes: []probe.Probe{tcp("by name", "db:5432")}})
		if o.results["by name"].OK {
			t.Error("outside the stack the job was reached")
		}

		// The name follows: the next one is another sandbox, with nothing of the first.
		s.must("restart", "shop-db")
		s.passes("shop-web", tcp("open", "db:5432"), probe.Probe{ID: "open udp", Kind: probe.UDP, To: "db:5433"})
		if s.who.uid == 0 { // others have no control group here
			s.must("pause", "shop-db")
			s.passes("shop-web", tcp("while it is paused", "db:5432"))
			s.must("resume", "shop-db")
			time.Sleep(known)
			s.passes("shop-web", tcp("open", "db:5432"))
		}
		s.must("stop", "shop-db")
		start := time.Now()
		s.passes("shop-web", tcp("while it is away", "db:5432"), tcp("by what stood for it", "198.18.1.0:5432"))
		if took := time.Since(start); took > time.Second {
			t.Errorf("the refusal took %s", took)
		}
		s.passes("twin-web", tcp("open", "db:5432"))
		s.must("up", "-config", path)
		time.Sleep(known)
		s.passes("shop-web", tcp("open", "db:5432"))

		s.must("stop", "shop-web")
		var web struct {
			Result struct {
				Network struct {
					Flows []struct {
						Name        string
						Connections uint64
						Rx          uint64 `json:"rx_bytes"`
						Tx          uint64 `json:"tx_bytes"`
					}
				}
			}
		}
		if err := json.Unmarshal([]byte(s.must("inspect", "shop-web")), &web); err != nil {
			t.Fatal(err)
		}
		if f := web.Result.Network.Flows; len(f) != 1 || f[0].Name != "db" || f[0].Connections < 11 || f[0].Rx < 8<<20 || f[0].Tx < 8<<20 {
			t.Errorf("what went to the job: %+v", f)
		}
		s.must("down", "-config", path)
		s.passes("twin-web", tcp("open", "db:5432"))
		s.kill("twin")
		s.left(before, files)
	})
}

// open counts the descriptors of the supervisor of a job.
func (s *site) open(job string) int {
	s.t.Helper()
	var ps struct {
		Jobs []struct {
			Job    string
			Record struct{ Supervisor int }
		}
	}
	if err := json.Unmarshal([]byte(s.must("ps", "-json", "-config", filepath.Join(s.who.dir, "shop.hcl"))), &ps); err != nil {
		s.t.Fatal(err)
	}
	for _, j := range ps.Jobs {
		if j.Job == job {
			entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", j.Record.Supervisor))
			if err != nil {
				s.t.Fatal(err)
			}
			return len(entries)
		}
	}
	s.t.Fatalf("no job %s", job)
	return 0
}

// Connections leave nothing in either supervisor, however many there were at a time.
func TestConnectionsBetweenJobsLeaveNothing(t *testing.T) {
	sitesOf(t, []string{"netuserspace/user", "netstack/user"}, func(t *testing.T, s *site) {
		s.must("up", "-config", s.dialledStack())
		s.passes("shop-web", tcp("open", "db:5432"))
		db, web := s.open("db"), s.open("web")
		var all []probe.Probe
		for i := range 20 {
			all = append(all, probe.Probe{ID: fmt.Sprint("open ", i), Kind: probe.TCP, To: "db:5432", Times: 50},
				probe.Probe{ID: fmt.Sprint("nobody ", i), Kind: probe.TCP, To: "db:6001", Times: 10})
		}
		s.passes("shop-web", all...)
		// While the job is made anew again and again, each is answered, one way or the other.
		restarted := make(chan error)
		go func() {
			var failed error
			for range 3 {
				ctx, cancel := context.WithTimeout(context.Background(), patience)
				out, err := s.nucleus(ctx, "restart", "-host-config", s.conf, "shop-db").CombinedOutput()
				cancel()
				if err != nil {
					failed = fmt.Errorf("%w: %s", err, out)
				}
			}
			restarted <- failed
		}()
		s.in("shop-web", all...)
		if err := <-restarted; err != nil {
			t.Error(err)
		}
		time.Sleep(known)
		s.passes("shop-web", tcp("open", "db:5432"))
		for end := time.Now().Add(10 * time.Second); s.open("db") > db || s.open("web") > web; time.Sleep(50 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("after 1200 connections: %d and %d descriptors, before %d and %d", s.open("db"), s.open("web"), db, web)
			}
		}
		s.must("down", "-config", filepath.Join(s.who.dir, "shop.hcl"))
	})
}

// A job that connects to another without end is refused for a while, which is told with
// the line of its rule and how much it was; then it connects as ever.
func TestJobThatConnectsWithoutEnd(t *testing.T) {
	sitesOf(t, []string{"netuserspace/user"}, func(t *testing.T, s *site) {
		path := s.dialledStack()
		s.must("up", "-config", path)
		var all []probe.Probe
		for i := range 20 {
			all = append(all, probe.Probe{ID: fmt.Sprint("nobody ", i), Kind: probe.TCP, To: "db:6001", Times: 600})
		}
		s.passes("shop-web", all...)
		if refused := s.refusals("shop-web"); !slices.ContainsFunc(refused, func(s string) bool { return strings.HasPrefix(s, "tcp db limit "+path+":29") }) || len(refused) > 60 {
			t.Errorf("denials: %q", refused)
		}
		s.passes("shop-cron", tcp("by name", "db:5432"))
		time.Sleep(time.Second) // a thousand more
		s.passes("shop-web", probe.Probe{ID: "open", Kind: probe.TCP, To: "db:5432", Times: 100})
		s.must("down", "-config", path)
	})
}

// Both ends may be gVisor's, which has sockets of the namespace for them.
func TestJobsUnderGVisor(t *testing.T) {
	netlab.Needs(t)
	for name, with := range map[string]setup{"netuserspace": userspace, "netstack": netstack} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, with)
			path := s.dialledStack()
			s.must("up", "-config", path)
			got := s.passes("shop-web",
				probe.Probe{ID: "open 4", Kind: probe.TCP, Family: "4", To: "db:5432", Wait: 10 * time.Second},
				probe.Probe{ID: "open 6", Kind: probe.TCP, Family: "6", To: "db:5432", Wait: 10 * time.Second},
				probe.Probe{ID: "open udp", Kind: probe.UDP, To: "db:5433", Wait: 10 * time.Second},
				tcp("another port", "db:9999"),
				tcp("loopback of the job", "db:6000"),
				tcp("a job that no rule has", "cron:5432"))
			if r := got["loopback of the job"]; r.Errno != int(unix.ECONNREFUSED) {
				t.Errorf("loopback of the job: %s (errno %d), want a refused connection", r.Err, r.Errno)
			}
			s.must("restart", "shop-db")
			s.passes("shop-web", probe.Probe{ID: "open", Kind: probe.TCP, To: "db:5432", Wait: 10 * time.Second})
			s.must("down", "-config", path)
		})
	}
}
