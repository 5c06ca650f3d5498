package netbridge

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/dump"
	"github.com/nucleus-runtime/nucleus/sdk/errs"
	"github.com/nucleus-runtime/nucleus/sdk/network"
)

// Detach removes a sandbox's link by its alias, and what belongs to no link any more.
func (p *Plugin) Detach(ctx context.Context, r *network.DetachRequest) ([]string, error) {
	mark := p.alias(r.Call.SandboxID, r.Call.InstanceID)
	p.mu.Lock()
	a := p.live[mark]
	delete(p.live, mark)
	p.mu.Unlock()
	if a != nil {
		a.stop()
	}
	h, err := p.host()
	if err != nil {
		return nil, err
	}
	defer h.close()
	return h.detach(ctx, mark)
}

func (h *host) detach(ctx context.Context, mark string) ([]string, error) {
	removed, err := h.clean(ctx, false, func(a string) bool { return a == mark })
	if !cannotHave(err) {
		return removed, err
	}
	// Links are made after the tables. One that is there all the same means that it is
	// this process that may not see nftables.
	have, failed := h.links()
	if failed != nil || len(have.ports) > 0 {
		return nil, errors.Join(err, failed)
	}
	return nil, nil
}

// clean removes links that are chosen by their alias, and everything that no link has a
// use for: of one sandbox, of a bridge, and in the end of all. A link without an alias
// is of an Attach that was interrupted: who has the lock sees none that goes on.
func (h *host) clean(ctx context.Context, dry bool, chosen func(alias string) bool) (removed []string, err error) {
	unlock, err := h.locks.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	have, err := h.links()
	if err != nil {
		return nil, err
	}
	var failed []error
	fail := func(what string, err error) {
		if err != nil {
			failed = append(failed, errs.Residue(fmt.Errorf("removing %s: %w", what, err), what))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(have.ports)) {
		if a := have.ports[name].Attrs().Alias; a != "" && !chosen(a) {
			continue
		}
		removed = append(removed, "link "+name)
		if !dry {
			if err := h.removeLink(name); err != nil {
				fail("link "+name, err)
				continue
			}
		}
		delete(have.ports, name)
	}
	c, err := h.rules.change()
	if err != nil {
		return removed, errors.Join(append(failed, err)...)
	}
	defer c.close()
	tables, err := c.there()
	if err != nil {
		return removed, errors.Join(append(failed, err)...)
	}
	there := tables == 2
	if there {
		slots, err := c.orphans(have)
		fail("the rules of sandboxes that are gone", err)
		for _, s := range slots {
			if !slices.Contains(removed, "link "+s) {
				removed = append(removed, "rules of "+s)
			}
		}
		if !dry && len(slots) > 0 && len(have.ports) > 0 {
			fail("the rules of sandboxes that are gone", c.expel(slots))
		}
	}
	if dry {
		return removed, errors.Join(failed...)
	}
	more, err := h.cleanShared(ctx, c, tables, have)
	fail("what sandboxes shared", err)
	return append(removed, more...), errors.Join(failed...)
}

// cleanShared removes bridges without ports, and with the last port all the rest.
func (h *host) cleanShared(ctx context.Context, c *change, tables int, have links) (removed []string, err error) {
	var failed []error
	used := make(map[int]bool)
	for _, l := range have.ports {
		used[l.Attrs().MasterIndex] = true
	}
	if len(have.ports) == 0 {
		failed = append(failed, c.closeAgain(have))
	}
	if tables > 0 && len(have.ports) == 0 {
		if _, err := c.ListTableOfFamily(tableName, nftables.TableFamilyINet); err == nil {
			// Of bridges, too, that somebody has removed.
			for _, bridge := range c.interfaces(setBridges) {
				failed = append(failed, c.leave(bridge))
			}
		}
		c.dropTables()
		failed = append(failed, c.commit())
		removed = append(removed, "tables "+tableName)
	}
	for name, l := range have.bridges {
		if used[l.Attrs().Index] {
			failed = append(failed, h.forgetNeighbours(ctx, l, have))
			continue
		}
		failed = append(failed, h.passOn(l, have, used), c.leave(name))
		if tables == 2 && len(have.ports) > 0 {
			c.unserve(l)
		}
		failed = append(failed, c.commit(), h.removeLink(name))
		removed = append(removed, "bridge "+name)
	}
	return removed, errors.Join(failed...)
}

// there tells how many of our two tables are.
func (c *change) there() (int, error) {
	n := 0
	for _, t := range []*nftables.Table{c.inet, c.link} {
		_, err := c.ListTableOfFamily(t.Name, t.Family)
		switch {
		case err == nil:
			n++
		case !errors.Is(err, unix.ENOENT):
			return 0, fmt.Errorf("looking for our tables of nftables: %w", err)
		}
	}
	return n, nil
}

// ensure makes the tables. If somebody has removed one, the other is of no use.
func (c *change) ensure() error {
	n, err := c.there()
	if err != nil || n == 2 {
		return err
	}
	if n == 1 {
		c.dropTables()
	}
	c.base()
	if err := c.commit(); err != nil {
		return errs.Preconditionf("making the tables of nftables: %w", err)
	}
	return nil
}

func (c *change) dropTables() {
	c.idle = false
	for _, t := range []*nftables.Table{c.inet, c.link} {
		c.AddTable(t)
		c.DelTable(t)
	}
}

// serve makes the rules know the bridge.
func (c *change) serve(pl *pool) error {
	mine := ifname(pl.bridge)
	if c.knows(pl.bridge) {
		return nil
	}
	if err := c.obstacles(pl.bridge); err != nil {
		return err
	}
	c.elements(c.in(names(setBridges)), nftables.SetElement{Key: mine})
	c.elements(c.in(inet4().subnets()), intervals([]netip.Prefix{pl.v4})...)
	c.elements(c.in(inet6().subnets()), intervals([]netip.Prefix{pl.v6})...)
	if err := c.commit(); err != nil {
		return fmt.Errorf("making the rules know the bridge %s: %w", pl.bridge, err)
	}
	return nil
}

// unserve takes the bridge out of the rules.
func (c *change) unserve(l netlink.Link) {
	c.without(c.in(names(setBridges)), nftables.SetElement{Key: ifname(l.Attrs().Name)})
	if v4, v6, ok := served(l); ok {
		c.without(c.in(inet4().subnets()), intervals([]netip.Prefix{v4})...)
		c.without(c.in(inet6().subnets()), intervals([]netip.Prefix{v6})...)
	}
}

// served reads what a bridge's alias says.
func served(l netlink.Link) (v4, v6 netip.Prefix, ok bool) {
	s4, s6, _ := strings.Cut(strings.TrimPrefix(l.Attrs().Alias, bridgeMark), " ")
	v4, err4 := netip.ParsePrefix(s4)
	v6, err6 := netip.ParsePrefix(s6)
	return v4, v6, err4 == nil && err6 == nil
}

// forgetNeighbours removes entries of ports that are gone.
func (h *host) forgetNeighbours(ctx context.Context, bridge netlink.Link, have links) error {
	v4, v6, ok := served(bridge)
	if !ok {
		return nil
	}
	all, err := dump.Whole(func() ([]netlink.Neigh, error) { return h.route.NeighList(bridge.Attrs().Index, unix.AF_UNSPEC) })
	if err != nil {
		return fmt.Errorf("listing neighbours: %w", err)
	}
	var rs []*nl.NetlinkRequest
	for _, n := range all {
		a, _ := netip.AddrFromSlice(n.IP)
		a = a.Unmap()
		at := a
		if a.Is6() {
			if !v6.Contains(a) {
				continue
			}
			b, base := a.As16(), v6.Addr().As16()
			at = add(v4.Addr(), binary.BigEndian.Uint32(b[12:])-binary.BigEndian.Uint32(base[12:]))
		}
		if n.State&netlink.NUD_PERMANENT == 0 || !v4.Contains(at) || have.ports[slot{v4: at}.name()] != nil {
			continue
		}
		rs = append(rs, request(unix.RTM_DELNEIGH, unix.NLM_F_ACK,
			&netlink.Ndmsg{Family: uint8(family(a)), Index: uint32(bridge.Attrs().Index)}, attr(netlink.NDA_DST, a.AsSlice())))
	}
	if len(rs) == 0 {
		return nil
	}
	if err := h.batch.send(ctx, nil, rs...); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}

// orphans are slots that have rules and no link.
func (c *change) orphans(have links) ([]string, error) {
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, fmt.Errorf("listing chains: %w", err)
	}
	found := make(map[string]bool)
	for _, ch := range chains {
		name, _, ok := strings.Cut(ch.Name, "-")
		if ch.Table.Name == tableName && ok && strings.HasPrefix(name, portPrefix) && have.ports[name] == nil {
			found[name] = true
		}
	}
	return slices.Sorted(maps.Keys(found)), nil
}

