package job

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/zclconf/go-cty/cty"

	"github.com/nucleus-runtime/nucleus/core/job/internal/hclread"
	"github.com/nucleus-runtime/nucleus/sdk/dnsname"
)

func (d *decoder) network(b hclread.Block) {
	n := &d.j.Network
	n.Backend = b.Label
	d.checkName(b.Label, b.LabelRange)
	if n.Plugin() {
		n.OnFailure = "stop"
	}
	d.r.Read(b, hclread.Schema{
		Attrs: []hclread.Attr{
			{Name: "dns", Read: d.dns},
			{Name: "on_failure", Read: enum(&n.OnFailure, "stop", "closed")},
		},
		Blocks: []hclread.Nested{
			{Name: "config", Read: func(b hclread.Block) { n.Config = d.r.Config(b) }},
			{Name: "publish", Many: true, Read: d.publish},
			{Name: "egress", Read: d.egress},
		},
		Hints: map[string]string{
			"ports": `Write a publish block with host = "127.0.0.1:8080" and container = 8080.`,
			"allow": "Write it in an egress block: egress { ... }.",
		},
	})
}

func (d *decoder) dns(v hclread.Value) {
	es, ok := v.Elements()
	if !ok {
		return
	}
	servers, ok := v.Strings()
	if !ok {
		return
	}
	if len(servers) == 0 {
		v.Error("Empty list", `Name a server, dns = ["10.0.0.1"], or remove the line to use the network's own resolver.`)
	}
	for i, s := range servers {
		a, err := netip.ParseAddr(s)
		if err != nil || a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() {
			es[i].Error("Not an address", fmt.Sprintf("%s is no address of a server: write an IPv4 or IPv6 address, for instance \"10.0.0.1\" or \"fd00::1\".", hclread.Quote(s)))
			continue
		}
		d.j.Network.DNS = append(d.j.Network.DNS, a.Unmap().String())
	}
}

func (d *decoder) publish(b hclread.Block) {
	p := Publish{Protocol: "tcp"}
	d.r.Read(b, hclread.Schema{Attrs: []hclread.Attr{
		{Name: "host", Required: `host = "127.0.0.1:8080"`, Read: func(v hclread.Value) { p.HostIP, p.HostPort = d.hostPort(v) }},
		{Name: "container", Required: "container = 8080", Read: port(&p.Container)},
		{Name: "protocol", Read: enum(&p.Protocol, "tcp", "udp")},
	}})
	for i, o := range d.j.Network.Publish {
		if p.HostPort != 0 && p.HostPort == o.HostPort && p.Protocol == o.Protocol && sameListener(p.HostIP, o.HostIP) {
			d.r.Error(d.at(b.Child("host")), "Host port published twice", fmt.Sprintf("Port %d/%s of the host is taken by %s: choose another.", p.HostPort, p.Protocol, d.j.Where(fmt.Sprintf("network.publish[%d].host", i))))
			break
		}
	}
	d.j.Network.Publish = append(d.j.Network.Publish, p)
}

// sameListener reports whether two addresses can't both be bound with one port.
func sameListener(a, b string) bool {
	any := func(s string) bool { return s == "0.0.0.0" || s == "::" }
	return a == b || any(a) || any(b)
}

func port(dst *uint16) func(hclread.Value) {
	return func(v hclread.Value) { *dst = uint16(count(v, 1, 65535)) }
}

// hostPort reads "ADDRESS:PORT" or a port alone, which is on the loopback
// address: to open it to the network is to be said.
func (d *decoder) hostPort(v hclread.Value) (string, uint16) {
	const loopback = "127.0.0.1"
	if v.Cty.Type() == cty.Number {
		return loopback, uint16(count(v, 1, 65535))
	}
	s, ok := v.String()
	if !ok {
		return "", 0
	}
	if n, ok := parsePort(s); ok {
		return loopback, n
	}
	i := strings.LastIndexByte(s, ':')
	if i >= 0 {
		host := s[:i]
		bracketed := strings.HasPrefix(host, "[") && strings.HasSuffix(host, "]")
		a, err := netip.ParseAddr(strings.Trim(host, "[]"))
		n, ok := parsePort(s[i+1:])
		if err == nil && ok && a.Zone() == "" && a.Is6() == bracketed {
			return a.Unmap().String(), n
		}
	}
	v.Error("Not an address and port", fmt.Sprintf("%s is no address and port of the host: write for instance \"127.0.0.1:8080\", \"[::1]:8080\", or \"0.0.0.0:8080\" for every address; ports are 1 to 65535.", hclread.Quote(s)))
	return "", 0
}

func parsePort(s string) (uint16, bool) {
	n, err := strconv.ParseUint(s, 10, 16)
	return uint16(n), err == nil && n > 0 && s[0] != '0' && s[0] != '+'
}

func (d *decoder) egress(b hclread.Block) {
	e := &Egress{}
	d.j.Network.Egress = e
	d.r.Read(b, hclread.Schema{
		Blocks: []hclread.Nested{{Name: "allow", Many: true, Read: func(b hclread.Block) { e.Allow = append(e.Allow, d.egressRule(b)) }}},
		Hints:  map[string]string{"deny": "Everything that no allow block names is denied already."},
	})
}

