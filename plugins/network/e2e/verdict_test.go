package e2e

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/netlab"
	"github.com/nucleus-runtime/nucleus/plugins/network/internal/probe"
)

// policy is that of the table. Its comments number the rules.
const policy = `
dns = ["93.184.216.53"]

egress {
  # 0
  allow {
    names = ["allowed.example", "alias.example", "rebind.example", "metadata.example", "loopback.example", "hostname.example", "mapped.example", "literal.example", "resolved.example", "granted.example"]
    ports = ["443/tcp", "443/udp"]
  }

  # 1
  allow {
    names = ["*.suffix.example"]
    ports = ["443/tcp", "443/udp"]
  }

  # 2
  allow {
    cidrs = ["93.184.216.128/28", "2606:2800:220:a::/64"]
    ports = ["443/tcp", "443/udp"]
  }

  # 3
  allow {
    cidrs = ["10.77.0.128/25", "fd77::8000:0:0/96"]
    ports = ["443/tcp", "443/udp"]
  }

  # 4
  allow {
    cidrs = ["93.184.216.240/28", "2606:2800:220:c::/64"]
  }
}
`

// both gives an address of each family.
type both struct{ v4, v6 string }

// zone is what the names of the table stand for: addresses that are no other name's.
var zone = map[string]both{
	"allowed.example":    {"93.184.216.10", "2606:2800:220::10"},
	"canonical.example":  {"93.184.216.11", "2606:2800:220::11"},
	"denied.example":     {"93.184.216.12", "2606:2800:220::12"},
	"a.suffix.example":   {"93.184.216.13", "2606:2800:220::13"},
	"b.a.suffix.example": {"93.184.216.14", "2606:2800:220::14"},
	"suffix.example":     {"93.184.216.15", "2606:2800:220::15"},
	"notsuffix.example":  {"93.184.216.16", "2606:2800:220::16"},
	"rebind.example":     {"10.77.0.10", "fd77::10"},
	"metadata.example":   {"169.254.169.254", "fd00:ec2::254"},
	"loopback.example":   {"127.0.0.1", "::1"},
	"hostname.example":   {"151.101.7.2", "2a04:4e42:7::2"},
	"mapped.example":     {"100.64.9.9", "::ffff:10.77.0.11"},
	"literal.example":    {"93.184.216.17", "2606:2800:220::17"},
	"resolved.example":   {"93.184.216.18", "2606:2800:220::18"},
	"granted.example":    {"10.77.0.200", "fd77::8000:0:5"},
}

func publish(l *netlab.Lab) {
	for name, a := range zone {
		l.DNS.Set(name, a.v4, a.v6)
	}
	l.DNS.Alias("alias.example", "canonical.example")
}

// row is a destination of the table, in both families, and whether it is reached.
type row struct {
	what   string
	v4, v6 string // ADDRESS:PORT or NAME:PORT; "" for none of that family
	pass   bool
}

func name(host string, port int, what string, pass bool) row {
	at := fmt.Sprintf("%s:%d", host, port)
	return row{what, at, at, pass}
}

func literal(a both, port int, what string, pass bool) row {
	r := row{what: what, pass: pass}
	if a.v4 != "" {
		r.v4 = fmt.Sprintf("%s:%d", a.v4, port)
	}
	if a.v6 != "" {
		r.v6 = fmt.Sprintf("[%s]:%d", a.v6, port)
	}
	return r
}

