package e2e

import (
	"fmt"
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
	bridged   = setup{backend: "netbridge", who: root, runtime: gvisor}
	owned     = setup{backend: "netbridge", who: root, runtime: gvisorOwn}
	userspace = setup{backend: "netuserspace", who: ordinary, runtime: gvisor}
	netstack  = setup{backend: "netuserspace", who: ordinary, config: `path = "netstack"`, runtime: gvisor}
	framed    = setup{backend: "netuserspace", who: ordinary, runtime: gvisorOwn}
	framedAll = setup{backend: "netuserspace", who: root, runtime: gvisorOwn}
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
		{"netuserspace, own stack/broken out", framed, rulesItsOwnSide},
		{"netuserspace, own stack/supervisor dies", framed, supervisorDies},
		{"netuserspace, own stack, root/verdicts", framedAll, verdicts},
		{"netuserspace, own stack, root/published", framedAll, publishedPorts},
		{"netuserspace, own stack, root/denials", framedAll, denialsAreEvents},
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

// netuserspace is in the namespace's network stack, of which one of gVisor's own makes no
// use: nothing of the job is begun then.
func TestOwnStackIsRefusedByNetuserspace(t *testing.T) {
	netlab.Needs(t)
	with := userspace
	with.runtime = gvisorOwn
	s := newSite(t, with)
	r := s.start(job{network: policy, probes: []probe.Probe{{ID: "self", Kind: probe.Self}}})
	o := r.wait()
	want := fmt.Sprintf(":%d: ", lineOf(t, r.job, "runtime "))
	if o.code != 125 || !strings.Contains(o.stderr, want) || !strings.Contains(o.stderr, "network stack of its own") {
		t.Errorf("exit code %d, want 125 and%sthe runtime: %s", o.code, want, o.stderr)
	}
	if len(o.results) > 0 {
		t.Error("the workload ran")
	}
}
