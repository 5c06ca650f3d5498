package netbridge

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/sdk/errs"
)

// Other firewalls of the host have a say on what is forwarded, and what we accept they
// may still drop. Docker's way, which iptables gives others too, is a chain "FORWARD"
// in a table "filter" that drops, and a chain "DOCKER-USER" in it that is for the likes
// of us: there a rule for each direction lets our bridge pass, since our own rules
// decide on it. They go with the bridge. Of any other firewall that drops we only tell.

const (
	filterTable  = "filter"
	forwardChain = "FORWARD"
	dockerChain  = "DOCKER-USER"
)

func (c *change) foreignTables() []*nftables.Table {
	return []*nftables.Table{{Name: filterTable, Family: nftables.TableFamilyIPv4}, {Name: filterTable, Family: nftables.TableFamilyIPv6}}
}

// passes are our rules in another firewall's chain: with a counter, as iptables writes
// them, so that it can read them, too.
func passes(bridge string) []exprs {
	var out []exprs
	for _, k := range []expr.MetaKey{expr.MetaKeyIIFNAME, expr.MetaKeyOIFNAME} {
		// iptables takes a name with its end for that very name.
		out = append(out, seq(meta(k, 1), eq(1, append([]byte(bridge), 0)), exprs{&expr.Counter{}}, accept()))
	}
	return out
}

// besides makes the other firewalls pass the bridge. fresh means that it was just made.
func (c *change) besides(bridge string) error {
	for _, t := range c.foreignTables() {
		chain, err := c.ListChain(t, dockerChain)
		if err != nil || chain == nil {
			chain, err = c.ListChain(t, forwardChain)
			if err != nil || chain == nil || chain.Policy == nil || *chain.Policy != nftables.ChainPolicyDrop {
				continue
			}
		}
		ours, err := c.mentions(t, chain.Name, bridge)
		if err != nil {
			return err
		}
		if len(ours) > 0 {
			continue
		}
		c.idle = false
		for _, e := range passes(bridge) {
			c.InsertRule(&nftables.Rule{Table: t, Chain: &nftables.Chain{Name: chain.Name, Table: t}, Exprs: e})
		}
	}
	if err := c.commit(); err != nil {
		return errs.Preconditionf("letting %s pass the host's firewall: %w", bridge, err)
	}
	return nil
}

// obstacles are base chains of others that drop what is forwarded, and in which nobody
// speaks of the bridge. They are looked for when a bridge is made.
func (c *change) obstacles(bridge string) error {
	chains, err := c.ListChains()
	if err != nil {
		return fmt.Errorf("listing the host's firewall: %w", err)
	}
	for _, ch := range chains {
		if ch.Hooknum == nil || *ch.Hooknum != *nftables.ChainHookForward || ch.Table.Name == tableName || ch.Table.Name == filterTable {
			continue
		}
		if f := ch.Table.Family; f != nftables.TableFamilyINet && f != nftables.TableFamilyIPv4 && f != nftables.TableFamilyIPv6 {
			continue
		}
		drops := ch.Policy != nil && *ch.Policy == nftables.ChainPolicyDrop
		firewalld := ch.Table.Name == "firewalld"
		if !drops && !firewalld {
			continue
		}
		asked := []string{ch.Name}
		if firewalld {
			// Its chain rejects what is of no zone. A zone's interfaces are in one of these,
			// before and since version 2.
			asked = []string{"filter_FORWARD_ZONES", "filter_FORWARD_POLICIES"}
		}
		if slices.ContainsFunc(asked, func(chain string) bool {
			ours, err := c.mentions(ch.Table, chain, bridge)
			return err == nil && len(ours) > 0
		}) {
			continue
		}
		if firewalld {
			return errs.Preconditionf("firewalld rejects what is forwarded from a link of no zone: run firewall-cmd --permanent --zone=trusted --add-interface=%s && firewall-cmd --reload", bridge)
		}
		family := map[nftables.TableFamily]string{nftables.TableFamilyINet: "inet", nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6"}[ch.Table.Family]
		return errs.Preconditionf(`the host's firewall drops what is forwarded (chain %s %s %s): let it pass the bridge, as with nft 'insert rule %s %s %s iifname "%s" accept' and the same with oifname`,
			family, ch.Table.Name, ch.Name, family, ch.Table.Name, ch.Name, bridge)
	}
	return nil
}

// mentions are the rules of a chain that compare with the interface's name.
func (c *change) mentions(t *nftables.Table, chain, bridge string) ([]*nftables.Rule, error) {
	rules, err := c.GetRules(t, &nftables.Chain{Name: chain, Table: t})
	if err != nil {
		if strings.Contains(err.Error(), unix.ENOENT.Error()) || errors.Is(err, unix.ENOENT) {
			return nil, nil
		}
		return nil, fmt.Errorf("reading the host's firewall: %w", err)
	}
	var out []*nftables.Rule
	for _, r := range rules {
		for _, e := range r.Exprs {
			if cmp, ok := e.(*expr.Cmp); ok && string(bytes.TrimRight(cmp.Data, "\x00")) == bridge {
				out = append(out, r)
				break
			}
		}
	}
	return out, nil
}

// leave removes our rules from the other firewalls.
func (c *change) leave(bridge string) error {
	for _, t := range c.foreignTables() {
		for _, chain := range []string{dockerChain, forwardChain} {
			ours, err := c.mentions(t, chain, bridge)
			if err != nil {
				continue // there is no such chain
			}
			for _, r := range ours {
				if isPass(r, bridge) {
					c.idle = false
					if err := c.DelRule(r); err != nil {
						return err
					}
				}
			}
		}
	}
	return nil
}

// isPass tells our rules from those that an administrator has written about the bridge.
func isPass(r *nftables.Rule, bridge string) bool {
	if len(r.Exprs) != 4 {
		return false
	}
	m, isMeta := r.Exprs[0].(*expr.Meta)
	cmp, isCmp := r.Exprs[1].(*expr.Cmp)
	_, counts := r.Exprs[2].(*expr.Counter)
	v, decides := r.Exprs[3].(*expr.Verdict)
	return isMeta && isCmp && counts && decides && v.Kind == expr.VerdictAccept &&
		(m.Key == expr.MetaKeyIIFNAME || m.Key == expr.MetaKeyOIFNAME) && bytes.Equal(cmp.Data, append([]byte(bridge), 0))
}