func (d *decoder) egressRule(b hclread.Block) EgressRule {
	var r EgressRule
	before := len(d.r.Diags)
	d.r.Read(b, hclread.Schema{Attrs: []hclread.Attr{
		{Name: "names", Read: func(v hclread.Value) { r.Names = each(v, `names = ["api.example.com"]`, d.pattern) }},
		{Name: "cidrs", Read: func(v hclread.Value) { r.CIDRs = each(v, `cidrs = ["10.0.0.0/8"]`, d.cidr) }},
		{Name: "jobs", Read: func(v hclread.Value) { r.Jobs = each(v, `jobs = ["db"]`, d.jobName) }},
		{Name: "ports", Read: func(v hclread.Value) { r.Ports = each(v, `ports = ["443/tcp"]`, d.portProtocol) }},
	}, Hints: map[string]string{"hosts": `Write names = ["api.example.com"].`, "domains": `Write names = ["api.example.com"].`, "job": `Write jobs = ["db"].`}})
	switch {
	case len(d.r.Diags) > before:
	case len(r.Jobs) > 0 && len(r.Ports) == 0:
		d.r.Error(d.at(b.Child("jobs")), "Jobs without ports", `Write which of their ports are reached: ports = ["5432/tcp"].`)
	case len(r.Names)+len(r.CIDRs)+len(r.Jobs) == 0:
		d.r.Error(b.DefRange, "Rule without a destination", `Write names = ["api.example.com"], cidrs = ["10.0.0.0/8"] or jobs = ["db"]. Every address is cidrs = ["0.0.0.0/0", "::/0"].`)
	}
	return r
}

// each converts the elements of a list; an empty one would allow nothing, or
// everything: it must be written as what it means.
func each(v hclread.Value, example string, convert func(hclread.Value, string) (string, bool)) []string {
	es, ok := v.Elements()
	if !ok {
		return nil
	}
	in, ok := v.Strings()
	if !ok {
		return nil
	}
	if len(in) == 0 {
		v.Error("Empty list", fmt.Sprintf("Write %s, or remove the line.", example))
	}
	out := make([]string, 0, len(in))
	for i, s := range in {
		if c, ok := convert(es[i], s); ok {
			out = append(out, c)
		}
	}
	return out
}

func (d *decoder) pattern(v hclread.Value, s string) (string, bool) {
	if _, err := netip.ParseAddr(s); err == nil {
		v.Error("Address among names", fmt.Sprintf("%s is an address: write cidrs = [%q].", s, asCIDR(s)))
		return "", false
	}
	p, err := dnsname.ParsePattern(s)
	if err != nil {
		v.Error("Not a DNS name", fmt.Sprintf("%s is no DNS name: %s. Write for instance \"api.example.com\", or \"*.example.com\" for every name below it.", hclread.Quote(s), err))
		return "", false
	}
	return p.String(), true
}

func asCIDR(s string) string {
	a, err := netip.ParseAddr(s)
	if err != nil {
		return s
	}
	a = a.Unmap().WithZone("")
	return netip.PrefixFrom(a, a.BitLen()).String()
}

func (d *decoder) cidr(v hclread.Value, s string) (string, bool) {
	if _, err := netip.ParseAddr(s); err == nil {
		v.Error("Address without a prefix", fmt.Sprintf("%s has no prefix length: write %q for this one address.", hclread.Quote(s), asCIDR(s)))
		return "", false
	}
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		v.Error("Not a CIDR", fmt.Sprintf("%s is no address block: write for instance \"10.0.0.0/8\" or \"fd00::/8\".", hclread.Quote(s)))
	case p.Addr().Is4In6():
		v.Error("IPv4 written as IPv6", fmt.Sprintf("%s is an IPv4 block: write %s.", hclread.Quote(s), mapped(p)))
	case p.Masked() != p:
		v.Error("CIDR with host bits", fmt.Sprintf("%s has bits beyond its prefix: write %q for the block, or %q for the one address.", hclread.Quote(s), p.Masked(), asCIDR(p.Addr().String())))
	default:
		return p.String(), true
	}
	return "", false
}

func mapped(p netip.Prefix) string {
	if p.Bits() < 96 {
		return `"0.0.0.0/0" and the IPv6 blocks that are meant`
	}
	return strconv.Quote(netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96).Masked().String())
}

func (d *decoder) portProtocol(v hclread.Value, s string) (string, bool) {
	number, protocol, ok := strings.Cut(s, "/")
	n, valid := parsePort(number)
	switch {
	case valid && !ok:
		v.Error("Port without a protocol", fmt.Sprintf("Write %q or %q.", number+"/tcp", number+"/udp"))
	case !valid || protocol != "tcp" && protocol != "udp":
		v.Error("Not a port", fmt.Sprintf("%s is no port: write a number from 1 to 65535 and a protocol, for instance \"443/tcp\" or \"53/udp\".", hclread.Quote(s)))
	default:
		return fmt.Sprintf("%d/%s", n, protocol), true
	}
	return "", false
}
