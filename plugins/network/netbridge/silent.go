package netbridge

import (
	"context"
	"encoding/binary"
	"net/netip"
	"slices"
	"time"

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
		if again == nil {
			again = time.After(silence / 10)
		}
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
	better := make(map[dnsname.Name]*name)
	for n, is := range b.names {
		others := func(a netip.Addr) bool {
			_, silent := b.silent[a]
			return a != to && a.BitLen() == to.BitLen() && !silent
		}
		if slices.Contains(is.real, to) && slices.ContainsFunc(is.real, others) {
			better[n] = &name{own: is.own, real: is.real}
		}
	}
	if len(better) == 0 {
		return
	}
	if _, known := b.silent[to]; !known {
		b.silent[to] = time.Now().Add(silence)
		if b.stands(c, better) != nil {
			delete(b.silent, to)
			return
		}
	}
	for _, x := range better {
		own := x.own.V4
		if to.Is6() {
			own = x.own.V6
		}
		b.a.forget(f.src, netip.AddrPortFrom(own, f.real.Port()))
	}
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

// forget has the kernel forget a TCP connection of the sandbox, if there is one. The
// tuple has to be whole: without one the kernel would forget all connections.
func (a *attachment) forget(src, dst netip.AddrPort) {
	if src.Addr() != a.v4 && src.Addr() != a.v6 || src.Addr().BitLen() != dst.Addr().BitLen() {
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
	ctx, cancel := context.WithTimeout(a.ctx, answerLimit)
	defer cancel()
	// It may be over, or be another name's.
	_ = s.send(ctx, nil, request(conntrackDelete, unix.NLM_F_ACK, &nl.Nfgenmsg{NfgenFamily: uint8(family(src.Addr()))}, nested(tupleOriginal,
		nested(tupleIP, attr(kind, src.Addr().AsSlice()), attr(kind+1, dst.Addr().AsSlice())),
		nested(tupleProto, attr(protoNumber, []byte{unix.IPPROTO_TCP}), port(protoSrcPort, src.Port()), port(protoDstPort, dst.Port())))))
}
