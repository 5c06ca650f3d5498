package egress

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"github.com/nucleus-runtime/nucleus/sdk/dnsname"
	"github.com/nucleus-runtime/nucleus/sdk/network"
)

// few names and ports, so that rules and flows meet often.
var (
	somePatterns = []string{"a.example", "b.a.example", "*.a.example", "*.example", "example", "*.b.a.example"}
	someNames    = []dnsname.Name{"a.example", "b.a.example", "c.b.a.example", "example", "x.example", "other"}
	someBlocks   = prefixes("0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "8.8.8.0/24", "::/0", "fd00::/8", "2606:4700::/32")
	someAddrs    = []string{"10.0.0.1", "10.1.0.1", "8.8.8.8", "9.9.9.9", "fd00::1", "2606:4700::1", "::ffff:10.1.0.1", "127.0.0.1"}
	someProtos   = []string{"tcp", "udp", "icmp", "47"}
)

func anyRule(t *rapid.T) network.Rule {
	r := network.Rule{
		Names: rapid.SliceOfN(rapid.SampledFrom(somePatterns), 0, 2).Draw(t, "names"),
		CIDRs: rapid.SliceOfN(rapid.SampledFrom(someBlocks), 0, 2).Draw(t, "cidrs"),
	}
	if len(r.Names)+len(r.CIDRs) == 0 {
		r.Names = somePatterns[:1]
	}
	for range rapid.IntRange(0, 2).Draw(t, "ports") {
		first := rapid.Uint16Range(1, 5).Draw(t, "first")
		r.Ports = append(r.Ports, network.Ports{
			Protocol: rapid.SampledFrom(someProtos[:2]).Draw(t, "protocol"),
			First:    first, Last: rapid.Uint16Range(first, 5).Draw(t, "last"),
		})
	}
	if rapid.Bool().Draw(t, "icmp") {
		r.Protocols = []string{"icmp"}
	}
	return r
}

// model is the policy as the contract puts it, without any thought of speed.
type model network.Egress

func (m model) first(has func(network.Rule) bool) int {
	for i, r := range m.Allow {
		if has(r) {
			return i
		}
	}
	return -1
}

func named(n dnsname.Name) func(network.Rule) bool {
	return func(r network.Rule) bool {
		for _, s := range r.Names {
			if p, err := dnsname.ParsePattern(s); err == nil && p.Match(n) {
				return true
			}
		}
		return false
	}
}

func within(a netip.Addr) func(network.Rule) bool {
	return func(r network.Rule) bool {
		for _, c := range r.CIDRs {
			if c.Contains(a.Unmap()) {
				return true
			}
		}
		return false
	}
}

func passes(has func(network.Rule) bool, proto string, port uint16) func(network.Rule) bool {
	return func(r network.Rule) bool {
		if !has(r) || proto == "47" {
			return false
		}
		if len(r.Ports)+len(r.Protocols) == 0 {
			return true
		}
		if proto == "icmp" {
			return len(r.Protocols) > 0
		}
		for _, p := range r.Ports {
			if p.Protocol == proto && p.First <= port && port <= p.Last {
				return true
			}
		}
		return false
	}
}

func (m model) decide(has func(network.Rule) bool, proto string, port uint16, public bool) (allow bool, rule int) {
	if i := m.first(passes(has, proto, port)); i >= 0 {
		return true, i
	}
	if m.Default == network.Allow || m.Default == network.Public && public && proto != "47" {
		return true, -1
	}
	return false, m.first(has)
}

func TestVerdictsAreThoseOfTheContract(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := network.Egress{Default: network.Verdict(rapid.IntRange(0, 2).Draw(t, "default")), Allow: rapid.SliceOfN(rapid.Custom(anyRule), 0, 5).Draw(t, "rules")}
		p, err := New(e)
		if err != nil {
			t.Fatal(err)
		}
		m := model(e)
		n := rapid.SampledFrom(someNames).Draw(t, "name")
		proto := rapid.SampledFrom(someProtos).Draw(t, "protocol")
		real := netip.AddrPortFrom(netip.MustParseAddr(rapid.SampledFrom(someAddrs).Draw(t, "address")), rapid.Uint16Range(0, 6).Draw(t, "port"))

		if got, want := p.Resolve(n), m.first(named(n)); got.Rule != want || got.Allow != (want >= 0 || e.Default != network.Deny) {
			t.Fatalf("Resolve: %+v, rule %d", got, want)
		}
		byName, rule := m.decide(named(n), proto, real.Port(), true)
		if got := p.Name(n, proto, real.Port()); got.Allow != byName || got.Rule != rule {
			t.Fatalf("Name: %+v, want %v, rule %d", got, byName, rule)
		}
		byAddr, rule := m.decide(within(real.Addr()), proto, real.Port(), Public(real.Addr()))
		if got := p.Addr(proto, real); got.Allow != byAddr || got.Rule != rule {
			t.Fatalf("Addr: %+v, want %v, rule %d", got, byAddr, rule)
		}
		granted := m.first(passes(within(real.Addr()), proto, real.Port())) >= 0
		bound := p.Bound(n, proto, real)
		if want := byName && (e.Default == network.Allow || Public(real.Addr()) || granted); bound.Allow != want {
			t.Fatalf("Bound: %+v, want %v", bound, want)
		}
		if bound.Allow && !(p.Name(n, proto, real.Port()).Allow && p.Reach(n, real.Addr()).Allow && p.Resolve(n).Allow && p.Names()) {
			t.Fatal("a flow is allowed, and what comes before it is not")
		}
		for _, v := range []Verdict{bound, p.Resolve(n), p.Name(n, proto, real.Port()), p.Addr(proto, real), p.Reach(n, real.Addr())} {
			if v.Allow != (v.Reason == "") || v.Rule < -1 || v.Rule >= len(e.Allow) {
				t.Fatalf("%+v makes no sense", v)
			}
		}
	})
}

