package netbridge

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"math"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/resolver"
	"github.com/nucleus-runtime/nucleus/sdk/dnsname"
	"github.com/nucleus-runtime/nucleus/sdk/network"
	"github.com/nucleus-runtime/nucleus/sdk/network/egress"
)

// maxNames is how many names a sandbox may have bound at a time. Each change of a set
// copies it, so that it must not grow as long as a workload invents names.
const maxNames = 1024

// maxPairs is how many real addresses of a name, in a family, are remembered after they
// are no longer answered, for connections that were about to be made.
const maxPairs = 16

// maxTargets is over how many real addresses of a name, in a family, connections are
// spread: each is an element for every range of ports that has its own verdict.
const maxTargets = 4

// bound is what the names of a sandbox stand for.
type bound struct {
	a        *attachment
	resolver *resolver.Resolver
	wg       sync.WaitGroup
	unheard  chan flow // connections that were not answered

	mu     sync.Mutex
	names  map[dnsname.Name]*name
	gone   map[string]network.FlowStats // of names that were unbound
	silent map[netip.Addr]time.Time     // real addresses that do not answer, and until when they are not tried
}

type name struct {
	own  resolver.Own
	real []netip.Addr
	is   [2]standing // by family, as families gives them
}

// standing is what the kernel has of a name in one family.
type standing struct {
	real  []nftables.SetElement
	pairs []netip.Addr
	flows bool
}

// resolve serves the sandbox's resolver.
func (a *attachment) resolve(dns *network.DNS) error {
	upstream, err := resolver.Upstream(dns)
	if err != nil {
		return err
	}
	b := &bound{
		a: a, unheard: make(chan flow, 16), names: make(map[dnsname.Name]*name), gone: make(map[string]network.FlowStats), silent: make(map[netip.Addr]time.Time),
	}
	r, err := resolver.New(resolver.Config{Policy: a.policy, Upstream: upstream, Denied: a.ledger.Deny, Bind: b.bind, SameFamily: true, Names: maxNames, Job: a.job})
	if err != nil {
		return err
	}
	b.resolver = r
	a.names = b
	b.wg.Go(b.turn)
	b.wg.Go(func() {
		// Without its resolver a sandbox has no names; flows by address are the kernel's.
		_ = r.Serve(a.ctx, a.heard.udp, a.heard.tcp)
	})
	return nil
}

func (b *bound) close() {
	_ = b.resolver.Close()
	b.wg.Wait()
}

func (b *bound) of(a netip.Addr) (dnsname.Name, bool) {
	if b == nil {
		return "", false
	}
	return b.resolver.NameOf(a)
}

// verdict says why a flow to a name's own address was refused.
func (b *bound) verdict(n dnsname.Name, proto string, dst netip.AddrPort) egress.Verdict {
	v := b.a.policy.Name(n, proto, dst.Port())
	if !v.Allow {
		return v
	}
	local, _ := localAddresses()
	b.mu.Lock()
	defer b.mu.Unlock()
	if is := b.names[n]; is != nil {
		for _, real := range is.real {
			if real.BitLen() == dst.Addr().BitLen() {
				if slices.Contains(local, real) {
					return egress.Verdict{Rule: v.Rule, Reason: network.ReasonPrivate}
				}
				if w := b.a.policy.Bound(n, proto, netip.AddrPortFrom(real, dst.Port())); !w.Allow {
					return w
				}
			}
		}
	}
	return egress.Verdict{Rule: v.Rule, Reason: network.ReasonUnresolved}
}

// bind lets a name's own addresses stand for real ones, in one change of the rules.
// Connections that are there keep the address that they have.
func (b *bound) bind(_ context.Context, n dnsname.Name, own resolver.Own, real []netip.Addr) error {
	c, err := b.a.rules.change()
	if err != nil {
		return err
	}
	defer c.close()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.names[n] == nil && len(real) > 0 && len(b.names) >= maxNames {
		return fmt.Errorf("more than %d names are in use", maxNames)
	}
	if b.names[n] == nil && len(real) == 0 {
		return nil
	}
	return b.stands(c, map[dnsname.Name]*name{n: {own: own, real: real}})
}

// stands makes names stand for other addresses, all at once. The caller has locked.
func (b *bound) stands(c *change, all map[dnsname.Name]*name) error {
	local, err := localAddresses()
	if err != nil {
		return err
	}
	for n, next := range all {
		was := b.names[n]
		if was == nil {
			was = &name{}
		}
		away := slices.DeleteFunc(slices.Clone(next.real), func(a netip.Addr) bool { return slices.Contains(local, a) })
		for i, f := range families() {
			next.is[i] = b.stand(c, f, n, was.is[i], next.own, away, len(next.real) == 0)
		}
		if len(next.real) == 0 {
			b.keepCounts(c, n, was)
		}
	}
	if err := c.commit(); err != nil {
		return fmt.Errorf("binding %s: %w", slices.Sorted(maps.Keys(all))[0], err)
	}
	for n, next := range all {
		if len(next.real) == 0 {
			delete(b.names, n)
		} else {
			b.names[n] = next
		}
	}
	return nil
}

