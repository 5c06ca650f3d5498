package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// RoutingRule is a rule of policy routing (ip-rule(8)), in the calling thread's
// namespace.
type RoutingRule struct {
	Priority uint32
	Family   byte
	Link     string       // by which a packet comes
	To       netip.Prefix // if valid
	Protocol uint8        // 0 for any
	Port     uint16       // 0 for any
	Table    byte         // 0: it is unreachable
}

// Add makes it.
func (r RoutingRule) Add() error {
	h := []byte{r.Family, 0, 0, 0, r.Table, 0, 0, unix.FR_ACT_UNREACHABLE, 0, 0, 0, 0}
	if r.Table != 0 {
		h[7] = unix.FR_ACT_TO_TBL
	}
	if r.To.IsValid() {
		h[1] = byte(r.To.Bits())
	}
	m := NewMessage(unix.RTM_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, h).Uint32(unix.FRA_PRIORITY, r.Priority).Text(unix.FRA_IIFNAME, r.Link)
	if r.To.IsValid() {
		m = m.Attr(unix.FRA_DST, r.To.Addr().AsSlice())
	}
	if r.Protocol != 0 {
		m = m.Attr(unix.FRA_IP_PROTO, []byte{r.Protocol})
	}
	if r.Port != 0 {
		b := binary.NativeEndian.AppendUint16(nil, r.Port)
		m = m.Attr(unix.FRA_DPORT_RANGE, append(b, b...))
	}
	if err := once(unix.NETLINK_ROUTE, m, nil); err != nil {
		return fmt.Errorf("adding a routing rule for %s: %w", r.Link, err)
	}
	return nil
}

// DelRoutingRules removes all rules of a link, which need not be there.
func DelRoutingRules(link string) error {
	for _, f := range []byte{unix.AF_INET, unix.AF_INET6} {
		m := NewMessage(unix.RTM_DELRULE, 0, []byte{f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}).Text(unix.FRA_IIFNAME, link)
		for {
			err := once(unix.NETLINK_ROUTE, m, nil)
			if errors.Is(err, unix.ENOENT) {
				break
			}
			if err != nil {
				return fmt.Errorf("removing the routing rules of %s: %w", link, err)
			}
		}
	}
	return nil
}

// RoutingRules are the links that have any.
func RoutingRules() (map[string]bool, error) {
	out := map[string]bool{}
	err := once(unix.NETLINK_ROUTE, NewMessage(unix.RTM_GETRULE, unix.NLM_F_DUMP, make([]byte, unix.SizeofRtMsg)), func(_ uint16, b []byte) {
		if name := text(attributes(b[unix.SizeofRtMsg:])[unix.FRA_IIFNAME]); name != "" {
			out[name] = true
		}
	})
	return out, err
}

// AddTable makes an empty table of nftables, of all families' hooks (inet).
func AddTable(name string) error {
	fd, err := netlinkSocket(unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	// What changes tables is a batch: begin, changes, end (nfnetlink.h).
	part := func(kind, flags uint16, seq uint32, res uint16, family byte) Message {
		m := NewMessage(kind, flags, binary.BigEndian.AppendUint16([]byte{family, 0}, res))
		binary.NativeEndian.PutUint32(m[8:], seq)
		return m
	}
	sized := func(m Message) Message {
		binary.NativeEndian.PutUint32(m, uint32(len(m)))
		return m
	}
	batch := sized(part(unix.NFNL_MSG_BATCH_BEGIN, 0, 0, unix.NFNL_SUBSYS_NFTABLES, 0))
	batch = append(batch, sized(part(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE|unix.NLM_F_ACK, 1, 0, unix.NFPROTO_INET).Text(tableName, name))...)
	batch = append(batch, sized(part(unix.NFNL_MSG_BATCH_END, 0, 2, unix.NFNL_SUBSYS_NFTABLES, 0))...)
	if err := unix.Sendto(fd, batch, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	buf := make([]byte, 4096)
	n, err := receive(fd, buf)
	if err != nil {
		return err
	}
	return messages(buf[:n], func(_, _ uint16, _ uint32, payload []byte) error { return failure(payload) })
}
