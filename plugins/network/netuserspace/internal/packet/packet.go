// Package packet owns the few packets that the plugin reads and writes itself: it
// takes headers apart, and makes datagrams and the errors that a network answers with.
// What it reads is the sandbox's, and may be anything.
package packet

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Packet is one of IPv4 or IPv6, taken apart.
type Packet struct {
	Protocol uint8
	Src, Dst netip.AddrPort // ports are 0 where the protocol has none
	Whole    []byte         // with all headers
	Payload  []byte         // of IP
}

const (
	size4   = 20
	size6   = 40
	sizeUDP = 8
	sizeTCP = 20
)

// Parse takes one apart. Of fragments and of what has extension headers it makes
// nothing: the kernel of a sandbox sends none of its own accord.
func Parse(b []byte) (Packet, bool) {
	p := Packet{}
	if len(b) == 0 {
		return p, false
	}
	var src, dst netip.Addr
	switch b[0] >> 4 {
	case 4:
		if len(b) < size4 {
			return p, false
		}
		header, total := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
		if header < size4 || total < header || total > len(b) || binary.BigEndian.Uint16(b[6:])&0x3fff != 0 {
			return p, false
		}
		src, dst = netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:]))
		p.Protocol, p.Whole, p.Payload = b[9], b[:total], b[header:total]
	case 6:
		if len(b) < size6 {
			return p, false
		}
		total := size6 + int(binary.BigEndian.Uint16(b[4:]))
		if total > len(b) {
			return p, false
		}
		src, dst = netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:]))
		p.Protocol, p.Whole, p.Payload = b[6], b[:total], b[size6:total]
	default:
		return p, false
	}
	var sport, dport uint16
	if (p.Protocol == unix.IPPROTO_TCP && len(p.Payload) >= sizeTCP) || (p.Protocol == unix.IPPROTO_UDP && len(p.Payload) >= sizeUDP) {
		sport, dport = binary.BigEndian.Uint16(p.Payload), binary.BigEndian.Uint16(p.Payload[2:])
	}
	p.Src, p.Dst = netip.AddrPortFrom(src, sport), netip.AddrPortFrom(dst, dport)
	return p, true
}

// The flags of TCP.
const (
	fin = 1 << iota
	syn
	rst
	_
	ack
)

// First tells whether it is the first of a TCP connection.
func (p *Packet) First() bool {
	return p.Protocol == unix.IPPROTO_TCP && len(p.Payload) >= sizeTCP && p.Payload[13]&(fin|syn|rst|ack) == syn
}

// SetTTL sets it, and the hop limit of IPv6. The kernel makes the header's checksum
// where it sends the packet.
func (p *Packet) SetTTL(n uint8) {
	if p.Dst.Addr().Is4() {
		p.Whole[8] = n
	} else {
		p.Whole[7] = n
	}
}

// head appends an IP header for a payload of n bytes.
func head(b []byte, protocol uint8, src, dst netip.Addr, n int) []byte {
	if dst.Is4() {
		start := len(b)
		b = append(b, 0x45, 0)
		b = binary.BigEndian.AppendUint16(b, uint16(size4+n))
		b = append(b, 0, 0, 0x40, 0, 64, protocol, 0, 0)
		b = append(append(b, src.AsSlice()...), dst.AsSlice()...)
		binary.BigEndian.PutUint16(b[start+10:], ^sum(b[start:], 0))
		return b
	}
	b = append(b, 0x60, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(n))
	b = append(b, protocol, 64)
	return append(append(b, src.AsSlice()...), dst.AsSlice()...)
}