// localAddresses are the host's own. The rules let nobody reach those; a name that
// stands for one is refused where it still is a name.
func localAddresses() ([]netip.Addr, error) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("listing the host's addresses: %w", err)
	}
	out := make([]netip.Addr, 0, len(all))
	for _, a := range all {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			out = append(out, p.Addr())
		}
	}
	return out, nil
}

func (b *bound) stand(c *change, f fam, n dnsname.Name, was standing, own resolver.Own, all []netip.Addr, gone bool) standing {
	a := own.V4
	if f.size == 16 {
		a = own.V6
	}
	mine := a.AsSlice()
	var real []netip.Addr
	for _, r := range all {
		if f.has(r) {
			real = append(real, r)
		}
	}
	next := standing{real: b.reals(f, n, mine, real), flows: was.flows}
	set := c.in(f.realMap(b.a.slot))
	old := without(was.real, next.real)
	for i := range old {
		old[i].Val = nil
	}
	c.without(set, old...)
	c.elements(set, without(next.real, was.real)...)

	pair := func(r netip.Addr) nftables.SetElement { return nftables.SetElement{Key: key(mine, r.AsSlice())} }
	next.pairs = slices.Clone(was.pairs)
	pairs := c.in(f.pairSet(b.a.slot))
	for _, r := range real {
		if !slices.Contains(next.pairs, r) {
			next.pairs = append(next.pairs, r)
			c.elements(pairs, pair(r))
		}
	}
	for i := 0; i < len(next.pairs) && (len(next.pairs) > maxPairs+len(real) || gone); {
		if slices.Contains(real, next.pairs[i]) {
			i++
			continue
		}
		c.without(pairs, pair(next.pairs[i]))
		next.pairs = slices.Delete(next.pairs, i, i+1)
	}
	flows := []nftables.SetElement{{Key: key([]byte{0}, mine)}, {Key: key([]byte{1}, mine)}}
	switch {
	case gone && was.flows:
		c.without(c.in(f.flowSet(b.a.slot)), flows...)
		next.flows = false
	case !gone && !was.flows:
		c.elements(c.in(f.flowSet(b.a.slot)), flows...)
		next.flows = true
	}
	return next
}

// without gives the elements of a that are not in b.
func without(a, b []nftables.SetElement) []nftables.SetElement {
	var out []nftables.SetElement
	for _, e := range a {
		same := func(o nftables.SetElement) bool {
			return bytes.Equal(e.Key, o.Key) && bytes.Equal(e.KeyEnd, o.KeyEnd) && bytes.Equal(e.Val, o.Val)
		}
		if !slices.ContainsFunc(b, same) {
			out = append(out, e)
		}
	}
	return out
}

// reals are the elements of a name: for each protocol and range of ports the real
// addresses that the policy lets the name have there, with a part of the numbers each.
func (b *bound) reals(f fam, n dnsname.Name, own []byte, real []netip.Addr) []nftables.SetElement {
	var out []nftables.SetElement
	add := func(p1, p2 byte, first, last uint16, to []netip.Addr) {
		for i, r := range to {
			low, high := uint32(i*faces/len(to)), uint32((i+1)*faces/len(to)-1)
			out = append(out, nftables.SetElement{
				Key:    key(own, []byte{p1}, binaryutil.BigEndian.PutUint16(first), binaryutil.BigEndian.PutUint32(low)),
				KeyEnd: key(own, []byte{p2}, binaryutil.BigEndian.PutUint16(last), binaryutil.BigEndian.PutUint32(high)),
				Val:    r.AsSlice(),
			})
		}
	}
	a := b.a
	targets := func(proto string, port uint16) []netip.Addr {
		to := b.answering(slices.DeleteFunc(slices.Clone(real), func(r netip.Addr) bool {
			return a.egress.Default != network.Allow && !a.policy.Bound(n, proto, netip.AddrPortFrom(r, port)).Allow
		}))
		return to[:min(len(to), maxTargets)]
	}
	if a.egress.Default == network.Allow {
		add(0, 255, 0, math.MaxUint16, targets("", 0))
		return out
	}
	add(f.icmp, f.icmp, 0, math.MaxUint16, targets("icmp", 0))
	for _, p := range []struct {
		number byte
		name   string
	}{{unix.IPPROTO_TCP, "tcp"}, {unix.IPPROTO_UDP, "udp"}} {
		starts := a.boundaries(p.name)
		for i := 0; i < len(starts); {
			first, to := starts[i], targets(p.name, starts[i])
			for i++; i < len(starts) && slices.Equal(targets(p.name, starts[i]), to); i++ {
			}
			last := uint16(math.MaxUint16)
			if i < len(starts) {
				last = starts[i] - 1
			}
			add(p.number, p.number, first, last, to)
		}
	}
	return out
}

// boundaries are the ports at which a verdict may change.
func (a *attachment) boundaries(proto string) []uint16 {
	out := []uint16{0}
	for _, r := range a.egress.Allow {
		for _, p := range r.Ports {
			if p.Protocol != proto {
				continue
			}
			out = append(out, p.First)
			if p.Last < math.MaxUint16 {
				out = append(out, p.Last+1)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