// table holds what does not depend on where the sandbox is.
func table() []row {
	inside := both{"93.184.216.130", "2606:2800:220:a::130"}
	return []row{
		literal(inside, 443, "allowed block", true),
		literal(inside, 444, "allowed block, other port", false),
		literal(both{"93.184.216.144", "2606:2800:220:b::"}, 443, "just beyond an allowed block", false),
		literal(both{"93.184.216.99", "2606:2800:220::99"}, 443, "denied block", false),
		literal(both{"93.184.216.241", "2606:2800:220:c::1"}, 853, "block without ports", true),
		name("allowed.example", 443, "allowed name", true),
		name("ALLOWED.Example.", 443, "allowed name, written otherwise", true),
		name("allowed.example", 444, "allowed name, other port", false),
		name("alias.example", 443, "allowed name with another canonical name", true),
		name("canonical.example", 443, "canonical name of an allowed one", false),
		name("denied.example", 443, "denied name", false),
		name("a.suffix.example", 443, "name below a suffix", true),
		name("b.a.suffix.example", 443, "name far below a suffix", true),
		name("suffix.example", 443, "bare suffix", false),
		name("notsuffix.example", 443, "name that only ends like the suffix", false),
		name("rebind.example", 443, "allowed name with a private address", false),
		name("metadata.example", 443, "allowed name with the address of metadata", false),
		name("loopback.example", 443, "allowed name with the address of loopback", false),
		name("mapped.example", 443, "allowed name with a private address in IPv6 clothes", false),
		name("granted.example", 443, "allowed name with a private address that a block grants", true),
		literal(both{"10.77.0.201", "fd77::8000:0:6"}, 443, "private address that a block grants", true),
		literal(both{"10.77.0.12", "fd77::12"}, 443, "private address", false),
		literal(both{zone["literal.example"].v4, zone["literal.example"].v6}, 443, "literal of an allowed name that was never resolved", false),
		literal(both{"169.254.169.254", "fd00:ec2::254"}, 443, "metadata", false),
		literal(both{"169.254.169.254", "fd00:ec2::254"}, 80, "metadata over http", false),
		literal(both{"9.9.9.9", "2620:fe::fe"}, 443, "another resolver, DoH and DoQ", false),
		literal(both{"9.9.9.9", "2620:fe::fe"}, 853, "another resolver, DoT and DoQ", false),
		literal(both{"93.184.216.53", "2606:2800:220::53"}, 853, "the resolver behind ours, DoT", false),
		literal(both{"151.101.7.2", "2a04:4e42:7::2"}, 443, "the host's address", false),
		literal(both{"151.101.7.2", "2a04:4e42:7::2"}, 9000, "the host's address, a port of its own", false),
		literal(both{"151.101.7.1", "2a04:4e42:7::1"}, 443, "the host's gateway", false),
		literal(both{"127.0.0.1", "::1"}, 9000, "loopback, where the host has a server", false),
		literal(both{"255.255.255.255", "ff02::1%eth0"}, 443, "everybody on the link", false),
		literal(both{"224.0.0.251", "ff05::2"}, 443, "a multicast group", false),
		literal(both{"0.0.0.0", "::"}, 9000, "the unspecified address", false),
		literal(both{"240.0.0.1", "100::1"}, 443, "reserved space", false),
	}
}

// around are the destinations that depend on where a sandbox is.
func around(neighbour probe.Result) []row {
	var rows []row
	for i, a := range neighbour.Addresses {
		rows = append(rows, one(a, 443, fmt.Sprintf("another sandbox (%d)", i)))
	}
	for i, a := range neighbour.Gateways {
		for _, port := range []int{22, 80, 443, 8080, 9000} {
			rows = append(rows, one(a, port, fmt.Sprintf("the sandbox's gateway (%d), port %d", i, port)))
		}
	}
	return rows
}

func one(address string, port int, what string) row {
	a := netip.MustParseAddr(address)
	if a.Is4() {
		return literal(both{v4: address}, port, what, false)
	}
	if a.IsLinkLocalUnicast() {
		address += "%eth0"
	}
	return literal(both{v6: address}, port, what, false)
}

