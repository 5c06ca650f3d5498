package egress

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/nucleus-runtime/nucleus/sdk/dnsname"
	"github.com/nucleus-runtime/nucleus/sdk/network"
)

// Names reports whether any name can ever be allowed. Otherwise a network needs no
// resolver.
func (p *Policy) Names() bool {
	return p.def != network.Deny || len(p.exact)+len(p.below)+len(p.jobs) > 0
}

// Resolve says whether the name may be asked for at all. A question alone carries
// data away to whoever runs the zone, so one for a name that no rule has must not
// leave.
func (p *Policy) Resolve(n dnsname.Name) Verdict {
	if i := p.named(n, anyFlow); i >= 0 {
		return Verdict{Allow: true, Rule: i}
	}
	return p.byDefault(p.def != network.Deny)
}

// Name says whether a flow to the name may pass as far as the name goes, before an
// address is known: Bound must follow.
func (p *Policy) Name(n dnsname.Name, proto string, port uint16) Verdict {
	if i := p.named(n, func(r *rule) bool { return r.passes(proto, port) }); i >= 0 {
		return Verdict{Allow: true, Rule: i}
	}
	if p.def == network.Allow || p.def == network.Public && known(proto) {
		return p.byDefault(true)
	}
	return p.refuse(p.named(n, anyFlow), proto)
}

// Jobs are those that any rule has, sorted.
func (p *Policy) Jobs() []dnsname.Name { return slices.Sorted(maps.Keys(p.jobs)) }

// Job says whether a flow to a job of the sandbox's stack may pass. The name of a job
// is no other's: Resolve and Name are not to be asked for it.
func (p *Policy) Job(n dnsname.Name, proto string, port uint16) Verdict {
	if i := p.first(p.jobs[n], func(r *rule) bool { return r.passes(proto, port) }, -1); i >= 0 {
		return Verdict{Allow: true, Rule: i}
	}
	return p.refuse(p.first(p.jobs[n], anyFlow, -1), proto)
}

// Addr says whether a flow to an address may pass of which no name is known.
func (p *Policy) Addr(proto string, dst netip.AddrPort) Verdict {
	a := plain(dst.Addr())
	if i := p.within(a, func(r *rule) bool { return r.passes(proto, dst.Port()) }); i >= 0 {
		return Verdict{Allow: true, Rule: i}
	}
	if p.def == network.Allow || p.def == network.Public && known(proto) && Public(a) {
		return p.byDefault(true)
	}
	return p.refuse(p.within(a, anyFlow), proto)
}

// Bound says whether a flow to the name may pass that goes to the address which the
// name was resolved to. A rule for the name does not reach into private networks,
// since whoever runs its zone chooses the address: that takes a rule with the block,
// too.
func (p *Policy) Bound(n dnsname.Name, proto string, real netip.AddrPort) Verdict {
	byName := p.Name(n, proto, real.Port())
	if !byName.Allow || p.def == network.Allow {
		return byName
	}
	a := plain(real.Addr())
	if Public(a) || p.within(a, func(r *rule) bool { return r.passes(proto, real.Port()) }) >= 0 {
		return byName
	}
	if i := p.within(a, anyFlow); i >= 0 {
		return Verdict{Rule: i, Reason: network.ReasonPort}
	}
	return Verdict{Rule: byName.Rule, Reason: network.ReasonPrivate}
}

// Reach says whether Bound may allow any flow at all to the name at this address. A
// resolver need not answer with one that it does not.
func (p *Policy) Reach(n dnsname.Name, real netip.Addr) Verdict {
	v := p.Resolve(n)
	if !v.Allow || p.def == network.Allow || Public(real) || p.within(plain(real), anyFlow) >= 0 {
		return v
	}
	return Verdict{Rule: v.Rule, Reason: network.ReasonPrivate}
}

func (p *Policy) byDefault(allow bool) Verdict {
	if allow {
		return Verdict{Allow: true, Rule: -1}
	}
	return Verdict{Rule: -1, Reason: network.ReasonDefault}
}

// refuse takes the rule that has the destination, or -1.
func (p *Policy) refuse(rule int, proto string) Verdict {
	switch {
	case rule >= 0:
		return Verdict{Rule: rule, Reason: network.ReasonPort}
	case p.def != network.Deny && !known(proto):
		return Verdict{Rule: -1, Reason: network.ReasonProtocol}
	default:
		return p.byDefault(false)
	}
}

func anyFlow(*rule) bool { return true }

// named is the first rule that has the name and is good, or -1.
func (p *Policy) named(n dnsname.Name, good func(*rule) bool) int {
	first := p.first(p.exact[n], good, -1)
	for rest := string(n); len(p.below) > 0; {
		_, parent, ok := strings.Cut(rest, ".")
		if !ok {
			break
		}
		first = p.first(p.below[dnsname.Name(parent)], good, first)
		rest = parent
	}
	return first
}

// first is the first of the rules that is good, if it comes before what is known.
func (p *Policy) first(rules []int, good func(*rule) bool, known int) int {
	for _, i := range rules {
		if known >= 0 && i >= known {
			break
		}
		if good(&p.rules[i]) {
			return i
		}
	}
	return known
}

// within is the first rule that has the address and is good, or -1.
func (p *Policy) within(a netip.Addr, good func(*rule) bool) int {
	for i := range p.prefixes {
		if b := &p.prefixes[i]; b.prefix.Contains(a) && good(&p.rules[b.rule]) {
			return b.rule
		}
	}
	return -1
}

// plain is the address as packets carry it: the kernel sends to ::ffff:10.0.0.1 over
// IPv4, and a zone is the name of an interface, not part of an address.
func plain(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }
