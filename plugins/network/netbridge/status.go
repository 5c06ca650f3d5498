package netbridge

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/sdk/dnsname"
	"github.com/nucleus-runtime/nucleus/sdk/network"
)

// Status compares what the kernel has with what Attach has made.
func (p *Plugin) Status(ctx context.Context, r *network.StatusRequest) (*network.Status, error) {
	h, err := p.host()
	if err != nil {
		return nil, err
	}
	defer h.close()
	c, err := h.rules.change()
	if err != nil {
		return nil, err
	}
	defer c.close()
	mark := p.alias(r.SandboxID, r.InstanceID)
	if a := p.serving(r.SandboxID, r.InstanceID); a != nil {
		h.v6 = a.six // the host may have changed since
	}
	have, err := h.links()
	if err != nil {
		return nil, err
	}
	out := &network.Status{}
	drift := func(format string, args ...any) { out.Drift = append(out.Drift, fmt.Sprintf(format, args...)) }
	var port netlink.Link
	for _, l := range have.ports {
		if l.Attrs().Alias == mark {
			port = l
		}
	}
	if port == nil {
		drift("the sandbox's link is gone")
	} else {
		h.portDrift(port, have, drift)
		out.Stats = append(out.Stats, stats(port, r.IfName))
		if err := c.ruleDrift(ctx, port.Attrs().Name, drift); err != nil {
			return nil, err
		}
	}
	if a := p.serving(r.SandboxID, r.InstanceID); a != nil {
		a.count(c, out)
	}
	out.OK = len(out.Drift) == 0
	return out, nil
}

func stats(port netlink.Link, name string) network.IfStats {
	if name == "" {
		name = "eth0"
	}
	out := network.IfStats{IfName: name}
	if s := port.Attrs().Statistics; s != nil {
		// What the host's end has got is what the sandbox has sent.
		out.RxBytes, out.TxBytes, out.RxPackets, out.TxPackets = s.TxBytes, s.RxBytes, s.TxPackets, s.RxPackets
		out.Dropped = s.RxDropped + s.TxDropped
	}
	return out
}

func (h *host) portDrift(port netlink.Link, have links, drift func(string, ...any)) {
	a := port.Attrs()
	if a.Flags&net.FlagUp == 0 {
		drift("%s is down", a.Name)
	}
	var bridge netlink.Link
	for _, b := range have.bridges {
		if b.Attrs().Index == a.MasterIndex {
			bridge = b
		}
	}
	if bridge == nil {
		drift("%s is on no bridge of ours", a.Name)
		return
	}
	name := bridge.Attrs().Name
	if bridge.Attrs().Flags&net.FlagUp == 0 {
		drift("%s is down", name)
	}
	if info, err := h.route.LinkGetProtinfo(port); err != nil || !info.Isolated {
		drift("%s is not isolated", a.Name)
	}
	v4, v6, _ := served(bridge)
	for _, pre := range []netip.Prefix{v4, v6} {
		if pre.Addr().Is6() && !h.v6 {
			continue
		}
		if gateway := add(pre.Addr(), 1); !h.has(bridge, gateway) {
			drift("%s has not the address %s", name, gateway)
		}
	}
	if sysctl(sysctls+"/ipv4/conf/"+name+"/forwarding") == "0" {
		drift("%s does not forward", name)
	}
}

