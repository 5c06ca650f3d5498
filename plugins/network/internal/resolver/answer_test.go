package resolver

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/nucleus-runtime/nucleus/sdk/network"
)

func TestANameHasAddressesOfItsOwn(t *testing.T) {
	b := newBench(t, names2rules("*.example"), []string{
		"a.example. 300 A 8.8.8.8", "b.example. 300 A 8.8.8.8", "c.example. 300 AAAA 2606:4700::1",
	}, nil)
	for _, c := range []struct {
		name  string
		qtype uint16
		want  string
	}{
		{"a.example.", dns.TypeA, "NOERROR 198.18.1.0"},
		{"a.example.", dns.TypeAAAA, "NOERROR fd00:6e75:636c::100"},
		{"A.Example.", dns.TypeA, "NOERROR 198.18.1.0"},
		{"b.example.", dns.TypeA, "NOERROR 198.18.1.1"},
		{"c.example.", dns.TypeA, "NOERROR 198.18.1.2"}, // the other family can be dialled
		{"1.1.18.198.in-addr.arpa.", dns.TypePTR, "NOERROR b.example."},
		{reverseName(t, "fd00:6e75:636c::102"), dns.TypePTR, "NOERROR c.example."},
		{reverseName(t, "fd00:6e75:636c::102"), dns.TypeA, "NOERROR"},
		{reverseName(t, "fd00:6e75:636c::103"), dns.TypePTR, "NXDOMAIN"},
	} {
		m := b.ask(t, c.name, c.qtype)
		if got := brief(m); got != c.want {
			t.Errorf("%s %s: %s, want %s", c.name, dns.TypeToString[c.qtype], got, c.want)
		}
		if len(m.Answer) > 0 && m.Answer[0].Header().Name != c.name {
			t.Errorf("%s: the answer is about %s", c.name, m.Answer[0].Header().Name)
		}
	}
	for a, want := range map[string]string{
		"198.18.1.1": "b.example", "::ffff:198.18.1.1": "b.example", "fd00:6e75:636c::100": "a.example",
		"198.18.1.3": "", "198.18.0.0": "", "fd00:6e75:636c::2:0100": "", "fd00:6e75:636c:1::100": "", "8.8.8.8": "",
	} {
		if n, ok := b.NameOf(netip.MustParseAddr(a)); string(n) != want || ok != (want != "") {
			t.Errorf("NameOf(%s) = %q, %v; want %q", a, n, ok, want)
		}
	}
}

