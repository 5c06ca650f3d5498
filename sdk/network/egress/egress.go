// Package egress owns the verdicts of a network policy: whether a sandbox may ask
// for a name, and whether a flow may pass. Networks that use it agree on every
// flow. It knows no sockets and resolves nothing.
package egress

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/nucleus-runtime/nucleus/sdk/dnsname"
	"github.com/nucleus-runtime/nucleus/sdk/network"
)

// Policy is a network.Egress made ready to be asked. It does not change, and may be
// asked from several goroutines.
type Policy struct {
	def      network.Verdict
	rules    []rule
	exact    map[dnsname.Name][]int // rules by name, in their order
	below    map[dnsname.Name][]int // rules by the name that their wildcard is below
	prefixes []block
	jobs     map[dnsname.Name][]int // rules by job
}

// rule is what a rule says of protocols and ports.
type rule struct {
	all      bool
	icmp     bool
	tcp, udp []span
}

type span struct{ first, last uint16 }

type block struct {
	prefix netip.Prefix
	rule   int
}

// Verdict is what becomes of a flow or a question.
type Verdict struct {
	Allow bool
	// Rule is the place in Egress.Allow of the rule that allows, or that came closest;
	// -1 if the default decided.
	Rule   int
	Reason network.Reason // of a refusal
}

// The protocols that a policy knows. "icmp" is that of the flow's family.
const (
	tcp  = "tcp"
	udp  = "udp"
	icmp = "icmp"
)

// New compiles e. What is not in its canonical form is an error, for a rule that
// this package and another reader understand differently is a hole.
func New(e network.Egress) (*Policy, error) {
	if e.Default > network.Allow {
		return nil, fmt.Errorf("the default %d is unknown", e.Default)
	}
	p := &Policy{def: e.Default, exact: make(map[dnsname.Name][]int), below: make(map[dnsname.Name][]int), jobs: make(map[dnsname.Name][]int)}
	for i, r := range e.Allow {
		if err := p.add(i, r); err != nil {
			return nil, fmt.Errorf("rule %d: %w", i, err)
		}
	}
	return p, nil
}

func (p *Policy) add(i int, r network.Rule) error {
	if len(r.Names)+len(r.CIDRs)+len(r.Jobs) == 0 {
		return errors.New("it names no destination")
	}
	compiled, err := compile(r)
	if err != nil {
		return err
	}
	p.rules = append(p.rules, compiled)
	for _, s := range r.Names {
		pattern, err := dnsname.ParsePattern(s)
		if err != nil {
			return fmt.Errorf("name %q: %w", s, err)
		}
		if pattern.String() != s {
			return fmt.Errorf("name %q: its canonical form is %q", s, pattern)
		}
		into, name := p.exact, s
		if rest, ok := strings.CutPrefix(s, "*."); ok {
			into, name = p.below, rest
		}
		into[dnsname.Name(name)] = append(into[dnsname.Name(name)], i)
	}
	for _, s := range r.Jobs {
		n, err := dnsname.Parse(s)
		if err != nil || string(n) != s || strings.Contains(s, ".") {
			return fmt.Errorf("job %q: it is no single label of a name in its canonical form", s)
		}
		p.jobs[n] = append(p.jobs[n], i)
	}
	for _, c := range r.CIDRs {
		if err := checkPrefix(c); err != nil {
			return fmt.Errorf("cidr %s: %w", c, err)
		}
		p.prefixes = append(p.prefixes, block{c, i})
	}
	return nil
}

func checkPrefix(c netip.Prefix) error {
	switch {
	case !c.IsValid():
		return errors.New("it is no block of addresses")
	case c.Addr().Is4In6():
		return errors.New("it is an IPv4 block, written as IPv6")
	case c.Masked() != c:
		return errors.New("it has bits beyond its prefix")
	}
	return nil
}

func compile(r network.Rule) (rule, error) {
	// Whoever names a protocol means that one alone, also without a port beside it.
	out := rule{all: len(r.Ports)+len(r.Protocols) == 0}
	for _, s := range r.Ports {
		if s.First == 0 || s.First > s.Last {
			return out, fmt.Errorf("ports %d to %d are no range", s.First, s.Last)
		}
		switch s.Protocol {
		case tcp:
			out.tcp = append(out.tcp, span{s.First, s.Last})
		case udp:
			out.udp = append(out.udp, span{s.First, s.Last})
		default:
			return out, fmt.Errorf("the protocol %q has no ports: tcp and udp have", s.Protocol)
		}
	}
	for _, s := range r.Protocols {
		if s != icmp {
			return out, fmt.Errorf("the protocol %q is unknown: icmp is known", s)
		}
		out.icmp = true
	}
	return out, nil
}

// passes reports whether the rule is for flows like this one.
func (r *rule) passes(proto string, port uint16) bool {
	var spans []span
	switch proto {
	case tcp:
		spans = r.tcp
	case udp:
		spans = r.udp
	case icmp:
		return r.all || r.icmp
	default:
		return false
	}
	if r.all {
		return true
	}
	for _, s := range spans {
		if s.first <= port && port <= s.last {
			return true
		}
	}
	return false
}

func known(proto string) bool { return proto == tcp || proto == udp || proto == icmp }