// addrOf is the IPv4 address that a slot is named after.
func addrOf(slot string) netip.Addr {
	b, err := hex.DecodeString(strings.TrimPrefix(slot, portPrefix))
	if err != nil || len(b) != 4 {
		return netip.Addr{}
	}
	return netip.AddrFrom4([4]byte(b))
}

// expel removes all that the slots have in the rules.
func (c *change) expel(slots []string) error {
	belongs := func(e nftables.SetElement) bool {
		return slices.ContainsFunc(slots, func(s string) bool {
			a := addrOf(s)
			return strings.HasPrefix(string(e.Key), string(ifname(s))) ||
				slices.ContainsFunc([]string{chainOut, chainIn, chainNo, chainNames, chainPeer, chainBack}, func(suffix string) bool { return leadsTo(e, s+suffix) }) ||
				a.IsValid() && strings.HasPrefix(string(e.Val), string(a.AsSlice()))
		})
	}
	// The addresses are seen where they lead to chains, before published ports and members.
	gone := make(map[string]bool)
	for _, f := range families() {
		for _, s := range []*nftables.Set{
			c.in(f.verdicts(mapIn)), c.in(f.verdicts(mapOut)), c.in(f.verdicts(mapNo)), c.in(f.verdicts(mapNames)), c.in(f.verdicts(mapPeer)), c.in(f.verdicts(mapBack)),
			c.in(f.expose()), c.in(f.exposeAny()), f.pins(c), c.in(f.jobs()), c.in(f.members()),
		} {
			all, err := c.GetSetElements(s)
			if err != nil {
				return fmt.Errorf("reading %s: %w", s.Name, err)
			}
			var out []nftables.SetElement
			for _, e := range all {
				member := s.Name == f.members().Name && gone[string(e.Key[len(member{}):])]
				if belongs(e) || member || len(e.Val) >= 16 && gone[string(e.Val[:16])] {
					out = append(out, nftables.SetElement{Key: e.Key})
					gone[string(e.Key)] = true
				}
			}
			c.without(s, out...)
		}
	}
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return fmt.Errorf("listing chains: %w", err)
	}
	sets, err := c.GetSets(c.inet)
	if err != nil {
		return fmt.Errorf("listing sets: %w", err)
	}
	of := func(name string) bool {
		s, _, ok := strings.Cut(name, "-")
		return ok && slices.Contains(slots, s)
	}
	chains = slices.DeleteFunc(chains, func(ch *nftables.Chain) bool { return ch.Table.Name != tableName || !of(ch.Name) })
	c.idle = false
	for _, ch := range chains {
		ch.Table = c.inet
		c.FlushChain(ch)
	}
	for _, ch := range chains {
		c.DelChain(ch)
	}
	for _, s := range sets {
		if of(s.Name) {
			c.DelSet(s)
		}
	}
	return c.commit()
}

// GC removes the links of this state root's sandboxes that are not to stay, and what
// belongs to no link.
func (p *Plugin) GC(ctx context.Context, r *network.GCRequest) (*network.GCResponse, error) {
	valid := make(map[string]bool)
	for _, v := range r.Valid {
		valid[p.alias(v.SandboxID, v.InstanceID)] = true
	}
	h, err := p.host()
	if err != nil {
		return nil, err
	}
	defer h.close()
	removed, err := h.clean(ctx, r.DryRun, func(a string) bool { return p.ofRoot(a) && !valid[a] })
	if cannotHave(err) {
		return &network.GCResponse{}, nil
	}
	out := &network.GCResponse{Removed: removed}
	if err != nil {
		out.Failed = strings.Split(err.Error(), "\n")
	}
	return out, nil
}
