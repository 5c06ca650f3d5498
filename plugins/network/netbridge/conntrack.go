package netbridge

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Of linux/netfilter/nfnetlink_conntrack.h.
const (
	ctaTupleOrig     = 1
	ctaTupleReply    = 2
	ctaTupleIP       = 1
	ctaIPv4Src       = 1
	ctaIPv6Src       = 3
	ctaFilter        = 25
	ctaFilterOrig    = 1
	ctaFilterReply   = 2
	ctaFilterSrcBit  = 1 << 0 // CTA_FILTER_F_CTA_IP_SRC
	ctMessageGet     = unix.NFNL_SUBSYS_CTNETLINK<<8 | 1
	ctMessageDelete  = unix.NFNL_SUBSYS_CTNETLINK<<8 | 2
	nfgenmsgSize     = 4
	firstAttrAfterNL = unix.SizeofNlMsghdr + nfgenmsgSize
)

// forget removes the flows that an address has begun or answered. Those of the sandbox
// that had it before are established, and would pass whatever the next one's policy says.
func forget(ctx context.Context, addresses ...netip.Addr) error {
	s, err := open(unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	defer s.close()
	for _, a := range addresses {
		for _, side := range [][2]int{{ctaTupleOrig, ctaFilterOrig}, {ctaTupleReply, ctaFilterReply}} {
			if err := s.forget(ctx, a, side[0], side[1]); err != nil {
				return fmt.Errorf("removing the earlier flows of %s: %w", a, err)
			}
		}
	}
	return nil
}

// forget has the kernel choose the flows, by the source of one of their directions. The
// filter is of Linux 5.8.
func (s socket) forget(ctx context.Context, a netip.Addr, tuple, side int) error {
	source := ctaIPv4Src
	if a.Is6() {
		source = ctaIPv6Src
	}
	head := &nl.Nfgenmsg{NfgenFamily: uint8(family(a))}
	var found [][]byte
	err := s.send(ctx, func(m []byte) {
		if len(m) > firstAttrAfterNL {
			found = append(found, append([]byte(nil), m[firstAttrAfterNL:]...))
		}
	}, request(ctMessageGet, unix.NLM_F_DUMP, head,
		nested(tuple, nested(ctaTupleIP, attr(source, a.AsSlice()))), nested(ctaFilter, number32(side, ctaFilterSrcBit))))
	if err != nil {
		return err
	}
	for _, flow := range found {
		which := tupleOf(flow)
		if which == nil {
			continue
		}
		err := s.send(ctx, nil, request(ctMessageDelete, unix.NLM_F_ACK, head, attr(ctaTupleOrig|unix.NLA_F_NESTED, which)))
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return nil
}

// tupleOf finds the tuple of a flow's first direction among its attributes.
func tupleOf(m []byte) []byte {
	for len(m) >= unix.SizeofNlAttr {
		size := int(binary.NativeEndian.Uint16(m))
		if size < unix.SizeofNlAttr || size > len(m) {
			return nil
		}
		if binary.NativeEndian.Uint16(m[2:])&^unix.NLA_F_NESTED == ctaTupleOrig {
			return m[unix.SizeofNlAttr:size]
		}
		m = m[min(len(m), (size+3)&^3):]
	}
	return nil
}