// One more rule never takes away what was allowed.
func TestRulesOnlyAdd(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rules := rapid.SliceOfN(rapid.Custom(anyRule), 1, 5).Draw(t, "rules")
		def := network.Verdict(rapid.IntRange(0, 2).Draw(t, "default"))
		less, err := New(network.Egress{Default: def, Allow: rules[1:]})
		if err != nil {
			t.Fatal(err)
		}
		more, err := New(network.Egress{Default: def, Allow: rules})
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range someNames {
			for _, a := range someAddrs {
				for _, proto := range someProtos {
					real := netip.AddrPortFrom(netip.MustParseAddr(a), 3)
					if less.Bound(n, proto, real).Allow && !more.Bound(n, proto, real).Allow || less.Addr(proto, real).Allow && !more.Addr(proto, real).Allow {
						t.Fatalf("%s at %s over %s is allowed no more", n, a, proto)
					}
				}
			}
		}
	})
}

// FuzzAddr makes rules of bytes: whatever New takes, an address is allowed by a rule
// that has it, or is public.
func FuzzAddr(f *testing.F) {
	f.Add([]byte{10, 0, 0, 0}, uint8(8), uint16(1), uint16(2), []byte{10, 0, 0, 1}, uint16(2), "tcp", "*.a.example")
	f.Add(netip.MustParseAddr("fd00::").AsSlice(), uint8(8), uint16(1), uint16(2), netip.MustParseAddr("::ffff:10.0.0.1").AsSlice(), uint16(2), "udp", "")
	f.Fuzz(func(t *testing.T, block []byte, bits uint8, first, last uint16, dst []byte, port uint16, proto, name string) {
		at, _ := netip.AddrFromSlice(block)
		cidr := netip.PrefixFrom(at, int(bits))
		r := network.Rule{CIDRs: []netip.Prefix{cidr}, Ports: []network.Ports{{Protocol: proto, First: first, Last: last}}}
		if name != "" {
			r.Names = []string{name}
		}
		a, _ := netip.AddrFromSlice(dst)
		for _, def := range []network.Verdict{network.Deny, network.Public} {
			p, err := New(network.Egress{Default: def, Allow: []network.Rule{r}})
			if err != nil {
				return
			}
			v := p.Addr(proto, netip.AddrPortFrom(a, port))
			byRule := cidr.Contains(a.Unmap()) && first <= port && port <= last
			if v.Allow != (byRule || def == network.Public && Public(a)) || v.Allow && (v.Rule == 0) != byRule {
				t.Fatalf("%+v for %s port %d over %s by %+v", v, a, port, proto, r)
			}
		}
	})
}

func BenchmarkPolicy(b *testing.B) {
	var rules []network.Rule
	for i := range 100 {
		var block [4]byte
		binary.BigEndian.PutUint32(block[:], 0x0b000000+uint32(i)<<8)
		rules = append(rules, network.Rule{
			Names: []string{fmt.Sprintf("a%d.example", i), fmt.Sprintf("*.b%d.example", i)},
			CIDRs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4(block), 24)}, Ports: ports("tcp", 443, 443),
		})
	}
	p := policy(b, network.Deny, rules...)
	for _, what := range []string{"name a99.example tcp 443", "name y.x.b99.example tcp 443", "addr tcp 11.0.99.1:443", "bound a50.example tcp 8.8.8.8:443", "bound a50.example tcp 11.0.99.1:443"} {
		if !decide(b, p, what).Allow {
			b.Fatal(what)
		}
	}
	eight, far := netip.MustParseAddrPort("8.8.8.8:443"), netip.MustParseAddrPort("11.0.99.1:443")
	for name, ask := range map[string]func() Verdict{
		"name":     func() Verdict { return p.Name("a99.example", "tcp", 443) },
		"wildcard": func() Verdict { return p.Name("y.x.b99.example", "tcp", 443) },
		"addr":     func() Verdict { return p.Addr("tcp", far) },
		"bound":    func() Verdict { return p.Bound("a50.example", "tcp", eight) },
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				ask()
			}
		})
	}
}