// sum is the Internet checksum's (RFC 1071), not yet complemented.
func sum(b []byte, initial uint32) uint16 {
	s := uint64(initial)
	for len(b) >= 8 {
		v := binary.BigEndian.Uint64(b)
		s += v>>32 + v&0xffffffff
		b = b[8:]
	}
	for len(b) >= 2 {
		s += uint64(binary.BigEndian.Uint16(b))
		b = b[2:]
	}
	if len(b) == 1 {
		s += uint64(b[0]) << 8
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

// pseudo is the sum over the header that checksums of transports cover, too.
func pseudo(protocol uint8, src, dst netip.Addr, n int) uint32 {
	s := uint32(protocol) + uint32(n)&0xffff + uint32(n)>>16
	return s + uint32(sum(src.AsSlice(), 0)) + uint32(sum(dst.AsSlice(), 0))
}

// UDP appends a datagram.
func UDP(b []byte, src, dst netip.AddrPort, data []byte) []byte {
	n := sizeUDP + len(data)
	b = head(b, unix.IPPROTO_UDP, src.Addr(), dst.Addr(), n)
	start := len(b)
	b = binary.BigEndian.AppendUint16(b, src.Port())
	b = binary.BigEndian.AppendUint16(b, dst.Port())
	b = binary.BigEndian.AppendUint16(b, uint16(n))
	b = append(append(b, 0, 0), data...)
	c := ^sum(b[start:], pseudo(unix.IPPROTO_UDP, src.Addr(), dst.Addr(), n))
	if c == 0 {
		c = 0xffff // 0 is none
	}
	binary.BigEndian.PutUint16(b[start+6:], c)
	return b
}

// MaxUDP is what a datagram may carry.
const MaxUDP = 65535 - size4 - sizeUDP

// Reset appends the answer of a host where nobody listens.
func Reset(b []byte, first *Packet) []byte {
	src, dst := first.Dst, first.Src
	b = head(b, unix.IPPROTO_TCP, src.Addr(), dst.Addr(), sizeTCP)
	start := len(b)
	b = binary.BigEndian.AppendUint16(b, src.Port())
	b = binary.BigEndian.AppendUint16(b, dst.Port())
	b = binary.BigEndian.AppendUint32(b, 0)
	b = binary.BigEndian.AppendUint32(b, binary.BigEndian.Uint32(first.Payload[4:])+1)
	b = append(b, sizeTCP/4<<4, rst|ack, 0, 0, 0, 0, 0, 0)
	binary.BigEndian.PutUint16(b[start+16:], ^sum(b[start:], pseudo(unix.IPPROTO_TCP, src.Addr(), dst.Addr(), sizeTCP)))
	return b
}

// Why says why a destination is not reached.
type Why uint8

// The reasons, with what a program gets for them.
const (
	Prohibited Why = iota // EHOSTUNREACH; EACCES over IPv6
	NoNetwork             // ENETUNREACH
	NoHost                // EHOSTUNREACH
	NoPort                // ECONNREFUSED
)

// Because gives the reason for what the host's side came to.
func Because(err error) Why {
	switch {
	case errors.Is(err, unix.ENETUNREACH):
		return NoNetwork
	case errors.Is(err, unix.ECONNREFUSED):
		return NoPort
	case errors.Is(err, unix.EACCES):
		return Prohibited
	default:
		return NoHost
	}
}

// Codes of ICMP's and ICMPv6's message that a destination is not reached.
var codes4, codes6 = [...]uint8{13, 0, 1, 3}, [...]uint8{1, 0, 3, 4}

// Unreachable appends the answer of a network that does not carry the packet.
func Unreachable(b, original []byte, src, dst netip.Addr, why Why) []byte {
	protocol, kind, code, quote := uint8(unix.IPPROTO_ICMP), uint8(3), codes4[why], size4+sizeUDP
	if dst.Is6() {
		protocol, kind, code, quote = unix.IPPROTO_ICMPV6, 1, codes6[why], size6+sizeUDP
	}
	original = original[:min(len(original), quote)]
	n := 8 + len(original)
	b = head(b, protocol, src, dst, n)
	start := len(b)
	b = append(append(b, kind, code, 0, 0, 0, 0, 0, 0), original...)
	var initial uint32
	if dst.Is6() {
		initial = pseudo(protocol, src, dst, n)
	}
	binary.BigEndian.PutUint16(b[start+2:], ^sum(b[start:], initial))
	return b
}

// The types of ICMP and ICMPv6.
const (
	echo4, reply4 = 8, 0
	echo6, reply6 = 128, 129
)

// Echo gives the body of a ping: identifier, number, data.
func (p *Packet) Echo() (body []byte, ok bool) {
	icmp := p.Protocol == unix.IPPROTO_ICMP && p.Dst.Addr().Is4() && len(p.Payload) >= 8 && p.Payload[0] == echo4
	icmp6 := p.Protocol == unix.IPPROTO_ICMPV6 && p.Dst.Addr().Is6() && len(p.Payload) >= 8 && p.Payload[0] == echo6
	if !icmp && !icmp6 {
		return nil, false
	}
	return p.Payload[4:], true
}

// EchoReply appends the answer to a ping.
func EchoReply(b []byte, src, dst netip.Addr, body []byte) []byte {
	protocol, kind, n := uint8(unix.IPPROTO_ICMP), uint8(reply4), 4+len(body)
	var initial uint32
	if dst.Is6() {
		protocol, kind = unix.IPPROTO_ICMPV6, reply6
		initial = pseudo(protocol, src, dst, n)
	}
	b = head(b, protocol, src, dst, n)
	start := len(b)
	b = append(append(b, kind, 0, 0, 0), body...)
	binary.BigEndian.PutUint16(b[start+2:], ^sum(b[start:], initial))
	return b
}
