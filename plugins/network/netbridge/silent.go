package netbridge

import (
	"bytes"
	"context"
	"encoding/binary"
	"net/netip"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/sdk/dnsname"
)

// A name may have several real addresses, of which some do not answer. The kernel
// chooses one for each connection, and keeps to it: that the first packet of a connection
// comes again is all that there is to see. Then the address is not chosen for some time,
// unless the name has no better, and the kernel forgets what it has chosen for that
// connection: its next try goes elsewhere.

// silence is how long an address is not chosen that did not answer.
const silence = 30 * time.Second

// maxTurned is how many names are changed for one connection. More that share an address
// have their turn when connections of theirs are not answered.
const maxTurned = 256

// flow is a connection from a sandbox to the real address of a name.
type flow struct{ src, real netip.AddrPort }

// notAnswered takes a packet that begins a connection for the second time. It does not
// wait: what there is no room for comes again.
func (b *bound) notAnswered(packet []byte) {
	proto, to, ok := parse(packet)
	if b == nil || !ok || proto != unix.IPPROTO_TCP {
		return
	}
	f := flow{real: to}
	var rest []byte
	if to.Addr().Is4() {
		f.src, rest = netip.AddrPortFrom(netip.AddrFrom4([4]byte(packet[12:16])), 0), packet[min(len(packet), int(packet[0]&0xf)*4):]
	} else {
		f.src = netip.AddrPortFrom(netip.AddrFrom16([16]byte(packet[8:24])), 0)
		_, rest = transport(packet[6], packet[40:])
	}
	if len(rest) < 4 {
		return
	}
	f.src = netip.AddrPortFrom(f.src.Addr(), binary.BigEndian.Uint16(rest))
	select {
	case b.unheard <- f:
	default:
	}
}

// turn has names stand for addresses that answer, until the sandbox is detached.
func (b *bound) turn() {
	var again <-chan time.Time
	for {
		select {
		case <-b.a.ctx.Done():
			return
		case f := <-b.unheard:
			b.avoid(f)
		case <-again:
			again = nil
			b.forgive()
		}
		b.mu.Lock()
		if again == nil && len(b.silent) > 0 {
			again = time.After(silence / 10)
		}
		b.mu.Unlock()
	}
}

// answering leaves out the addresses that do not answer, if there are others.
func (b *bound) answering(real []netip.Addr) []netip.Addr {
	out := slices.DeleteFunc(slices.Clone(real), func(a netip.Addr) bool { _, is := b.silent[a]; return is })
	if len(out) == 0 {
		return real
	}
	return out
}

// avoid has the names that stand for an address which did not answer stand for others.
func (b *bound) avoid(f flow) {
	to := f.real.Addr()
	c, err := b.a.rules.change()
	if err != nil {
		return
	}
	defer c.close()
	b.mu.Lock()
	defer b.mu.Unlock()
	turned := make(map[dnsname.Name]*name)
	var owns []netip.AddrPort // one of them is where the connection was sent
	for n, is := range b.names {
		others := func(a netip.Addr) bool {
			_, silent := b.silent[a]
			return a != to && a.BitLen() == to.BitLen() && !silent && b.a.policy.Bound(n, "tcp", netip.AddrPortFrom(a, f.real.Port())).Allow
		}
		if !slices.Contains(is.real, to) || !slices.ContainsFunc(is.real, others) {
			continue
		}
		own := is.own.V4
		if to.Is6() {
			own = is.own.V6
		}
		owns = append(owns, netip.AddrPortFrom(own, f.real.Port()))
		if is.leads(to) {
			turned[n] = &name{own: is.own, real: is.real}
		}
		if len(owns) == maxTurned {
			break
		}
	}
	if len(turned) > 0 {
		until, known := b.silent[to]
		if !known {
			until = time.Now().Add(silence)
		}
		b.silent[to] = until
		if b.stands(c, turned) != nil {
			return // the connection stays where it is, and comes again
		}
	}
	b.a.forget(f.src, owns)
}

// leads tells whether connections to the name may go to an address.
func (n *name) leads(to netip.Addr) bool {
	return slices.ContainsFunc(n.is[:], func(s standing) bool {
		return slices.ContainsFunc(s.real, func(e nftables.SetElement) bool { return bytes.Equal(e.Val, to.AsSlice()) })
	})
}

// forgive has the names stand again for addresses that have been left out long enough.
func (b *bound) forgive() {
	c, err := b.a.rules.change()
	if err != nil {
		return
	}
	defer c.close()
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	all := make(map[dnsname.Name]*name)
	for a, until := range b.silent {
		if now.Before(until) {
			continue
		}
		delete(b.silent, a)
		for n, is := range b.names {
			if slices.Contains(is.real, a) {
				all[n] = &name{own: is.own, real: is.real}
			}
		}
	}
	if len(all) > 0 {
		_ = b.stands(c, all) // the next answer of a name server does it, too
	}
}

// Of linux/netfilter/nfnetlink_conntrack.h.
const (
	conntrackDelete = unix.NFNL_SUBSYS_CTNETLINK<<8 | 2 // IPCTNL_MSG_CT_DELETE
	tupleOriginal   = 1                                 // CTA_TUPLE_ORIG
	tupleIP         = 1
	tupleProto      = 2
	ipV4Src         = 1
	ipV6Src         = 3
	protoNumber     = 1
	protoSrcPort    = 2
	protoDstPort    = 3
)

// forget has the kernel forget the TCP connections of the sandbox from src to any of dst,
// as far as there are such. Tuples have to be whole: without one the kernel would forget
// all connections.
func (a *attachment) forget(src netip.AddrPort, dst []netip.AddrPort) {
	if src.Addr() != a.v4 && src.Addr() != a.v6 || len(dst) == 0 {
		return
	}
	s, err := open(unix.NETLINK_NETFILTER)
	if err != nil {
		return
	}
	defer s.close()
	kind := ipV4Src
	if src.Addr().Is6() {
		kind = ipV6Src
	}
	port := func(kind int, p uint16) *nl.RtAttr { return attr(kind, binary.BigEndian.AppendUint16(nil, p)) }
	var rs []*nl.NetlinkRequest
	for _, d := range dst {
		if d.Addr().BitLen() != src.Addr().BitLen() {
			continue
		}
		rs = append(rs, request(conntrackDelete, unix.NLM_F_ACK, &nl.Nfgenmsg{NfgenFamily: uint8(family(src.Addr()))}, nested(tupleOriginal,
			nested(tupleIP, attr(kind, src.Addr().AsSlice()), attr(kind+1, d.Addr().AsSlice())),
			nested(tupleProto, attr(protoNumber, []byte{unix.IPPROTO_TCP}), port(protoSrcPort, src.Port()), port(protoDstPort, d.Port())))))
	}
	ctx, cancel := context.WithTimeout(a.ctx, answerLimit)
	defer cancel()
	_ = s.send(ctx, nil, rs...) // all but one are not there
}
