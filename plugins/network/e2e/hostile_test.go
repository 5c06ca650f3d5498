package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
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

// powers let a workload make packets by hand, and change its own side of the network as
// far as the filter of system calls goes.
const powers = `
security {
  capabilities {
    keep = ["NET_RAW", "NET_ADMIN"]
  }
}
`

// forged are packets that a program makes by hand: from whomever, of odd protocols and
// in no order that a connection has.
func forged(kind string) []probe.Probe {
	var all []probe.Probe
	add := func(from, to string, proto, flags uint8) {
		all = append(all, probe.Probe{ID: fmt.Sprintf("%s %s > %s %d %#x", kind, from, to, proto, flags), Kind: kind, From: from + ":4444", To: to + ":443", Proto: proto, Flags: flags})
	}
	for _, family := range []struct {
		own, denied, allowed string
		forged               []string
		icmp                 uint8
		echo                 uint8
	}{
		{"self", "93.184.216.99", "93.184.216.130", []string{"151.101.7.2", "151.101.7.1", "10.77.0.50", "127.0.0.1", "198.18.0.1", "0.0.0.0"}, unix.IPPROTO_ICMP, 8},
		{"self", "[2606:2800:220::99]", "[2606:2800:220:a::130]", []string{"[2a04:4e42:7::2]", "[2a04:4e42:7::1]", "[fd77::50]", "[::1]"}, unix.IPPROTO_ICMPV6, 128},
	} {
		for _, from := range append([]string{family.own}, family.forged...) {
			// With flags of no beginning: a firewall that looks only at SYN lets them out.
			for _, flags := range []uint8{0x02, 0x10, 0x12, 0x04, 0x01, 0x00, 0x29} {
				add(from, family.denied, unix.IPPROTO_TCP, flags)
			}
			add(from, family.denied, unix.IPPROTO_UDP, 0)
			add(from, family.denied, family.icmp, family.echo)
			add(from, family.denied, family.icmp, 3)
			if from != family.own {
				add(from, family.allowed, unix.IPPROTO_TCP, 0x02)
				add(from, family.allowed, unix.IPPROTO_UDP, 0)
			}
		}
		// Protocols that no rule has a word for: SCTP, GRE, tunnels, one that is not assigned.
		for _, proto := range []uint8{132, 47, 4, 41, 50, 253} {
			add(family.own, family.denied, proto, 0)
			add(family.own, family.allowed, proto, 0)
		}
	}
	return all
}

// deniedAfterwards are flows that the policy of these tests refuses, whatever was tried before.
func deniedAfterwards() []probe.Probe {
	return []probe.Probe{
		{ID: "tcp denied", Kind: probe.TCP, To: "93.184.216.99:443"},
		{ID: "udp denied", Kind: probe.UDP, To: "93.184.216.99:443"},
		{ID: "tcp6 denied", Kind: probe.TCP, To: "[2606:2800:220::99]:443"},
		{ID: "metadata", Kind: probe.TCP, To: "169.254.169.254:443"},
		{ID: "the host", Kind: probe.TCP, To: "151.101.7.2:9000"},
		{ID: "another resolver", Kind: probe.DNS, Name: "allowed.example", Type: "A", To: "9.9.9.9:53"},
	}
}

// The policy stands where somebody who rules the sandbox's side of the network does not
// reach: who deletes what is set up there, takes other addresses, and makes packets and
// frames by hand. No workload has that much, for the filter of system calls; so the
// test's root does it, in the sandbox's network.
func TestWorkloadRulesItsOwnSide(t *testing.T) { sites(t, rulesItsOwnSide) }