// expand makes the probes of the rows, and says which have to pass.
func expand(rows []row) ([]probe.Probe, map[string]bool) {
	var probes []probe.Probe
	want := map[string]bool{}
	for _, r := range rows {
		for family, to := range map[string]string{"4": r.v4, "6": r.v6} {
			if to == "" {
				continue
			}
			for _, kind := range []string{probe.TCP, probe.UDP} {
				id := kind + family + " " + r.what
				probes = append(probes, probe.Probe{ID: id, Kind: kind, To: to, Family: family})
				want[id] = r.pass
			}
		}
	}
	add := func(pass bool, p probe.Probe) {
		probes = append(probes, p)
		want[p.ID] = pass
	}
	for kind, proto := range map[string]string{probe.Mapped: "tcp", probe.MappedUDP: "udp"} {
		add(true, probe.Probe{ID: proto + " v4-mapped, allowed block", Kind: kind, To: "[::ffff:93.184.216.131]:443"})
		add(false, probe.Probe{ID: proto + " v4-mapped, other port", Kind: kind, To: "[::ffff:93.184.216.131]:444"})
		add(false, probe.Probe{ID: proto + " v4-mapped, denied block", Kind: kind, To: "[::ffff:93.184.216.98]:443"})
		add(false, probe.Probe{ID: proto + " v4-mapped, metadata", Kind: kind, To: "[::ffff:169.254.169.254]:443"})
		add(false, probe.Probe{ID: proto + " v4-mapped, the host", Kind: kind, To: "[::ffff:151.101.7.2]:9000"})
	}
	for _, over := range []string{"udp", "tcp"} {
		for _, qtype := range []string{"A", "AAAA"} {
			ask := func(what, name, server string, pass bool) {
				add(pass, probe.Probe{ID: over + " question " + qtype + " " + what, Kind: probe.DNS, Name: name, Type: qtype, Over: over, To: server})
			}
			ask("for an allowed name", "allowed.example", "", true)
			ask("for an allowed name, odd case", "aLLoWeD.eXample", "", true)
			ask("for a denied name", "denied.example", "", false)
			ask("for the bare suffix", "suffix.example", "", false)
			ask("for a name with a NUL that is no host name", "a\\000.allowed.example", "", false)
			ask("for a name with a NUL at its end that is no host name", "allowed.example\\000", "", false)
			ask("for a label with a dot that is no host name", "allowed\\.example", "", false)
			ask("for a label with a dot below a suffix that is no host name", "denied\\.example\\.x.suffix.example", "", false)
			ask("for a wildcard itself that is no host name", "*.suffix.example", "", false)
			ask("for an address that is no host name", "169.254.169.254", "", false)
			ask("for a line break that is no host name", "allowed.example\\013\\010.suffix.example", "", false)
			ask("at another resolver", "allowed.example", "9.9.9.9:53", false)
			ask("at another resolver over IPv6", "allowed.example", "[2620:fe::fe]:53", false)
			ask("at the resolver behind ours over IPv6", "allowed.example", "[2606:2800:220::53]:53", false)
		}
	}
	for _, r := range []row{
		{"denied block", "93.184.216.97", "2606:2800:220::97", false},
		{"block with ports", "93.184.216.130", "2606:2800:220:a::130", false},
		{"block without ports", "93.184.216.241", "2606:2800:220:c::1", true},
		{"the host's address", "151.101.7.2", "2a04:4e42:7::2", false},
		{"metadata", "169.254.169.254", "fd00:ec2::254", false},
	} {
		add(r.pass, probe.Probe{ID: "icmp4 " + r.what, Kind: probe.ICMP, To: r.v4})
		add(r.pass, probe.Probe{ID: "icmp6 " + r.what, Kind: probe.ICMP, To: r.v6})
	}
	// Resolved first, and then reached as the address that the name has outside.
	a := zone["resolved.example"]
	add(true, probe.Probe{ID: "resolving", Kind: probe.TCP, To: "resolved.example:443", Alone: true})
	for _, kind := range []string{probe.TCP, probe.UDP} {
		add(false, probe.Probe{ID: kind + "4 literal of a name that was resolved", Kind: kind, To: a.v4 + ":443"})
		add(false, probe.Probe{ID: kind + "6 literal of a name that was resolved", Kind: kind, To: "[" + a.v6 + "]:443"})
	}
	return probes, want
}

