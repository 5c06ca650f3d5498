package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/netlab"
	"github.com/nucleus-runtime/nucleus/plugins/network/internal/probe"
)

// The runtime blocks: gVisor's kernel opens sockets of the sandbox's network namespace
// for the workload, or has TCP/IP of its own, which takes the interface over.
const (
	gvisor    = "runtime \"gvisor\" {}\n"
	gvisorOwn = "runtime \"gvisor\" {\nconfig {\nnetwork_stack = \"own\"\n}\n}\n"
)

var (
	bridged      = setup{backend: "netbridge", who: root, runtime: gvisor}
	owned        = setup{backend: "netbridge", who: root, runtime: gvisorOwn}
	userspace    = setup{backend: "netuserspace", who: ordinary, runtime: gvisor}
	netstack     = setup{backend: "netuserspace", who: ordinary, config: `path = "netstack"`, runtime: gvisor}
	framed       = setup{backend: "netuserspace", who: ordinary, runtime: gvisorOwn}
	framedByRoot = setup{backend: "netuserspace", who: root, runtime: gvisorOwn}
)

// A policy means under gVisor what it means without, whatever enforces it.
func TestUnderGVisor(t *testing.T) {
	netlab.Needs(t)
	for _, c := range []struct {
		name string
		with setup
		test func(*testing.T, *site)
	}{
		{"netbridge/verdicts", bridged, verdicts},
		{"netbridge/first packets", bridged, firstPackets},
		{"netbridge/published", bridged, publishedPorts},
		{"netbridge/handmade", bridged, handmade},
		{"netbridge, own stack/verdicts", owned, verdicts},
		{"netbridge, own stack/first packets", owned, firstPackets},
		{"netbridge, own stack/published", owned, publishedPorts},
		{"netbridge, own stack/denials", owned, denialsAreEvents},
		{"netbridge, own stack/broken out", owned, rulesItsOwnSide},
		{"netbridge, own stack/supervisor dies", owned, supervisorDies},
		{"netuserspace/verdicts", userspace, verdicts},
		{"netuserspace/published", userspace, publishedPorts},
		{"netuserspace/denials", userspace, denialsAreEvents},
		{"netuserspace/handmade", userspace, handmade},
		{"netstack/verdicts", netstack, verdicts},
		{"netuserspace, own stack/verdicts", framed, verdicts},
		{"netuserspace, own stack/first packets", framed, firstPackets},
		{"netuserspace, own stack/published", framed, publishedPorts},
		{"netuserspace, own stack/denials", framed, denialsAreEvents},
		{"netuserspace, own stack/bytes", framed, bytesArriveWhole},
		{"netuserspace, own stack/flood", framed, floodOfConnections},
		{"netuserspace, own stack/accounts", framed, flowsAreAccounted},
		{"netuserspace, own stack/broken out", framed, rulesItsOwnSide},
		{"netuserspace, own stack/supervisor dies", framed, supervisorDies},
		{"netuserspace, own stack, root/verdicts", framedByRoot, verdicts},
		{"netuserspace, own stack, root/first packets", framedByRoot, firstPackets},
		{"netuserspace, own stack, root/published", framedByRoot, publishedPorts},
		{"netuserspace, own stack, root/denials", framedByRoot, denialsAreEvents},
		{"netuserspace, own stack, root/broken out", framedByRoot, rulesItsOwnSide},
		{"netuserspace, own stack, root/supervisor dies", framedByRoot, supervisorDies},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, newSite(t, c.with)) })
	}
}

// handmade is what a workload does with all that gVisor lets one that has capabilities:
// its system calls meet no filter of ours.
func handmade(t *testing.T, s *site) {
	publish(s.lab)
	s.lab.Echo(t, 443)
	s.lab.Host.Echo(t, 443, 9000)
	probes := append(forged(probe.Raw), forged(probe.Frame)...)
	probes = append(probes, probe.Probe{ID: "tamper", Kind: probe.Tamper, From: "151.101.7.9/24", To: "93.184.216.96/28", Alone: true})
	afterwards := deniedAfterwards()
	probes = append(append(probes, afterwards...), forgedLater()...)
	s.lab.ForgetPackets(t)
	o := s.run(job{network: policy, more: powers, probes: probes})
	for _, p := range afterwards {
		if r := o.results[p.ID]; r.OK {
			t.Errorf("%s passed: %s", p.ID, r.Line)
		}
	}
	sent := 0
	for id, r := range o.results {
		if r.OK && (strings.Contains(id, probe.Raw+" ") || strings.Contains(id, probe.Frame+" ")) {
			sent++
		}
	}
	t.Logf("%d of %d packets could be sent; undoing what is inside: %q", sent, len(probes), o.results["tamper"].Err)
	time.Sleep(100 * time.Millisecond)
	for _, p := range escaped(t, s.lab, mayLeave()) {
		t.Errorf("left the host: %s", p)
	}
}

// A job whose network stack is gVisor's reaches others of its stack as any does. It is not
// reached: what the core can make for that are sockets of its namespace.
func TestJobsWithAStackOfTheirOwn(t *testing.T) {
	netlab.Needs(t)
	s := newSite(t, framed)
	s.more = "" // not all of them
	path := s.dialledStack()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// Nor could it be asked whether it is ready.
	unasked := strings.NewReplacer("  readiness {\n    tcp = 5432\n  }\n", "", `"ready"`, `"started"`)
	under := func(job, text string) string {
		head := fmt.Sprintf("job %q {\n", job)
		file := filepath.Join(s.who.dir, job+"-under.hcl")
		if err := os.WriteFile(file, []byte(strings.Replace(text, head, head+gvisorOwn, 1)), 0o644); err != nil {
			t.Fatal(err)
		}
		return file
	}
	web, db := under("web", string(text)), under("db", unasked.Replace(string(text)))
	s.must("up", "-config", web, "-stack", "asks")
	s.passes("asks-web",
		probe.Probe{ID: "open 4", Kind: probe.TCP, Family: "4", To: "db:5432", Wait: 10 * time.Second},
		probe.Probe{ID: "open 6", Kind: probe.TCP, Family: "6", To: "db:5432", Wait: 10 * time.Second},
		probe.Probe{ID: "open udp", Kind: probe.UDP, To: "db:5433", Wait: 10 * time.Second},
		tcp("another port", "db:9999"),
		tcp("a job that no rule has", "cron:5432"))
	s.must("down", "-config", web, "-stack", "asks")

	s.must("up", "-config", db, "-stack", "asked")
	s.passes("asked-web", tcp("no way in", "db:5432"))
	if told := s.must("events", "asked-web"); !strings.Contains(told, "network.unreached") || !strings.Contains(told, "network stack of its runtime") {
		t.Errorf("why the job is not reached is not told: %s", told)
	}
	s.must("down", "-config", db, "-stack", "asked")
}