func rulesItsOwnSide(t *testing.T, s *site) {
	publish(s.lab)
	s.lab.Echo(t, 443, 444)
	s.lab.Host.Echo(t, 443, 9000)
	// On one machine the next sandbox has the addresses beside those of the first.
	neighbour := s.start(job{name: "neighbour", network: policy, probes: []probe.Probe{
		{ID: "self", Kind: probe.Self, Alone: true}, {ID: "serve", Kind: probe.Serve, To: "[::]:443", Wait: patience},
	}})
	beside := neighbour.result("self")
	s.lab.ForgetPackets(t)
	probes := []probe.Probe{{ID: "teeth", Kind: probe.Frame, From: "self:4444", To: "93.184.216.130:443", Proto: unix.IPPROTO_UDP, Alone: true}}
	probes = append(append(probes, forged(probe.Raw)...), forged(probe.Frame)...)
	probes = append(probes, probe.Probe{ID: "tamper", Kind: probe.Tamper, From: "151.101.7.9/24", To: "93.184.216.96/28", Alone: true},
		probe.Probe{ID: "tamper again", Kind: probe.Tamper, From: "169.254.169.1/16", To: "2606:2800:220::/64", Alone: true})
	afterwards := append(deniedAfterwards(), probe.Probe{ID: "the host's gateway", Kind: probe.TCP, To: "151.101.7.1:443"})
	for i, a := range append(beside.Addresses, beside.Gateways...) {
		to := a
		if netip.MustParseAddr(a).Is6() {
			to = "[" + a + "]"
		}
		for _, port := range []string{":443", ":9000"} {
			afterwards = append(afterwards, probe.Probe{ID: fmt.Sprint("near ", i, port), Kind: probe.TCP, To: to + port})
		}
	}
	probes = append(append(probes, afterwards...), forgedLater()...)
	r := s.start(job{network: policy, probes: []probe.Probe{{ID: "self", Kind: probe.Self, Alone: true}, {ID: "wait", Kind: probe.Sleep, Wait: patience}}})
	own := r.result("self").Addresses
	for i := range probes {
		probes[i].From = fromOwn(probes[i], own)
	}
	results := s.inside(netlab.Of(t, r.workload()), probes)
	sent := 0
	for _, got := range results {
		if got.OK {
			sent++
		}
	}
	if sent == 0 {
		t.Error("nothing was sent")
	}
	t.Logf("%d of %d packets could be sent; undoing what is inside: %q, %q", sent, len(probes), results["tamper"].Err, results["tamper again"].Err)
	for _, p := range afterwards {
		if r := results[p.ID]; r.OK {
			t.Errorf("%s passed: %s", p.ID, r.Line)
		}
	}
	time.Sleep(100 * time.Millisecond)
	// What is allowed gets out that way, so that what is denied could have.
	if s.backend == "netbridge" && !slices.ContainsFunc(s.lab.Packets(t), func(p netlab.Packet) bool {
		return p.Protocol == unix.IPPROTO_UDP && p.Dst == netip.MustParseAddrPort("93.184.216.130:443") && p.Payload == 16
	}) {
		t.Errorf("no frame gets out, whatever it carries: %+v", results["teeth"])
	}
	for _, p := range escaped(t, s.lab, mayLeave()) {
		t.Errorf("left the host: %s", p)
	}
	r.stop()
	neighbour.stop()
}

// fromOwn is the sender of a probe, with an address that the workload has: a network
// stack of its own has taken it off the namespace's.
func fromOwn(p probe.Probe, own []string) string {
	port, self := strings.CutPrefix(p.From, "self")
	for _, a := range own {
		addr := netip.MustParseAddr(a)
		if self && addr.Is6() == strings.HasPrefix(p.To, "[") && !addr.IsLinkLocalUnicast() {
			return net.JoinHostPort(a, strings.TrimPrefix(port, ":"))
		}
	}
	return p.From
}

// inside tries probes as root of a network namespace.
func (s *site) inside(ns *netlab.Namespace, probes []probe.Probe) map[string]probe.Result {
	s.t.Helper()
	list, err := json.Marshal(probes)
	if err != nil {
		s.t.Fatal(err)
	}
	path := filepath.Join(s.stuff, "inside.json")
	if err := os.WriteFile(path, list, 0o644); err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	out, err := ns.CommandContext(ctx, filepath.Join(s.stuff, "client"), path).Output()
	if err != nil {
		s.t.Fatalf("trying from inside: %v", err)
	}
	results := map[string]probe.Result{}
	for line := range bytes.Lines(out) {
		var r probe.Result
		if err := json.Unmarshal(line, &r); err != nil {
			s.t.Fatal(err)
		}
		results[r.ID] = r
	}
	return results
}

// forgedLater are packets with the addresses that the workload has taken.
func forgedLater() []probe.Probe {
	all := forged(probe.Frame)
	for i := range all {
		all[i].ID = "later " + all[i].ID
		all[i].MAC = "02:00:00:00:00:0" + fmt.Sprint(i%10)
	}
	return all
}

// Replies to published ports leave, and nothing that only looks like one.
func TestPublishedPortIsNoWayOut(t *testing.T) { sites(t, noWayOut) }

func noWayOut(t *testing.T, s *site) {
	publish(s.lab)
	s.lab.Echo(t, 443)
	var probes []probe.Probe
	for _, to := range []string{"93.184.216.99:443", "[2606:2800:220::99]:443"} {
		for _, proto := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
			for _, flags := range []uint8{0x02, 0x12, 0x10} {
				probes = append(probes, probe.Probe{ID: fmt.Sprint(to, proto, flags), Kind: probe.Raw, From: "self:8080", To: to, Proto: proto, Flags: flags})
			}
		}
	}
	s.lab.ForgetPackets(t)
	s.run(job{network: policy + published("0.0.0.0:8083", 8080, "tcp") + published("[::]:8084", 8080, "udp"), more: powers, probes: probes})
	for _, p := range escaped(t, s.lab, mayLeave()) {
		t.Errorf("left the host: %s", p)
	}
}