// mayLeave are the flows that the table lets out of the host.
func mayLeave() map[string]bool {
	may := map[string]bool{}
	for _, proto := range []string{"tcp", "udp"} {
		for _, n := range []string{"allowed.example", "canonical.example", "a.suffix.example", "b.a.suffix.example", "granted.example", "resolved.example"} {
			may[proto+" "+zone[n].v4+":443"] = true
			may[proto+" ["+zone[n].v6+"]:443"] = true
		}
		for _, a := range []string{"93.184.216.130:443", "93.184.216.131:443", "[2606:2800:220:a::130]:443", "10.77.0.201:443", "[fd77::8000:0:6]:443"} {
			may[proto+" "+a] = true
		}
		may[proto+" 93.184.216.241:853"], may[proto+" [2606:2800:220:c::1]:853"] = true, true
		may["icmp 93.184.216.241:0"], may["icmp [2606:2800:220:c::1]:0"] = true, true
		may[proto+" 93.184.216.53:53"] = true // by the plugin: what a sandbox sends there itself is another's question
	}
	return may
}

// escaped are the packets on the uplink that the policy does not allow.
func escaped(t *testing.T, l *netlab.Lab, may map[string]bool) []string {
	t.Helper()
	var out []string
	for _, p := range l.Packets(t) {
		if from := p.Src.Addr(); from != netlab.HostV4 && from != netlab.HostV6 {
			out = append(out, "not from the host's address: "+p.String())
			continue
		}
		proto := "tcp"
		switch p.Protocol {
		case unix.IPPROTO_UDP:
			proto = "udp"
		case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
			// What tells a server that its answer came too late.
			if p.Protocol == unix.IPPROTO_ICMP && p.Flags == 3 || p.Protocol == unix.IPPROTO_ICMPV6 && p.Flags == 1 {
				continue
			}
			proto = "icmp"
		}
		if !may[proto+" "+p.Dst.String()] {
			out = append(out, p.String())
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// The headline: whoever runs it and by whichever backend, a job's policy means the same,
// and nothing that it denies is seen outside.
func TestVerdicts(t *testing.T) { sites(t, verdicts) }

func verdicts(t *testing.T, s *site) {
	publish(s.lab)
	s.lab.Echo(t, 80, 443, 444, 853)
	s.lab.Host.Echo(t, 22, 80, 443, 8080, 9000)
	neighbour := s.start(job{name: "neighbour", network: policy, probes: []probe.Probe{
		{ID: "self", Kind: probe.Self, Alone: true}, {ID: "serve", Kind: probe.Serve, To: "[::]:443", Wait: patience},
	}})
	rows := append(table(), around(neighbour.result("self"))...)
	probes, want := expand(rows)
	s.lab.ForgetPackets(t)
	s.lab.DNS.Forget()
	o := s.run(job{name: "table", network: policy, probes: probes})
	for _, id := range slices.Sorted(maps.Keys(want)) {
		if r := o.results[id]; r.OK != want[id] {
			t.Errorf("%s: passed: %t, want %t (%s %s %v)", id, r.OK, want[id], r.Err, r.Line, r.Addresses)
		}
	}
	for _, p := range escaped(t, s.lab, mayLeave()) {
		t.Errorf("left the host: %s", p)
	}
	for asked, n := range s.lab.DNS.Asked() {
		if _, ok := zone[asked]; ok && !slices.Contains([]string{"denied.example", "suffix.example", "notsuffix.example", "canonical.example"}, asked) || asked == "alias.example" {
			continue
		}
		t.Errorf("%d questions left for %q, which no rule allows", n, asked)
	}
	_ = neighbour.cmd.Process.Signal(unix.SIGTERM)
	neighbour.wait()
}

// A mode's default without any egress block: the public internet, and nothing that is
// near.
func TestPublicByDefault(t *testing.T) {
	sites(t, func(t *testing.T, s *site) {
		publish(s.lab)
		s.lab.Echo(t, 80, 443)
		s.lab.Host.Echo(t, 443, 9000)
		rows := []row{
			literal(both{"93.184.216.99", "2606:2800:220::99"}, 443, "public address", true),
			literal(both{"9.9.9.9", "2620:fe::fe"}, 443, "another resolver, DoH", true),
			name("allowed.example", 443, "public name", true),
			name("rebind.example", 443, "name with a private address", false),
			name("metadata.example", 443, "name with the address of metadata", false),
			name("loopback.example", 9000, "name with the address of loopback", false),
			literal(both{"10.77.0.12", "fd77::12"}, 443, "private address", false),
			literal(both{"100.64.9.1", ""}, 443, "address behind a carrier", false),
			literal(both{"169.254.169.254", "fd00:ec2::254"}, 80, "metadata", false),
			literal(both{"151.101.7.2", "2a04:4e42:7::2"}, 9000, "the host's address", false),
			name("hostname.example", 443, "name with the host's address", false),
			literal(both{"127.0.0.1", "::1"}, 9000, "loopback, where the host has a server", false),
		}
		var probes []probe.Probe
		want := map[string]bool{}
		for _, r := range rows {
			for family, to := range map[string]string{"4": r.v4, "6": r.v6} {
				for _, kind := range []string{probe.TCP, probe.UDP} {
					if to != "" {
						id := kind + family + " " + r.what
						probes = append(probes, probe.Probe{ID: id, Kind: kind, To: to, Family: family})
						want[id] = r.pass
					}
				}
			}
		}
		o := s.run(job{network: `dns = ["93.184.216.53"]`, probes: probes})
		for _, id := range slices.Sorted(maps.Keys(want)) {
			if r := o.results[id]; r.OK != want[id] {
				t.Errorf("%s: passed: %t, want %t (%s %s %v)", id, r.OK, want[id], r.Err, r.Line, r.Addresses)
			}
		}
		for _, p := range s.lab.Packets(t) {
			if a := p.Dst.Addr(); a.IsPrivate() || a.IsLinkLocalUnicast() || netlab.SharedV4.Contains(a) {
				t.Errorf("left the host: %s", p)
			}
		}
	})
}

// W6: the workload was let go before its network had a policy. Nothing of ours runs before: of the workload's very first packets none that is
// denied leaves, and none that is allowed is lost.
func TestFirstPacketMeetsThePolicy(t *testing.T) { sites(t, firstPackets) }

func firstPackets(t *testing.T, s *site) {
	publish(s.lab)
	s.lab.Echo(t, 443)
	for range 5 {
		o := s.run(job{network: policy, probes: []probe.Probe{
			{ID: "denied", Kind: probe.UDP, To: "93.184.216.99:443", Wait: 300 * time.Millisecond},
			{ID: "denied6", Kind: probe.UDP, To: "[2606:2800:220::99]:443", Wait: 300 * time.Millisecond},
			{ID: "allowed", Kind: probe.TCP, To: "93.184.216.130:443"},
			{ID: "allowed6", Kind: probe.TCP, To: "[2606:2800:220:a::130]:443"},
			{ID: "named", Kind: probe.TCP, To: "allowed.example:443"},
		}})
		for id, r := range o.results {
			if want := !strings.HasPrefix(id, "denied"); r.OK != want {
				t.Errorf("%s: passed: %t, want %t: %s", id, r.OK, want, r.Err)
			}
			if r.OK && r.Took > time.Second {
				t.Errorf("%s: took %s: its first packet was lost", id, r.Took)
			}
		}
	}
	for _, p := range escaped(t, s.lab, mayLeave()) {
		t.Errorf("left the host: %s", p)
	}
}
