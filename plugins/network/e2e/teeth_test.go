package e2e

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/netlab"
	"github.com/nucleus-runtime/nucleus/plugins/network/internal/probe"
)

// Without any policy the table's probes reach what the policy denies, and the capture
// sees it: a denial of the table is the policy's, and not the laboratory's.
func TestProbesHaveTeeth(t *testing.T) {
	netlab.Needs(t)
	s := newSite(t, setup{backend: "none", who: root})
	publish(s.lab)
	s.lab.Echo(t, 80, 443, 444, 853)
	s.lab.Host.Echo(t, 22, 80, 443, 8080, 9000)
	probes, want := expand(append(table(), around(probe.Result{Gateways: []string{netlab.GatewayV4.String(), netlab.GatewayV6.String()}})...))
	o := s.run(job{backend: "host", probes: probes})
	for _, id := range slices.Sorted(maps.Keys(want)) {
		r := o.results[id]
		if hopeless := slices.ContainsFunc([]string{
			"everybody on the link", "a multicast group", "reserved space", "in IPv6 clothes", "no host name", "bare suffix",
			"address of loopback", "gateway (", // no server listens there, at these ports
		}, func(part string) bool { return strings.Contains(id, part) }); !hopeless && !r.OK {
			t.Errorf("%s: not reached: %s", id, r.Err)
		}
	}
	if len(escaped(t, s.lab, mayLeave())) < 40 {
		t.Errorf("the capture saw nothing that the policy denies")
	}
	for _, name := range []string{"denied.example", "suffix.example", "notsuffix.example"} {
		if s.lab.DNS.Queries(name) == 0 {
			t.Errorf("nobody asked for %s", name)
		}
	}
}
