package netlab

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/dump"
)

// Census is what a namespace has: a line each for links, addresses, routes, rules,
// neighbours that were set by hand, tables of nftables and sysctls.
type Census []string

// Census counts what the namespace has now.
func (n *Namespace) Census(t testing.TB) Census {
	t.Helper()
	var c Census
	err := n.handle(func(h *netlink.Handle) error {
		for _, part := range []func(*netlink.Handle) (Census, error){links, addresses, routes, rules, tables, sysctls} {
			lines, err := part(h)
			if err != nil {
				return err
			}
			c = append(c, lines...)
		}
		return nil
	})
	if err != nil {
		t.Fatalf("the census of %q: %v", n.Name, err)
	}
	slices.Sort(c)
	return c
}

// Changed tells what came ("+") and what went ("-") until a later census.
func (c Census) Changed(later Census) []string {
	var changes []string
	for _, line := range later {
		if !slices.Contains(c, line) {
			changes = append(changes, "+ "+line)
		}
	}
	for _, line := range c {
		if !slices.Contains(later, line) {
			changes = append(changes, "- "+line)
		}
	}
	return changes
}

// Has tells whether a line of the kind mentions a word: Has("link", "veth").
func (c Census) Has(kind, word string) bool {
	return slices.ContainsFunc(c, func(line string) bool {
		return strings.HasPrefix(line, kind+" ") && strings.Contains(line, word)
	})
}

func links(h *netlink.Handle) (Census, error) {
	all, err := dump.Whole(h.LinkList)
	var c Census
	for _, l := range all {
		a := l.Attrs()
		c = append(c, fmt.Sprintf("link %s %s mtu %d master %d flags %s", a.Name, l.Type(), a.MTU, a.MasterIndex, a.Flags))
	}
	return c, err
}

func addresses(h *netlink.Handle) (Census, error) {
	all, err := dump.Whole(func() ([]netlink.Addr, error) { return h.AddrList(nil, netlink.FAMILY_ALL) })
	var c Census
	for _, a := range all {
		c = append(c, fmt.Sprintf("address %s on %d scope %d", a.IPNet, a.LinkIndex, a.Scope))
	}
	return c, err
}

func routes(h *netlink.Handle) (Census, error) {
	var c Census
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		// Every table; and no clones, which the kernel makes by itself.
		all, err := dump.Whole(func() ([]netlink.Route, error) {
			return h.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		})
		if err != nil {
			return nil, err
		}
		for _, r := range all {
			if r.Flags&unix.RTM_F_CLONED == 0 {
				c = append(c, fmt.Sprintf("route %v via %v dev %d table %d type %d", r.Dst, r.Gw, r.LinkIndex, r.Table, r.Type))
			}
		}
	}
	return c, nil
}

func rules(h *netlink.Handle) (Census, error) {
	all, err := dump.Whole(func() ([]netlink.Rule, error) { return h.RuleList(netlink.FAMILY_ALL) })
	var c Census
	for _, r := range all {
		c = append(c, fmt.Sprintf("rule %d %s mark %d", r.Family, r, r.Mark))
	}
	return c, err
}

// tables counts chains, rules and sets, so that a change within a table shows. It
// speaks to the namespace of the calling thread, as everything here.
func tables(*netlink.Handle) (Census, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, err
	}
	all, err := conn.ListTables()
	if err != nil {
		return nil, err
	}
	chains, err := conn.ListChains()
	if err != nil {
		return nil, err
	}
	var c Census
	for _, t := range all {
		sets, err := conn.GetSets(t)
		if err != nil {
			return nil, err
		}
		n := 0
		for _, chain := range chains {
			if chain.Table.Name != t.Name || chain.Table.Family != t.Family {
				continue
			}
			rules, err := conn.GetRules(t, chain)
			if err != nil {
				return nil, err
			}
			c = append(c, fmt.Sprintf("chain %s of table %d %s with %d rules", chain.Name, t.Family, t.Name, len(rules)))
			n++
		}
		c = append(c, fmt.Sprintf("table %d %s with %d chains and %d sets", t.Family, t.Name, n, len(sets)))
	}
	return c, nil
}

func sysctls(*netlink.Handle) (Census, error) {
	var c Census
	for _, tree := range []string{"ipv4", "ipv6"} {
		root := filepath.Join("/proc/sys/net", tree)
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			value, err := os.ReadFile(path)
			if err != nil {
				return nil //nolint:nilerr // some can only be written, or have no value yet
			}
			c = append(c, fmt.Sprintf("sysctl %s %s", strings.TrimPrefix(path, "/proc/sys/net/"), strings.Join(strings.Fields(string(value)), " ")))
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return c, nil
}
