package netbridge

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/netlab"
	"github.com/nucleus-runtime/nucleus/plugins/network/internal/probe"
	"github.com/nucleus-runtime/nucleus/sdk/network"
)

// reach connects to a name once, and gives where that led.
func (b *box) reach(t *testing.T, name, family string) (netip.Addr, time.Duration) {
	t.Helper()
	kind := map[string]string{"4": "A", "6": "AAAA"}[family]
	q := b.try(probe.Probe{ID: "q", Kind: probe.DNS, To: "127.0.0.53:53", Name: name, Type: kind})["q"]
	if len(q.Addresses) != 1 {
		t.Fatalf("%s: %+v", name, q)
	}
	own := netip.AddrPortFrom(netip.MustParseAddr(q.Addresses[0]), 443)
	began := time.Now()
	f := b.try(probe.Probe{ID: "f", Kind: probe.TCP, To: own.String(), Wait: 15 * time.Second})["f"]
	if !f.OK {
		t.Fatalf("%s by IPv%s, after %s: %s", name, family, time.Since(began).Round(time.Millisecond), f.Err)
	}
	_, at, _, err := netlab.ParseEcho(f.Line)
	if err != nil {
		t.Fatal(err)
	}
	return at.Addr().Unmap(), time.Since(began)
}

// Connections to a name are spread over its addresses. One that does not answer costs the
// first connection some seconds, and the next ones nothing; a name that has that address
// alone still leads there.
func TestNameOfSeveralAddresses(t *testing.T) {
	netlab.Needs(t)
	lab := netlab.New(t)
	lab.Echo(t, 443)
	before := lab.Host.Census(t)
	v4 := []string{"93.184.216.40", "93.184.216.41", "93.184.216.42"}
	v6 := []string{"2606:2800:220::40", "2606:2800:220::41", "2606:2800:220::42"}
	lab.DNS.Set("many.example", slices.Concat(v4, v6)...)
	lab.DNS.Set("other.example", slices.Concat(v4, v6)...)
	lab.DNS.Set("one.example", v4[0], v6[0])
	lab.DNS.Set("part.example", v4[0], "10.77.0.66")
	p, b := start(t, lab), newBox(t, "sb1")
	p.attach(b, network.AttachRequest{Egress: network.Egress{Allow: []network.Rule{{Names: []string{"*.example"}, Ports: tcpPorts(443, 443)}}}})
	for _, family := range []string{"4", "6"} {
		reached := map[netip.Addr]int{}
		for range 40 {
			at, _ := b.reach(t, "many.example", family)
			reached[at]++
		}
		if len(reached) != 3 {
			t.Errorf("40 connections by IPv%s have reached %v", family, reached)
		}
	}
	dropTo(t, lab.Internet, v4[0], v6[0])
	for _, family := range []string{"4", "6"} {
		silent := netip.MustParseAddr(map[string]string{"4": v4[0], "6": v6[0]}[family])
		slow := 0
		for i := range 30 {
			name := []string{"many.example", "other.example"}[i%2]
			at, took := b.reach(t, name, family)
			if at == silent {
				t.Errorf("%s was reached at %s, which does not answer", name, at)
			}
			if took > 500*time.Millisecond {
				slow++
				t.Logf("%s, IPv%s: %s", name, family, took)
			}
		}
		if slow > 2 {
			t.Errorf("by IPv%s %d of 30 connections have waited for an address that does not answer", family, slow)
		}
	}
	for _, name := range []string{"one.example", "part.example"} {
		own := b.try(probe.Probe{ID: "q", Kind: probe.DNS, To: "127.0.0.53:53", Name: name, Type: "A"})["q"]
		lab.ForgetPackets(t)
		if f := b.try(probe.Probe{ID: "f", Kind: probe.TCP, To: own.Addresses[0] + ":443", Wait: 1500 * time.Millisecond})["f"]; f.OK {
			t.Errorf("%s: an address that does not answer has answered", name)
		}
		to := map[netip.Addr]bool{}
		for _, p := range lab.Packets(t) {
			to[p.Dst.Addr()] = true
		}
		if len(to) != 1 || !to[netip.MustParseAddr(v4[0])] {
			t.Errorf("%s, of which one address may be reached, which does not answer, leads to %v", name, to)
		}
	}
	p.detach(b)
	clean(t, lab, before)
}

// dropTo has the internet lose what is sent to some addresses.
func dropTo(t *testing.T, n *netlab.Namespace, v4, v6 string) {
	t.Helper()
	rules := fmt.Sprintf("table inet lost { chain in { type filter hook prerouting priority 0; ip daddr %s drop; ip6 daddr %s drop; }; }", v4, v6)
	if out, err := n.Command("nft", rules).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}
