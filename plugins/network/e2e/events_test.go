package e2e

import (
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/probe"
)

func addresses(all ...string) []netip.Addr {
	var parsed []netip.Addr
	for _, a := range all {
		parsed = append(parsed, netip.MustParseAddr(a))
	}
	return parsed
}

// Each refusal is an event that says what was tried and which line of the job stood in
// the way.
func TestDenialsAreEvents(t *testing.T) { sites(t, denialsAreEvents) }

func denialsAreEvents(t *testing.T, s *site) {
	const text = `
dns = ["93.184.216.53"]
egress {
  allow { # named
    names = ["allowed.example", "rebind.example"]
    ports = ["443/tcp"]
  }
  allow { # block
    cidrs = ["93.184.216.128/28", "2606:2800:220:a::/64"]
    ports = ["443/tcp"]
  }
}
`
	publish(s.lab)
	s.lab.Echo(t, 443, 444)
	probes := []probe.Probe{
		{ID: "default", Kind: probe.TCP, To: "93.184.216.99:443"},
		{ID: "default6", Kind: probe.TCP, To: "[2606:2800:220::99]:443"},
		{ID: "udp", Kind: probe.UDP, To: "93.184.216.100:443"},
		{ID: "udp6", Kind: probe.UDP, To: "[2606:2800:220::100]:443"},
		{ID: "port of a block", Kind: probe.TCP, To: "93.184.216.130:444"},
		{ID: "port of a name", Kind: probe.TCP, Family: "4", To: "allowed.example:444"},
		{ID: "denied name", Kind: probe.TCP, Family: "4", To: "denied.example:443"},
		{ID: "private", Kind: probe.TCP, Family: "4", To: "rebind.example:443"},
	}
	r := s.start(job{network: text, probes: probes})
	o := r.wait()
	if o.code != 0 {
		t.Fatalf("exit code %d: %s", o.code, o.stderr)
	}
	for _, p := range probes {
		if o.results[p.ID].OK {
			t.Errorf("%s passed", p.ID)
		}
	}
	named, block, egress := lineOf(t, r.job, "# named"), lineOf(t, r.job, "# block"), lineOf(t, r.job, "egress {")
	for _, c := range []struct {
		what, protocol, destination, name, reason string
		rule, line                                int
	}{
		{"default", "tcp", "93.184.216.99:443", "", "default", -1, egress},
		{"default over IPv6", "tcp", "[2606:2800:220::99]:443", "", "default", -1, egress},
		{"datagram", "udp", "93.184.216.100:443", "", "default", -1, egress},
		{"datagram over IPv6", "udp", "[2606:2800:220::100]:443", "", "default", -1, egress},
		{"port of a block", "tcp", "93.184.216.130:444", "", "port", 1, block},
		{"port of a name", "tcp", "*", "allowed.example", "port", 0, named},
		{"name", "dns", "", "denied.example", "default", -1, egress},
		{"private address", "*", "*", "rebind.example", "private", 0, named},
	} {
		found := false
		for _, e := range o.of("network.denied") {
			d := e.Detail
			if c.protocol != "*" && d.Protocol != c.protocol || c.destination != "*" && d.Destination != c.destination || d.Name != c.name {
				continue
			}
			found = true
			rule := -1
			if d.Rule != nil {
				rule = *d.Rule
			}
			if d.Reason != c.reason || rule != c.rule || d.Count < 1 {
				t.Errorf("%s: %+v with rule %d, want reason %s of rule %d", c.what, d, rule, c.reason, c.rule)
			}
			if at := ":" + strconv.Itoa(c.line); !strings.HasSuffix(d.Where, at) {
				t.Errorf("%s: refused by %q, want line %d of the job", c.what, d.Where, c.line)
			}
		}
		if !found {
			t.Errorf("%s: no event", c.what)
		}
	}
	// Whoever has no events is told at the end.
	if told := strings.Count(o.stderr, "nucleus: warning: "); told != 6 || !strings.Contains(o.stderr, "more destinations") {
		t.Errorf("told of %d refusals: %s", told-1, o.stderr)
	}
	if o := s.run(job{network: text, probes: []probe.Probe{{ID: "allowed", Kind: probe.TCP, To: "allowed.example:443"}}}); !o.results["allowed"].OK || o.stderr != "" {
		t.Errorf("nothing was refused: %+v, %s", o.results["allowed"], o.stderr)
	}
	if t.Failed() {
		for _, e := range o.of("network.denied") {
			t.Logf("%+v", e.Detail)
		}
	}
}

func lineOf(t *testing.T, path, what string) int {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i, line := range strings.Split(string(data), "\n") {
		if strings.Contains(line, what) {
			return i + 1
		}
	}
	t.Fatalf("%s has no line with %q", path, what)
	return 0
}

// A workload that does nothing but break the policy floods neither the events nor the
// supervisor.
func TestDenialsAreBounded(t *testing.T) {
	sites(t, func(t *testing.T, s *site) {
		var probes []probe.Probe
		for i := range 16 {
			probes = append(probes, probe.Probe{
				ID: strconv.Itoa(i), Kind: probe.TCP, To: "93.184.216." + strconv.Itoa(50+i) + ":443", Times: 200, Wait: 20_000_000,
			})
		}
		o := s.run(job{network: policy, probes: probes})
		var told, counted uint64
		for _, e := range o.of("network.denied") {
			told++
			counted += e.Detail.Count
		}
		if told == 0 || told > 1000 || counted < told {
			t.Errorf("%d events for %d denials of %d tries", told, counted, 16*200)
		}
		if packets := escaped(t, s.lab, mayLeave()); len(packets) > 0 {
			t.Errorf("left the host: %q", packets)
		}
	})
}
