package netbridge

import (
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/netlab"
	"github.com/nucleus-runtime/nucleus/plugins/network/internal/probe"
	"github.com/nucleus-runtime/nucleus/sdk/network"
	"github.com/nucleus-runtime/nucleus/sdk/network/egress"
)

func TestFlowsByName(t *testing.T) {
	netlab.Needs(t)
	lab := netlab.New(t)
	lab.Echo(t, 443, 8080)
	before := lab.Host.Census(t)
	lab.DNS.Set("api.example.com", "93.184.216.34", "2606:2800:220::34")
	lab.DNS.Set("other.example.com", "93.184.216.34", "2606:2800:220::34") // shares its address
	lab.DNS.Set("in.example.com", "10.77.0.9", "fd77::9")
	lab.DNS.Set("mixed.example.com", "10.77.0.9", "93.184.216.35")
	lab.DNS.Set("host.example.com", netlab.HostV4.String(), netlab.HostV6.String())
	p, b := start(t, lab), newBox(t, "sb1")
	p.attach(b, network.AttachRequest{IfName: "eth0", Egress: network.Egress{Allow: []network.Rule{
		{Names: []string{"api.example.com", "in.example.com", "mixed.example.com", "host.example.com"}, Ports: tcpPorts(443, 443)},
		{Names: []string{"*.pypi.org"}},
		{CIDRs: []netip.Prefix{netip.MustParsePrefix("10.77.0.9/32")}, Ports: tcpPorts(443, 443)},
	}}})
	lab.DNS.Rotate("files.pypi.org", "93.184.216.40", "93.184.216.41", "2606:2800:220::40", "2606:2800:220::41")
	lab.ForgetPackets(t)
	const resolver = "127.0.0.53:53"
	got := b.try(
		probe.Probe{ID: "deny", Kind: probe.DNS, To: resolver, Name: "other.example.com", Type: "A"},
		probe.Probe{ID: "bare", Kind: probe.DNS, To: resolver, Name: "pypi.org", Type: "A"},
		probe.Probe{ID: "api4", Kind: probe.DNS, To: resolver, Name: "api.example.com", Type: "A"},
		probe.Probe{ID: "api6", Kind: probe.DNS, To: resolver, Name: "api.example.com", Type: "AAAA", Over: "tcp"},
		probe.Probe{ID: "in4", Kind: probe.DNS, To: resolver, Name: "in.example.com", Type: "A"},
		probe.Probe{ID: "in6", Kind: probe.DNS, To: resolver, Name: "in.example.com", Type: "AAAA"},
		probe.Probe{ID: "mixed4", Kind: probe.DNS, To: resolver, Name: "mixed.example.com", Type: "A"},
		probe.Probe{ID: "host4", Kind: probe.DNS, To: resolver, Name: "host.example.com", Type: "A"},
		probe.Probe{ID: "files4", Kind: probe.DNS, To: resolver, Name: "files.pypi.org", Type: "A"},
		probe.Probe{ID: "files6", Kind: probe.DNS, To: resolver, Name: "files.pypi.org", Type: "AAAA"},
	)
	for _, id := range []string{"deny", "bare"} {
		if got[id].OK {
			t.Errorf("%s is answered: %v", id, got[id].Addresses)
		}
	}
	if n := lab.DNS.Queries("other.example.com"); n != 0 {
		t.Errorf("a question for a name that may not be asked for has left %d times", n)
	}
	own := func(id, port string) string {
		t.Helper()
		if len(got[id].Addresses) != 1 {
			t.Fatalf("%s: %+v", id, got[id])
		}
		a := netip.MustParseAddr(got[id].Addresses[0])
		if !synthetic4.Contains(a) && !synthetic6.Contains(a) {
			t.Fatalf("%s is answered with %s", id, a)
		}
		return netip.AddrPortFrom(a, 0).String()[:len(netip.AddrPortFrom(a, 0).String())-1] + port
	}
	expect(t, lab, p, b, []flows{
		{own("api4", "443"), probe.TCP, true, ""},
		{own("api6", "443"), probe.TCP, true, ""},
		{own("api4", "8080"), probe.TCP, false, network.ReasonPort},
		{own("api6", "8080"), probe.TCP, false, network.ReasonPort},
		{own("api4", "443"), probe.UDP, false, network.ReasonPort},
		{own("in4", "443"), probe.TCP, true, ""}, // by the block, too
		{own("mixed4", "443"), probe.TCP, true, ""},
		{own("host4", "443"), probe.TCP, false, network.ReasonPrivate},
		{own("files4", "8080"), probe.TCP, true, ""},
		{own("files4", "443"), probe.UDP, true, ""},
		{own("files6", "443"), probe.UDP, true, ""},
		{"93.184.216.36:443", probe.TCP, false, network.ReasonDefault},
		{"10.77.0.9:443", probe.TCP, true, ""},
		{"10.77.0.9:8080", probe.TCP, false, network.ReasonPort},
		{"198.19.77.7:443", probe.TCP, false, network.ReasonUnbound},
	})
	if len(got["in6"].Addresses) > 0 {
		t.Errorf("a private address that no block allows has a name's address: %v", got["in6"].Addresses)
	}
	if _, err := p.denied(func(d network.Denial) bool { return d.Protocol == "dns" && d.Name == "other.example.com" }); err != nil {
		t.Error(err)
	}
	st := p.status(b)
	var api network.FlowStats
	for _, f := range st.Flows {
		if f.Name == "api.example.com" {
			api = f
		}
	}
	if api.Connections < 2 || api.RxBytes == 0 || api.TxBytes == 0 {
		t.Errorf("flows: %+v", st.Flows)
	}
	p.detach(b)
	clean(t, lab, before)
}

