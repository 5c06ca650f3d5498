package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Census is what a namespace has, a line each: links, addresses, routes, rules of
// routing, tables of nftables with what is in them, sysctls.
type Census []string

// Census counts what the namespace has now.
func (n *Namespace) Census() (Census, error) {
	var c Census
	err := n.Do(func() error {
		names, err := links()
		if err != nil {
			return err
		}
		byIndex := map[uint32]string{}
		for name, i := range names {
			byIndex[i] = name
		}
		return errors.Join(c.links(byIndex), c.addresses(byIndex), c.routes(byIndex), c.rules(), c.nftables(), c.sysctls())
	})
	slices.Sort(c)
	return c, err
}

// Changes tells what came ("+") and what went ("-") until a later census.
func (c Census) Changes(later Census) []string {
	var out []string
	count := map[string]int{}
	for _, line := range later {
		count[line]++
	}
	for _, line := range c {
		count[line]--
		if count[line] < 0 {
			out = append(out, "- "+line)
		}
	}
	for _, line := range later {
		if count[line] > 0 {
			count[line]--
			out = append(out, "+ "+line)
		}
	}
	return out
}

func (c *Census) add(format string, args ...any) { *c = append(*c, fmt.Sprintf(format, args...)) }

func (c *Census) links(name map[uint32]string) error {
	return once(unix.NETLINK_ROUTE, NewMessage(unix.RTM_GETLINK, unix.NLM_F_DUMP, make([]byte, unix.SizeofIfInfomsg)), func(_ uint16, b []byte) {
		a := attributes(b[unix.SizeofIfInfomsg:])
		c.add("link %s, mtu %d, master %q, up %v", text(a[unix.IFLA_IFNAME]), number(a[unix.IFLA_MTU]), name[number(a[unix.IFLA_MASTER])], b[8]&unix.IFF_UP != 0)
	})
}

func (c *Census) addresses(name map[uint32]string) error {
	return once(unix.NETLINK_ROUTE, NewMessage(unix.RTM_GETADDR, unix.NLM_F_DUMP, make([]byte, unix.SizeofIfAddrmsg)), func(_ uint16, b []byte) {
		a := attributes(b[unix.SizeofIfAddrmsg:])
		if ip, ok := netip.AddrFromSlice(a[unix.IFA_ADDRESS]); ok && ip.Is6() && ip.IsLinkLocalUnicast() {
			return // the kernel's, when it gets round to it; it goes with its link
		}
		c.add("address %s/%d on %s", address(a[unix.IFA_ADDRESS]), b[1], name[number(b[4:])])
	})
}

func (c *Census) routes(name map[uint32]string) error {
	return once(unix.NETLINK_ROUTE, NewMessage(unix.RTM_GETROUTE, unix.NLM_F_DUMP, make([]byte, unix.SizeofRtMsg)), func(_ uint16, b []byte) {
		if number(b[8:])&unix.RTM_F_CLONED != 0 || b[5] == unix.RTPROT_KERNEL {
			return // they come and go with an address or a link, some time later
		}
		a := attributes(b[unix.SizeofRtMsg:])
		table := number(a[unix.RTA_TABLE])
		c.add("route %s/%d by %s over %s, table %d, kind %d", address(a[unix.RTA_DST]), b[1], address(a[unix.RTA_GATEWAY]), name[number(a[unix.RTA_OIF])], table, b[7])
	})
}

func (c *Census) rules() error {
	return once(unix.NETLINK_ROUTE, NewMessage(unix.RTM_GETRULE, unix.NLM_F_DUMP, make([]byte, unix.SizeofRtMsg)), func(_ uint16, b []byte) {
		a := attributes(b[unix.SizeofRtMsg:])
		c.add("routing rule %d of family %d: action %d, to %s/%d, from link %q, table %d, mark %#x, port %x", number(a[unix.FRA_PRIORITY]), b[0], b[7],
			address(a[unix.FRA_DST]), b[1], text(a[unix.FRA_IIFNAME]), number(a[unix.FRA_TABLE]), number(a[unix.FRA_FWMARK]), a[unix.FRA_DPORT_RANGE])
	})
}

// Attributes of nf_tables that x/sys does not name.
const (
	tableName  = 1
	chainTable = 1
	chainName  = 3
	ruleTable  = 1
	ruleChain  = 2
	setTable   = 1
	setName    = 2
)

func (c *Census) nftables() error {
	dump := func(kind uint16, each func(family byte, a map[uint16][]byte)) error {
		m := NewMessage(unix.NFNL_SUBSYS_NFTABLES<<8|kind, unix.NLM_F_DUMP, make([]byte, 4))
		err := once(unix.NETLINK_NETFILTER, m, func(_ uint16, b []byte) { each(b[0], attributes(b[4:])) })
		if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EINVAL) {
			err = nil // a kernel without nf_tables
		}
		return err
	}
	return errors.Join(
		dump(unix.NFT_MSG_GETTABLE, func(f byte, a map[uint16][]byte) { c.add("nftables: table %d %s", f, text(a[tableName])) }),
		dump(unix.NFT_MSG_GETCHAIN, func(f byte, a map[uint16][]byte) {
			c.add("nftables: chain %s of table %d %s", text(a[chainName]), f, text(a[chainTable]))
		}),
		dump(unix.NFT_MSG_GETRULE, func(f byte, a map[uint16][]byte) {
			c.add("nftables: a rule of chain %s of table %d %s", text(a[ruleChain]), f, text(a[ruleTable]))
		}),
		dump(unix.NFT_MSG_GETSET, func(f byte, a map[uint16][]byte) {
			c.add("nftables: set %s of table %d %s", text(a[setName]), f, text(a[setTable]))
		}),
	)
}

func (c *Census) sysctls() error {
	for _, tree := range []string{"bridge", "ipv4", "ipv6"} {
		err := filepath.WalkDir(filepath.Join("/proc/sys/net", tree), func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // no such module, or the link went meanwhile
			}
			if err != nil || d.IsDir() {
				return err
			}
			value, err := os.ReadFile(path)
			if err != nil {
				return nil //nolint:nilerr // some can only be written, or have no value yet
			}
			c.add("sysctl %s = %s", strings.TrimPrefix(path, "/proc/sys/net/"), strings.Join(strings.Fields(string(value)), " "))
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func address(b []byte) string {
	if a, ok := netip.AddrFromSlice(b); ok {
		return a.String()
	}
	return "-"
}

func ne32(n uint32) []byte { return binary.NativeEndian.AppendUint32(nil, n) }
