package egress

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/nucleus-runtime/nucleus/sdk/network"
)

func prefixes(ss ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range ss {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func ports(proto string, first, last uint16) []network.Ports {
	return []network.Ports{{Protocol: proto, First: first, Last: last}}
}

func policy(t testing.TB, def network.Verdict, rules ...network.Rule) *Policy {
	t.Helper()
	p, err := New(network.Egress{Default: def, Allow: rules})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestRulesThatCouldBeReadInTwoWaysAreErrors(t *testing.T) {
	name := []string{"a.example"}
	for want, r := range map[string]network.Rule{
		"no destination":                          {Ports: ports("tcp", 1, 2)},
		`canonical form is "a.example"`:           {Names: []string{"A.example"}},
		`canonical form is "*.a.example"`:         {Names: []string{"*.a.example."}},
		"the name is empty":                       {Names: []string{""}},
		"only for whole labels":                   {Names: []string{"a.*.example"}},
		"would be read as an address":             {Names: []string{"10.0.0.1"}},
		"canonical form is \"xn--bcher":           {Names: []string{"bücher.example"}},
		"no block of addresses":                   {CIDRs: []netip.Prefix{{}}},
		"bits beyond its prefix":                  {CIDRs: prefixes("10.0.0.1/8")},
		"written as IPv6":                         {CIDRs: []netip.Prefix{netip.PrefixFrom(netip.MustParseAddr("::ffff:10.0.0.0"), 104)}},
		"ports 2 to 1 are no range":               {Names: name, Ports: ports("tcp", 2, 1)},
		"ports 0 to 0 are no range":               {Names: name, Ports: ports("tcp", 0, 0)},
		`protocol "icmp" has no ports`:            {Names: name, Ports: ports("icmp", 1, 1)},
		`protocol "TCP" has no ports`:             {Names: name, Ports: ports("TCP", 1, 1)},
		`protocol "tcp" is unknown`:               {Names: name, Protocols: []string{"tcp"}},
		`protocol "icmpv6" is unknown`:            {Names: name, Protocols: []string{"icmpv6"}},
		`protocol "" is unknown`:                  {Names: name, Protocols: []string{""}},
		`job "db.example": it is no single label`: {Jobs: []string{"db.example"}},
		`job "DB": it is no single label`:         {Jobs: []string{"DB"}},
		`job "": it is no single label`:           {Jobs: []string{""}},
		"rule 1: ports 9 to 8 are no range":       {Names: name, Ports: append(ports("udp", 1, 1), ports("udp", 9, 8)...)},
	} {
		p, err := New(network.Egress{Allow: []network.Rule{{Names: name}, r}})
		if err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "rule 1: ") {
			t.Errorf("%+v: %v, %v; want %q", r, p, err, want)
		}
	}
	if _, err := New(network.Egress{Default: network.Allow + 1}); err == nil {
		t.Error("a default of a later contract is taken")
	}
}

// flow is how a test writes a question to a policy, and its verdict.
type flow struct {
	what   string // "resolve NAME", "name NAME proto port", "job NAME proto port", "addr proto ADDRPORT", "bound NAME proto ADDRPORT", "reach NAME ADDR"
	allow  bool
	rule   int
	reason network.Reason
}

func allow(what string, rule int) flow { return flow{what, true, rule, ""} }

func deny(what string, rule int, reason network.Reason) flow { return flow{what, false, rule, reason} }

func TestVerdicts(t *testing.T) {
	const def, port, private, protocol = network.ReasonDefault, network.ReasonPort, network.ReasonPrivate, network.ReasonProtocol
	web := network.Rule{Names: []string{"a.example", "*.b.example"}, Ports: append(ports("tcp", 443, 443), ports("tcp", 8000, 8999)...)}
	whole := network.Rule{Names: []string{"x.b.example"}}
	ping := network.Rule{Names: []string{"ping.example"}, CIDRs: prefixes("10.9.0.0/16"), Protocols: []string{"icmp"}}
	lan := network.Rule{CIDRs: prefixes("10.0.0.0/8", "fd00::/8"), Ports: append(ports("tcp", 443, 443), ports("udp", 53, 53)...), Protocols: []string{"icmp"}}
	everything := network.Rule{CIDRs: prefixes("0.0.0.0/0")}
	for title, c := range map[string]struct {
		p     *Policy
		flows []flow
	}{
		"nothing is allowed": {policy(t, network.Deny), []flow{
			deny("resolve a.example", -1, def),
			deny("name a.example tcp 443", -1, def),
			deny("addr tcp 8.8.8.8:443", -1, def),
			deny("addr 47 8.8.8.8:0", -1, def),
			deny("bound a.example tcp 8.8.8.8:443", -1, def),
			deny("reach a.example 8.8.8.8", -1, def),
		}},
		"jobs": {policy(t, network.Deny, web, network.Rule{Jobs: []string{"db", "q"}, Ports: ports("tcp", 5432, 5433)}, network.Rule{Jobs: []string{"q"}}), []flow{
			allow("job db tcp 5432", 1),
			deny("job db tcp 5434", 1, port),
			deny("job db udp 5432", 1, port),
			deny("job db icmp 0", 1, port),
			allow("job q tcp 1", 2),
			allow("job q icmp 0", 2),
			deny("job web tcp 5432", -1, def),
			// A job's name is not one to be asked for elsewhere, nor are names jobs.
			deny("resolve db", -1, def),
			deny("name db tcp 5432", -1, def),
			deny("job a.example tcp 443", -1, def),
		}},
		"jobs beside everything else": {policy(t, network.Public, network.Rule{Jobs: []string{"db"}, Ports: ports("tcp", 5432, 5432)}), []flow{
			allow("job db tcp 5432", 0),
			deny("job db tcp 443", 0, port),
			deny("job cache tcp 443", -1, def),
		}},
		"names": {policy(t, network.Deny, web, whole), []flow{
			allow("resolve a.example", 0),
			deny("resolve x.a.example", -1, def),
			deny("resolve example", -1, def),
			deny("resolve b.example", -1, def),
			allow("resolve y.b.example", 0),
			allow("resolve z.y.b.example", 0),
			allow("resolve x.b.example", 0),
			deny("resolve xb.example", -1, def),
			deny("resolve a.example.evil", -1, def),
			allow("name a.example tcp 443", 0),
			allow("name a.example tcp 8000", 0),
			allow("name a.example tcp 8999", 0),
			deny("name a.example tcp 9000", 0, port),
			deny("name a.example tcp 7999", 0, port),
			deny("name a.example udp 443", 0, port),
			deny("name a.example icmp 0", 0, port),
			deny("name a.example 47 0", 0, port),
			deny("name b.example tcp 443", -1, def),
			allow("name x.b.example tcp 443", 0),
			allow("name x.b.example tcp 22", 1), // rules are ORed
			allow("name x.b.example udp 1", 1),
			allow("name x.b.example icmp 0", 1),
			deny("name x.b.example 47 0", 0, port), // not even with every port
			deny("addr tcp 8.8.8.8:443", -1, def),  // no address without a CIDR
			allow("bound a.example tcp 8.8.8.8:443", 0),
			allow("bound a.example tcp [2606:4700::1]:443", 0),
			deny("bound a.example tcp 8.8.8.8:80", 0, port),
			deny("bound a.example tcp 10.0.0.1:443", 0, private),
			deny("bound a.example tcp [::ffff:10.0.0.1]:443", 0, private),
			deny("bound a.example tcp [64:ff9b::a00:1]:443", 0, private),
			deny("bound c.example tcp 8.8.8.8:443", -1, def),
			allow("reach a.example 8.8.8.8", 0),
			deny("reach a.example 127.0.0.1", 0, private),
		}},
		"blocks grant names what is private": {policy(t, network.Deny, web, lan), []flow{
			allow("bound a.example tcp 10.0.0.1:443", 0),
			allow("bound a.example tcp [fd00::1]:443", 0),
			deny("bound a.example tcp 10.0.0.1:8000", 1, port), // the block's ports count, too
			deny("bound a.example udp 10.0.0.1:53", 0, port),   // and the name's
			deny("bound a.example tcp 192.168.0.1:443", 0, private),
			deny("bound c.example tcp 10.0.0.1:443", -1, def), // a block is no rule for a name
			deny("resolve c.example", -1, def),
			allow("reach a.example 10.0.0.1", 0),
			deny("reach a.example 192.168.0.1", 0, private),
			deny("reach c.example 10.0.0.1", -1, def),
		}},
		"blocks": {policy(t, network.Deny, ping, lan), []flow{
			allow("addr tcp 10.0.0.1:443", 1),
			allow("addr tcp [::ffff:10.0.0.1]:443", 1),
			allow("addr udp 10.255.255.255:53", 1),
			allow("addr udp [fdff::1%eth0]:53", 1),
			allow("addr icmp 10.0.0.1:0", 1),
			allow("addr icmp 10.9.0.1:0", 0),
			allow("addr tcp 10.9.0.1:443", 1), // the first has only icmp
			deny("addr tcp 10.9.0.1:80", 0, port),
			deny("addr tcp 10.0.0.1:80", 1, port),
			deny("addr tcp 10.0.0.1:53", 1, port),
			deny("addr 47 10.0.0.1:0", 1, port),
			deny("addr tcp 11.0.0.1:443", -1, def),
			allow("name ping.example icmp 0", 0),
			deny("name ping.example tcp 443", 0, port),
		}},
		"every IPv4 address, private ones too": {policy(t, network.Deny, everything), []flow{
			allow("addr tcp 169.254.169.254:80", 0),
			allow("addr icmp 127.0.0.1:0", 0),
			allow("addr udp [::ffff:10.0.0.1]:53", 0),
			deny("addr tcp [2606:4700::1]:443", -1, def),
			deny("addr 132 8.8.8.8:0", 0, port),
		}},
		"what is public": {policy(t, network.Public, web, lan), []flow{
			allow("resolve c.example", -1),
			allow("resolve a.example", 0),
			allow("name c.example tcp 22", -1),
			allow("name c.example icmp 0", -1),
			allow("name a.example tcp 22", -1),
			deny("name c.example 47 0", -1, protocol),
			allow("addr tcp 8.8.8.8:443", -1),
			allow("addr icmp [2606:4700::1]:0", -1),
			deny("addr 47 8.8.8.8:0", -1, protocol),
			deny("addr tcp 192.168.0.1:443", -1, def),
			deny("addr tcp 169.254.169.254:80", -1, def),
			allow("addr tcp 10.0.0.1:443", 1),
			deny("addr tcp 10.0.0.1:80", 1, port),
			allow("bound c.example tcp 8.8.8.8:22", -1),
			deny("bound c.example tcp 192.168.0.1:443", -1, private),
			allow("bound c.example tcp 10.0.0.1:443", -1),
			deny("bound c.example tcp 10.0.0.1:80", 1, port),
			deny("reach c.example 192.168.0.1", -1, private),
			allow("reach c.example 8.8.8.8", -1),
		}},
		"everything": {policy(t, network.Allow, web), []flow{
			allow("resolve c.example", -1),
			allow("name c.example 47 0", -1),
			allow("addr tcp 169.254.169.254:80", -1),
			allow("addr 47 10.0.0.1:0", -1),
			allow("bound c.example tcp 10.0.0.1:80", -1),
			allow("bound a.example tcp 10.0.0.1:443", 0),
			allow("reach c.example 10.0.0.1", -1),
		}},
	} {
		for _, f := range c.flows {
			if got, want := decide(t, c.p, f.what), (Verdict{f.allow, f.rule, f.reason}); got != want {
				t.Errorf("%s: %s: %+v, want %+v", title, f.what, got, want)
			}
		}
	}
}

func TestNamesThatCanBeAllowed(t *testing.T) {
	block := network.Rule{CIDRs: prefixes("0.0.0.0/0")}
	for _, c := range []struct {
		p    *Policy
		want bool
	}{
		{policy(t, network.Deny), false},
		{policy(t, network.Deny, block), false},
		{policy(t, network.Deny, block, network.Rule{Names: []string{"a.example"}}), true},
		{policy(t, network.Deny, network.Rule{Names: []string{"*.example"}}), true},
		{policy(t, network.Deny, network.Rule{Jobs: []string{"db"}}), true},
		{policy(t, network.Public), true},
		{policy(t, network.Allow), true},
	} {
		if got := c.p.Names(); got != c.want {
			t.Errorf("%+v: %v", c.p, got)
		}
	}
}

func TestNoAddressIsDenied(t *testing.T) {
	everything := network.Rule{CIDRs: prefixes("0.0.0.0/0", "::/0")}
	if v := policy(t, network.Public, everything).Addr("tcp", netip.AddrPort{}); v.Allow {
		t.Errorf("%+v", v)
	}
	if Public(netip.Addr{}) {
		t.Error("no address is public")
	}
}
