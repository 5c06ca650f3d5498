package netbridge

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// guard takes the sandbox's link down when rules go that it stands behind. Whoever
// reloads the host's firewall begins with "flush ruleset" as a rule, and without rules
// everything passes. The link stays down: what the rules knew of names and flows is
// gone, and half a network is worse than none that says so.
type guard struct {
	file  *os.File
	query socket
	wg    sync.WaitGroup
}

const nftablesGroup = 7 // NFNLGRP_NFTABLES

func newGuard() (*guard, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	f := os.NewFile(uintptr(fd), "nftables")
	// Without an address of its own it would pass for the kernel, which tells itself nothing.
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		f.Close()
		return nil, os.NewSyscallError("bind", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, nftablesGroup); err != nil {
		f.Close()
		return nil, fmt.Errorf("watching nftables: %w", os.NewSyscallError("setsockopt", err))
	}
	query, err := open(unix.NETLINK_NETFILTER)
	if err != nil {
		f.Close()
		return nil, err
	}
	return &guard{file: f, query: query}, nil
}

func (g *guard) close() {
	_ = g.file.Close()
	g.wg.Wait()
	g.query.close()
}

// start begins to watch; what went between newGuard and now is seen.
func (g *guard) start(a *attachment, port int) {
	g.wg.Go(func() {
		buf := make([]byte, 64<<10)
		for {
			n, err := g.file.Read(buf)
			if err != nil && !errors.Is(err, unix.ENOBUFS) {
				return
			}
			if err == nil && !a.concerns(buf[:n]) {
				continue
			}
			if !a.intact() {
				shut(port)
			}
		}
	})
}

// concerns tells whether events may be about what this sandbox stands behind.
func (a *attachment) concerns(m []byte) bool {
	for len(m) >= nflogHeader {
		size := int(binary.NativeEndian.Uint32(m))
		if size < nflogHeader || size > len(m) {
			return true
		}
		text := func(kind uint16) string {
			s, _, _ := strings.Cut(string(attributeOf(m[nflogHeader:size], kind)), "\x00")
			return s
		}
		// Table and chain, or set, have the same place in each of these.
		if text(unix.NFTA_RULE_TABLE) == tableName {
			name := text(unix.NFTA_RULE_CHAIN)
			switch binary.NativeEndian.Uint16(m[4:]) & 0xff {
			case unix.NFT_MSG_DELTABLE:
				return true
			case unix.NFT_MSG_DELCHAIN:
				// The name is where tables have theirs; it is seen by its rules, too.
				return true
			case unix.NFT_MSG_DELRULE:
				if !strings.HasPrefix(name, portPrefix) || strings.HasPrefix(name, a.name()) {
					return true
				}
			case unix.NFT_MSG_DELSETELEM, unix.NFT_MSG_DELSET:
				if name == setBridges {
					return true
				}
			}
		}
		m = m[min(len(m), (size+3)&^3):]
	}
	return false
}

// shared are the chains that every sandbox stands behind.
func shared() []string {
	return []string{"prerouting", "postrouting", "neighbours", "forward", "input", "output", "from-sandbox", "to-sandbox", "to-host"}
}

// intact tells whether all rules are there that were when the link came up.
func (a *attachment) intact() bool {
	ctx, cancel := context.WithTimeout(a.ctx, answerLimit)
	defer cancel()
	now, err := a.census(ctx)
	if err != nil || now != a.made {
		return a.ctx.Err() != nil
	}
	c, err := a.rules.change()
	if err != nil {
		return false
	}
	defer c.close()
	return c.knows(a.pool.bridge)
}

// knows tells whether the rules are about the bridge.
func (c *change) knows(bridge string) bool {
	all, err := c.GetSetElements(c.in(names(setBridges)))
	if err != nil {
		return false
	}
	for _, e := range all {
		if string(e.Key) == string(ifname(bridge)) {
			return true
		}
	}
	return false
}

// census tells how many rules the sandbox stands behind, and what leads to them.
func (a *attachment) census(ctx context.Context) (string, error) {
	all, err := a.guard.query.uses(ctx, a.name())
	return fmt.Sprint(all), err
}

// use is how much a chain is used: by the rules in it, and by what leads to it.
type use struct {
	chain string
	n     uint32
}

// uses asks about the chains that a slot stands behind, in one go. The library cannot
// read all rules that it writes.
func (s socket) uses(ctx context.Context, slot string) ([]use, error) {
	out := []use{{chain: "bridge prerouting"}}
	rs := []*nl.NetlinkRequest{chainRequest(unix.NFPROTO_BRIDGE, "prerouting")}
	for _, chain := range append(shared(), slot+chainOut, slot+chainIn, slot+chainNo, slot+chainPass, slot+chainPeer, slot+chainBack, slot+chainCount, slot+chainPairs) {
		out = append(out, use{chain: chain})
		rs = append(rs, chainRequest(unix.NFPROTO_INET, chain))
	}
	at := make(map[uint32]int)
	for i, r := range rs {
		at[r.Seq] = i
	}
	err := s.send(ctx, func(m []byte) {
		i, ok := at[binary.NativeEndian.Uint32(m[8:])]
		n := attributeOf(m[min(len(m), nflogHeader):], unix.NFTA_CHAIN_USE)
		if ok && len(n) == 4 {
			out[i].n = binary.BigEndian.Uint32(n)
		}
	}, rs...)
	if errors.Is(err, unix.ENOENT) {
		err = nil // it has no uses
	}
	return out, err
}

func chainRequest(family int, chain string) *nl.NetlinkRequest {
	return request(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETCHAIN, unix.NLM_F_ACK, &nl.Nfgenmsg{NfgenFamily: uint8(family)},
		attr(unix.NFTA_CHAIN_TABLE, nl.ZeroTerminated(tableName)), attr(unix.NFTA_CHAIN_NAME, nl.ZeroTerminated(chain)))
}

func shut(port int) {
	s, err := open(unix.NETLINK_ROUTE)
	if err != nil {
		return
	}
	defer s.close()
	m := nl.NewIfInfomsg(unix.AF_UNSPEC)
	m.Index, m.Change = int32(port), unix.IFF_UP
	// The link may be gone.
	_ = s.send(context.Background(), nil, request(unix.RTM_NEWLINK, unix.NLM_F_ACK, m))
}