func TestNamesThatMove(t *testing.T) {
	netlab.Needs(t)
	lab := netlab.New(t)
	lab.Echo(t, 443)
	lab.DNS.Rotate("api.example.com", "93.184.216.40", "93.184.216.41", "93.184.216.42")
	p, b := start(t, lab), newBox(t, "sb1")
	p.attach(b, network.AttachRequest{Egress: network.Egress{Allow: []network.Rule{{Names: []string{"api.example.com"}, Ports: tcpPorts(443, 443)}}}})
	reached := make(map[string]bool)
	first := ""
	for i := range 6 {
		r := b.try(probe.Probe{ID: "q", Kind: probe.DNS, To: "127.0.0.53:53", Name: "api.example.com", Type: "A"})["q"]
		if !r.OK {
			t.Fatalf("%+v", r)
		}
		if first == "" {
			first = r.Addresses[0]
		}
		if r.Addresses[0] != first {
			t.Errorf("the name's address changes: %s, then %s", first, r.Addresses[0])
		}
		f := b.try(probe.Probe{ID: "f", Kind: probe.TCP, To: first + ":443"})["f"]
		if !f.OK {
			t.Errorf("try %d: %s", i, f.Err)
		}
		if fields := strings.Fields(f.Line); len(fields) > 1 {
			reached[fields[1]] = true
		}
		time.Sleep(1100 * time.Millisecond)
	}
	if len(reached) < 2 {
		t.Errorf("reached %v", reached)
	}
}

func TestPrivateIsWhatThePolicySays(t *testing.T) {
	matches := func(a netip.Addr) bool { // as the rules of public do
		in := func(f fam, a netip.Addr) bool {
			for _, b := range private(f) {
				if b.Contains(a) {
					return true
				}
			}
			return false
		}
		if a.Is4() {
			return !in(inet4(), a)
		}
		b := a.As16()
		four := netip.AddrFrom4([4]byte(b[12:]))
		switch {
		case netip.MustParsePrefix("64:ff9b::/96").Contains(a):
			return !in(inet4(), four)
		case b[0]&0xe0 != 0x20:
			return false
		case b[8]&0xfc == 0 && b[9] == 0 && b[10] == 0x5e && b[11] == 0xfe && in(inet4(), four):
			return false
		}
		return !in(inet6(), a)
	}
	check := func(a netip.Addr) {
		t.Helper()
		if a.IsValid() && matches(a) != egress.Public(a) {
			t.Errorf("%s: the rules say %v", a, matches(a))
		}
	}
	for _, f := range families() {
		for _, p := range private(f) {
			for _, a := range []netip.Addr{p.Addr(), lastOf(p)} {
				check(a)
				check(a.Next())
				check(a.Prev())
			}
		}
	}
	for range 200000 {
		var b [16]byte
		for i := range b {
			b[i] = byte(rand.Uint32())
		}
		check(netip.AddrFrom4([4]byte(b[:])))
		check(netip.AddrFrom16(b))
		b[0] = 0x20 | b[0]&0x1f
		copy(b[8:], []byte{b[8] & 3, 0, 0x5e, 0xfe})
		check(netip.AddrFrom16(b))
		copy(b[:], []byte{0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0})
		check(netip.AddrFrom16(b))
		copy(b[:], []byte{0x20, 0x01})
		check(netip.AddrFrom16(b))
	}
}