// ruleDrift looks for the sandbox's rules.
func (c *change) ruleDrift(ctx context.Context, slot string, drift func(string, ...any)) error {
	there, err := c.there()
	if err != nil {
		return err
	}
	if there < 2 {
		drift("the tables %s of nftables are gone", tableName)
		return nil
	}
	s, err := open(unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	defer s.close()
	all, err := s.uses(ctx, slot)
	if err != nil {
		return fmt.Errorf("looking at the sandbox's rules: %w", err)
	}
	for _, u := range all {
		if u.n < least(u.chain, slot) {
			drift("the rules of %s are gone", u.chain)
		}
	}
	for _, f := range families() {
		for _, m := range []struct{ set, chain string }{{mapOut, chainOut}, {mapIn, chainIn}, {mapNo, chainNo}} {
			all, err := c.GetSetElements(c.in(f.verdicts(m.set)))
			if err != nil || !slices.ContainsFunc(all, func(e nftables.SetElement) bool { return leadsTo(e, slot+m.chain) }) {
				drift("nothing leads to the rules of %s%s by IPv%s", slot, m.chain, f.suffix)
			}
		}
	}
	return nil
}

// least is how much a chain is used at the least if its rules are there: a sandbox's
// own have the two addresses that lead to them, too, and that of refusals more.
func least(chain, slot string) uint32 {
	switch chain {
	case "from-sandbox", "to-host", slot + chainOut, slot + chainIn, slot + chainNo:
		return 4
	case "to-sandbox":
		return 5
	case slot + chainPass:
		return passRules
	case slot + chainPeer, slot + chainBack, slot + chainCount, slot + chainPairs:
		return 0 // many have none
	default:
		return 1
	}
}

// count adds what this process knows: flows by name, and what was refused.
func (a *attachment) count(c *change, out *network.Status) {
	out.Denied = a.ledger.Denied()
	// The counters have those too that were too many to be told.
	var refused uint64
	for _, chain := range []string{chainNo, chainMany} {
		rules, err := c.GetRules(c.inet, &nftables.Chain{Name: a.name() + chain, Table: c.inet})
		if err != nil || len(rules) == 0 {
			continue
		}
		for _, e := range rules[0].Exprs {
			if n, ok := e.(*expr.Counter); ok {
				refused += n.Packets
			}
		}
	}
	out.Denied += refused - min(refused, a.log.logged.Load())
	if a.names == nil {
		return
	}
	rest := network.FlowStats{Connections: a.passed(c)}
	if len(out.Stats) > 0 {
		rest.RxBytes, rest.TxBytes = out.Stats[0].RxBytes, out.Stats[0].TxBytes
	}
	for _, f := range append(a.names.flows(c), a.jobFlows(c)...) {
		rest.RxBytes -= min(rest.RxBytes, f.RxBytes)
		rest.TxBytes -= min(rest.TxBytes, f.TxBytes)
		out.Flows = append(out.Flows, f)
	}
	out.Flows = append(out.Flows, rest)
}

// passed is how many flows the sandbox was allowed by address.
func (a *attachment) passed(c *change) uint64 {
	rules, err := c.GetRules(c.inet, &nftables.Chain{Name: a.name() + chainPass, Table: c.inet})
	if err != nil {
		return 0
	}
	for _, r := range rules {
		for _, e := range r.Exprs {
			if n, ok := e.(*expr.Counter); ok {
				return n.Packets
			}
		}
	}
	return 0
}

// flows are the counts by name.
func (b *bound) flows(c *change) []network.FlowStats {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := make(map[string]network.FlowStats)
	for n, f := range b.gone {
		all[n] = f
	}
	if b.a.sandbox.names {
		byAddress := make(map[netip.Addr]string)
		for n, is := range b.names {
			byAddress[is.own.V4], byAddress[is.own.V6] = string(n), string(n)
		}
		b.read(c, byAddress, all)
	}
	out := make([]network.FlowStats, 0, len(all))
	for n, f := range all {
		f.Name = n
		out = append(out, f)
	}
	slices.SortFunc(out, func(x, y network.FlowStats) int {
		if x.Name < y.Name {
			return -1
		}
		return 1
	})
	return out
}

// read adds the kernel's counters of names.
func (b *bound) read(c *change, byAddress map[netip.Addr]string, into map[string]network.FlowStats) {
	for _, f := range families() {
		flows, err := c.GetSetElements(c.in(f.flowSet(b.a.slot)))
		if err != nil {
			continue
		}
		for _, e := range flows {
			if e.Counter == nil || len(e.Key) < 4+int(f.size) {
				continue
			}
			a, _ := netip.AddrFromSlice(e.Key[4 : 4+f.size])
			n, ok := byAddress[a]
			if !ok {
				continue
			}
			s := into[n]
			if e.Key[0] == 0 {
				s.TxBytes += e.Counter.Bytes
			} else {
				s.RxBytes += e.Counter.Bytes
			}
			into[n] = s
		}
		pairs, err := c.GetSetElements(c.in(f.pairSet(b.a.slot)))
		if err != nil {
			continue
		}
		for _, e := range pairs {
			if e.Counter == nil || len(e.Key) < int(f.size) {
				continue
			}
			a, _ := netip.AddrFromSlice(e.Key[:f.size])
			if n, ok := byAddress[a]; ok {
				s := into[n]
				s.Connections += e.Counter.Packets
				into[n] = s
			}
		}
	}
}

// keepCounts remembers what a name has had that is about to be unbound.
func (b *bound) keepCounts(c *change, n dnsname.Name, was *name) {
	if len(b.gone) >= maxNames {
		return
	}
	b.read(c, map[netip.Addr]string{was.own.V4: string(n), was.own.V6: string(n)}, b.gone)
}
