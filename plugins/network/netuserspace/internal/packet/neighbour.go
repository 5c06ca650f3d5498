package packet

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// MAC is a hardware address of Ethernet.
type MAC [6]byte

const (
	sizeARP = 28
	// arpHead is Ethernet and IPv4, and the sizes of their addresses.
	arpHead = "\x00\x01\x08\x00\x06\x04"

	arpRequest, arpReply = 1, 2
)

// ARPReply answers who asks for an address of IPv4, which is at mac (RFC 826). It takes and
// gives what follows Ethernet's header; nil is for all that does not ask for it.
func ARPReply(b []byte, address netip.Addr, mac MAC) []byte {
	if len(b) < sizeARP || string(b[:6]) != arpHead || binary.BigEndian.Uint16(b[6:]) != arpRequest || netip.AddrFrom4([4]byte(b[24:])) != address {
		return nil
	}
	asker := b[8:18]
	out := binary.BigEndian.AppendUint16([]byte(arpHead), arpReply)
	out = append(append(out, mac[:]...), address.AsSlice()...)
	return append(out, asker...)
}

const (
	solicitation, advertisement = 135, 136
	sizeNeighbour               = 24 // of either, without options
	// A packet with less has been forwarded, and counts for nothing (RFC 4861).
	hopLimit = 255
	// isRouter, isAnswer and replaces are flags of an advertisement.
	isRouter, isAnswer, replaces = 0x80, 0x40, 0x20
	// targetLink is the option that has the hardware address, of so many eights of bytes.
	targetLink, targetLinkSize = 2, 1
)

// Advertisement answers who asks for an address of IPv6, which is a router's and at mac
// (RFC 4861, 7.2). Nil is for all that does not ask for it, and for who wants to know
// whether it is free: that is a sandbox that gives itself another address than it has.
func Advertisement(p *Packet, address netip.Addr, mac MAC) []byte {
	b := p.Payload
	if p.Protocol != unix.IPPROTO_ICMPV6 || !p.Dst.Addr().Is6() || p.Whole[7] != hopLimit ||
		len(b) < sizeNeighbour || b[0] != solicitation || b[1] != 0 || netip.AddrFrom16([16]byte(b[8:])) != address || p.Src.Addr().IsUnspecified() {
		return nil
	}
	n := sizeNeighbour + 8*targetLinkSize
	out := head(nil, unix.IPPROTO_ICMPV6, address, p.Src.Addr(), n)
	out[7] = hopLimit
	start := len(out)
	out = append(out, advertisement, 0, 0, 0, isRouter|isAnswer|replaces, 0, 0, 0)
	out = append(append(out, address.AsSlice()...), targetLink, targetLinkSize)
	out = append(out, mac[:]...)
	binary.BigEndian.PutUint16(out[start+2:], ^sum(out[start:], pseudo(unix.IPPROTO_ICMPV6, address, p.Src.Addr(), n)))
	return out
}