func reverseName(t *testing.T, a string) string {
	t.Helper()
	n, err := dns.ReverseAddr(a)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestSynthetic(t *testing.T) {
	for a, want := range map[string]bool{
		"198.18.0.0": true, "198.19.255.255": true, "198.17.255.255": false, "198.20.0.0": false, "::ffff:198.18.0.1": true,
		"fd00:6e75:636c::": true, "fd00:6e75:636c:0:ffff:ffff:ffff:ffff": true, "fd00:6e75:636c:1::": false, "8.8.8.8": false,
	} {
		if got := Synthetic(netip.MustParseAddr(a)); got != want {
			t.Errorf("Synthetic(%s) = %v", a, got)
		}
		v4, v6 := netip.MustParsePrefix(PrefixV4), netip.MustParsePrefix(PrefixV6)
		if p := netip.MustParseAddr(a).Unmap(); (v4.Contains(p) || v6.Contains(p)) != want {
			t.Errorf("%s: the prefixes say another thing", a)
		}
	}
	if Synthetic(netip.Addr{}) {
		t.Error("no address is synthetic")
	}
}

func TestARefusedNameIsAskedOfNobody(t *testing.T) {
	e := network.Egress{Allow: []network.Rule{{Names: []string{"a.example", "*.b.example"}}}}
	for _, c := range []struct {
		name  string
		qtype uint16
		told  string
	}{
		{"c.example.", dns.TypeA, "c.example"},
		{"c.example.", dns.TypeTXT, "c.example"},
		{"x.a.example.", dns.TypeA, "x.a.example"},
		{"b.example.", dns.TypeAAAA, "b.example"}, // a wildcard is not for its parent
		{"example.", dns.TypeNS, "example"},
		{".", dns.TypeNS, ""},
		{`x\.b.example.`, dns.TypeA, `x\.b.example`}, // one label with a dot in it
		{`x\000.b.example.`, dns.TypeA, `x\000.b.example`},
		{`a.example\000.b.example.`, dns.TypeA, `a.example\000.b.example`},
		{`x\255.b.example.`, dns.TypeA, `x\255.b.example`},
		{"_dmarc.b.example.", dns.TypeTXT, "_dmarc.b.example"},
		{"1.1.168.192.in-addr.arpa.", dns.TypePTR, "1.1.168.192.in-addr.arpa"},
		{"x.18.198.in-addr.arpa.", dns.TypePTR, "x.18.198.in-addr.arpa"},
		{"arpa.", dns.TypeNS, "arpa"},
	} {
		b := newBench(t, e, []string{"a.example. 300 A 8.8.8.8"}, nil)
		if got := brief(b.ask(t, c.name, c.qtype)); got != "REFUSED" {
			t.Errorf("%s: %s", c.name, got)
		}
		if asked := b.up.questions(); len(asked) > 0 {
			t.Errorf("%s: upstream was asked %q", c.name, asked)
		}
		ds := b.denials()
		if len(ds) != 1 || ds[0].Name != c.told || ds[0].Protocol != "dns" || ds[0].Rule != -1 || ds[0].Reason != network.ReasonDefault || ds[0].Count != 1 || ds[0].At.IsZero() {
			t.Errorf("%s: told %+v", c.name, ds)
		}
	}
}

// Also where everything is allowed, nothing but the addresses of names is asked for.
func TestNothingButAddressesIsAskedFor(t *testing.T) {
	b := newBench(t, network.Egress{Default: network.Allow}, []string{"a.example. 300 A 8.8.8.8"}, nil)
	for _, qtype := range []uint16{
		dns.TypeTXT, dns.TypeNULL, dns.TypeHTTPS, dns.TypeSVCB, dns.TypeANY, dns.TypeMX, dns.TypeNS, dns.TypeSRV,
		dns.TypeSOA, dns.TypeCNAME, dns.TypeAXFR, dns.TypeDNSKEY, dns.TypePTR, 65280,
	} {
		if got := brief(b.ask(t, "a.example.", qtype)); got != "NOERROR" {
			t.Errorf("%d: %s", qtype, got)
		}
	}
	for name, want := range map[string]string{
		"8.8.8.8.in-addr.arpa.": "REFUSED", "_x.example.": "REFUSED", "localhost.": "NOERROR 127.0.0.1", "a.LocalHost.": "NOERROR 127.0.0.1",
	} {
		if got := brief(b.ask(t, name, dns.TypeA)); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	if got := brief(b.ask(t, "localhost.", dns.TypeAAAA)); got != "NOERROR ::1" {
		t.Errorf("localhost AAAA: %s", got)
	}
	q := new(dns.Msg).SetQuestion("version.bind.", dns.TypeTXT)
	q.Question[0].Qclass = dns.ClassCHAOS
	if got := brief(b.send(t, q, 512)); got != "REFUSED" {
		t.Errorf("version.bind: %s", got)
	}
	if asked := b.up.questions(); len(asked) > 0 {
		t.Errorf("upstream was asked %q", asked)
	}
}

func TestWhatDoesNotExistIsPassedOn(t *testing.T) {
	b := newBench(t, names2rules("*.example"), []string{"text.example. 300 TXT hello"}, nil)
	for name, want := range map[string]string{"none.example.": "NXDOMAIN", "text.example.": "NOERROR"} {
		m := b.ask(t, name, dns.TypeA)
		if got := brief(m); got != want || len(m.Ns) != 1 || m.Ns[0].Header().Rrtype != dns.TypeSOA || m.Ns[0].Header().Ttl > 30 {
			t.Errorf("%s: %v", name, m)
		}
	}
	if _, ok := b.NameOf(netip.MustParseAddr("198.18.1.0")); ok || len(b.bindings()) > 0 {
		t.Error("a name without addresses has got one of its own")
	}
}

// Whoever runs the zone of an allowed name chooses its addresses.
func TestAnAllowedNameDoesNotReachIntoPrivateNetworks(t *testing.T) {
	cidr := func(s string) network.Rule {
		return network.Rule{CIDRs: []netip.Prefix{netip.MustParsePrefix(s)}, Ports: []network.Ports{{Protocol: "tcp", First: 443, Last: 443}}}
	}
	for _, c := range []struct {
		name    string
		allow   []network.Rule
		def     network.Verdict
		records []string
		want    string // what it is bound to; "" for refused
	}{
		{"private", nil, network.Deny, []string{"A 10.0.0.1"}, ""},
		{"metadata", nil, network.Deny, []string{"A 169.254.169.254", "AAAA fd00:ec2::254"}, ""},
		{"by the default, too", nil, network.Public, []string{"A 192.168.0.1"}, ""},
		{"granted", []network.Rule{cidr("10.0.0.0/8")}, network.Deny, []string{"A 10.0.0.1"}, "10.0.0.1"},
		{"another block is granted", []network.Rule{cidr("10.1.0.0/16")}, network.Deny, []string{"A 10.0.0.1"}, ""},
		{"what is public stays", nil, network.Deny, []string{"A 10.0.0.1", "A 8.8.8.8", "AAAA ::1"}, "8.8.8.8"},
		{"all is allowed", nil, network.Allow, []string{"A 10.0.0.1"}, "10.0.0.1"},
		{"the host's loopback never is", []network.Rule{cidr("0.0.0.0/0"), cidr("::/0")}, network.Allow, []string{"A 127.0.0.1", "AAAA ::1", "A 0.0.0.0", "AAAA fe80::1"}, ""},
		{"nor are names' own addresses", []network.Rule{cidr("0.0.0.0/0")}, network.Allow, []string{"A 198.18.1.0", "AAAA fd00:6e75:636c::100"}, ""},
		{"IPv4 in IPv6", []network.Rule{cidr("0.0.0.0/0")}, network.Allow, []string{"A 8.8.8.8", "AAAA ::ffff:8.8.4.4"}, "8.8.8.8"},
		{"IPv4 behind NAT64", nil, network.Deny, []string{"AAAA 64:ff9b::10.0.0.1"}, ""},
		{"IPv4 in other ways", nil, network.Public, []string{"AAAA 64:ff9b:1::10.0.0.1", "AAAA 2002:a00:1::1", "AAAA 2001:0:a00:1::f5ff:fffe", "AAAA ::10.0.0.1", "AAAA 2a00::5efe:10.0.0.1"}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			var records []string
			for _, r := range c.records {
				records = append(records, "a.example. 300 "+r)
			}
			e := network.Egress{Default: c.def, Allow: append(c.allow, network.Rule{Names: []string{"a.example"}})}
			b := newBench(t, e, records, nil)
			got := brief(b.ask(t, "a.example.", dns.TypeA))
			real, err := b.Lookup(t.Context(), "a.example")
			if err != nil || slices.ContainsFunc(real, hosts) {
				t.Errorf("Lookup: %v, %v", real, err)
			}
			if c.want == "" {
				ds := b.denials()
				if got != "REFUSED" || len(b.bindings()) > 0 || len(ds) != 1 || ds[0].Reason != network.ReasonPrivate || ds[0].Name != "a.example" || ds[0].Rule != len(c.allow) {
					t.Errorf("%s, bound %q, told %+v", got, b.bindings(), ds)
				}
				return
			}
			if want := []string{"a.example " + c.want}; got != "NOERROR 198.18.1.0" || !slices.Equal(b.bindings(), want) || len(b.denials()) > 0 {
				t.Errorf("%s, bound %q, told %+v", got, b.bindings(), b.denials())
			}
		})
	}
}

func TestAliasesAreFollowedAndHidden(t *testing.T) {
	b := newBench(t, names2rules("*.example"), []string{
		"a.example. 300 CNAME b.other.", "b.other. 40 CNAME c.else.", "c.else. 300 A 8.8.8.8", "a.example. 300 A 9.9.9.9",
		"loop.example. 300 CNAME loop2.example.", "loop2.example. 300 CNAME loop.example.",
	}, nil)
	m := b.ask(t, "a.example.", dns.TypeA)
	if got := brief(m); got != "NOERROR 198.18.1.0" || m.Answer[0].Header().Name != "a.example." || m.Answer[0].Header().Ttl > 40 {
		t.Errorf("%v", m)
	}
	if got := b.bindings(); !slices.Equal(got, []string{"a.example 8.8.8.8"}) {
		t.Errorf("bound %q", got)
	}
	if got := brief(b.ask(t, "loop.example.", dns.TypeA)); got != "NOERROR" {
		t.Errorf("a loop: %s", got)
	}
	if got := brief(b.ask(t, "b.other.", dns.TypeA)); got != "REFUSED" {
		t.Errorf("the alias's target: %s", got)
	}
}

// An answer that is aliases from end to end is read once, and not once for each step.
func TestAnAnswerFullOfAliases(t *testing.T) {
	m := new(dns.Msg).SetQuestion("0.EXAMPLE.", dns.TypeA)
	for range 4000 {
		m.Answer = append(m.Answer, &dns.CNAME{Hdr: dns.RR_Header{Name: "OTHER.example.", Rrtype: dns.TypeCNAME, Class: dns.ClassINET}, Target: "a.example."})
	}
	for i := range chain + 4 {
		m.Answer = append(m.Answer, &dns.CNAME{Hdr: dns.RR_Header{Name: fmt.Sprintf("%d.EXAMPLE.", i), Rrtype: dns.TypeCNAME, Class: dns.ClassINET}, Target: fmt.Sprintf("%d.example.", i+1)})
	}
	if n := testing.AllocsPerRun(2, func() { read(m) }); n > 8000 {
		t.Errorf("%.0f allocations", n)
	}
}

func TestTheSameFamilyIfAsked(t *testing.T) {
	b := newBench(t, names2rules("*.example"), []string{
		"four.example. 300 A 8.8.8.8", "six.example. 300 AAAA 2606:4700::1", "mixed.example. 300 A 10.0.0.1", "mixed.example. 300 AAAA 2606:4700::1",
	}, func(c *Config, _ *bench) { c.SameFamily = true })
	for question, want := range map[string]string{
		"four.example. A": "NOERROR 198", "four.example. AAAA": "NOERROR", "six.example. A": "NOERROR", "six.example. AAAA": "NOERROR fd00",
		"mixed.example. A": "NOERROR", "mixed.example. AAAA": "NOERROR fd00",
	} {
		name, qtype, _ := strings.Cut(question, " ")
		got := brief(b.ask(t, name, dns.StringToType[qtype]))
		if kind := strings.FieldsFunc(got, func(r rune) bool { return r == '.' || r == ':' })[0]; kind != want {
			t.Errorf("%s: %s", question, got)
		}
	}
}
