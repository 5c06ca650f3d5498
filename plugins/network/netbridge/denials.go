package netbridge

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/sdk/network"
)

// Of linux/netfilter/nfnetlink_log.h.
const (
	nflogConfig     = unix.NFNL_SUBSYS_ULOG<<8 | 1
	nflogPacket     = unix.NFNL_SUBSYS_ULOG << 8
	nflogCfgCommand = 1
	nflogCfgMode    = 2
	nflogCfgTimeout = 4
	nflogCfgQueue   = 5
	nflogBind       = 1
	nflogCopyPacket = 2
	nflogPayload    = 9
	nflogPrefix     = 10

	nflogHeader = unix.SizeofNlMsghdr + 4 // with nfgenmsg

	// firstGroup leaves those alone that people use by hand.
	firstGroup = 0x4000
	groupTries = 64
)

// denials hears of the packets that a sandbox's rules refuse. Its group is one that
// nobody has: the kernel gives a group to one socket alone.
type denials struct {
	group  uint16
	file   *os.File
	wg     sync.WaitGroup
	logged atomic.Uint64
}

func listenDenials(a *attachment) (*denials, error) {
	s, err := open(unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, err
	}
	for range groupTries {
		group := uint16(firstGroup + rand.N(1<<16-firstGroup))
		err = s.bindGroup(a.ctx, group)
		if err == nil {
			if err = unix.SetNonblock(s.fd, true); err != nil {
				break
			}
			return &denials{group: group, file: os.NewFile(uintptr(s.fd), "nflog")}, nil
		}
		if !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.EEXIST) {
			break
		}
	}
	s.close()
	return nil, fmt.Errorf("listening for refused packets: %w", err)
}

func (s socket) bindGroup(ctx context.Context, group uint16) error {
	to := &nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC, ResId: nl.Swap16(group)}
	mode := append(nl.BEUint32Attr(snap), nflogCopyPacket, 0)
	if err := s.send(ctx, nil, request(nflogConfig, unix.NLM_F_ACK, to, attr(nflogCfgCommand, []byte{nflogBind}))); err != nil {
		return err
	}
	return s.send(ctx, nil, request(nflogConfig, unix.NLM_F_ACK, to, attr(nflogCfgMode, mode),
		attr(nflogCfgQueue, nl.BEUint32Attr(1)), attr(nflogCfgTimeout, nl.BEUint32Attr(1))))
}

func (d *denials) start(a *attachment) {
	d.wg.Go(func() {
		buf := make([]byte, 64<<10)
		for {
			n, err := d.file.Read(buf)
			switch {
			case errors.Is(err, unix.ENOBUFS):
				continue // some were lost: the counter has them
			case err != nil:
				return
			}
			for m := buf[:n]; len(m) >= nflogHeader; {
				size := int(binary.NativeEndian.Uint32(m))
				if size < nflogHeader || size > len(m) {
					break
				}
				if binary.NativeEndian.Uint16(m[4:]) == nflogPacket {
					d.packet(a, m[nflogHeader:size])
				}
				m = m[min(len(m), (size+3)&^3):]
			}
		}
	})
}

func (d *denials) close() {
	_ = d.file.Close()
	d.wg.Wait()
}

func (d *denials) packet(a *attachment, m []byte) {
	payload, prefix := attributeOf(m, nflogPayload), attributeOf(m, nflogPrefix)
	// Rules of a process that had the group before this one may still be there.
	many := string(prefix) == a.name()+manySuffix+"\x00"
	if string(prefix) == a.name()+silentSuffix+"\x00" {
		a.names.notAnswered(payload)
		return
	}
	if !many && string(prefix) != a.name()+"\x00" {
		return
	}
	if proto, dst, ok := parse(payload); ok {
		d.logged.Add(1)
		out := a.judge(proto, dst)
		if many {
			out.Reason = network.ReasonLimit
		}
		a.ledger.Deny(out)
	}
}

// parse reads where a packet was to go.
func parse(p []byte) (proto uint8, dst netip.AddrPort, ok bool) {
	if len(p) < 20 {
		return 0, dst, false
	}
	var a netip.Addr
	var rest []byte
	switch p[0] >> 4 {
	case 4:
		a = netip.AddrFrom4([4]byte(p[16:20]))
		proto, rest = p[9], p[min(len(p), int(p[0]&0xf)*4):]
		if binary.BigEndian.Uint16(p[6:])&0x1fff != 0 {
			rest = nil // a fragment without the header
		}
	case 6:
		if len(p) < 40 {
			return 0, dst, false
		}
		a = netip.AddrFrom16([16]byte(p[24:40]))
		proto, rest = transport(p[6], p[40:])
	default:
		return 0, dst, false
	}
	var port uint16
	if (proto == unix.IPPROTO_TCP || proto == unix.IPPROTO_UDP) && len(rest) >= 4 {
		port = binary.BigEndian.Uint16(rest[2:])
	}
	return proto, netip.AddrPortFrom(a, port), true
}

// transport skips extension headers of IPv6.
func transport(next uint8, rest []byte) (uint8, []byte) {
	for len(rest) >= 8 {
		var size int
		switch next {
		case unix.IPPROTO_HOPOPTS, unix.IPPROTO_ROUTING, unix.IPPROTO_DSTOPTS:
			size = 8 + 8*int(rest[1])
		case unix.IPPROTO_FRAGMENT:
			size = 8
			if binary.BigEndian.Uint16(rest[2:])>>3 != 0 {
				return rest[0], nil
			}
		default:
			return next, rest
		}
		next, rest = rest[0], rest[min(len(rest), size):]
	}
	return next, rest
}

func protocolName(p uint8) string {
	switch p {
	case unix.IPPROTO_TCP:
		return "tcp"
	case unix.IPPROTO_UDP:
		return "udp"
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		return "icmp"
	default:
		return strconv.Itoa(int(p))
	}
}

// judge says why the rules have refused, in the policy's words.
func (a *attachment) judge(p uint8, dst netip.AddrPort) network.Denial {
	proto := protocolName(p)
	out := network.Denial{Protocol: proto, Dst: dst, Rule: -1, Reason: network.ReasonUnbound}
	if synthetic4.Contains(dst.Addr()) || synthetic6.Contains(dst.Addr()) {
		if n, ok := a.names.of(dst.Addr()); ok {
			v := a.names.verdict(n, proto, dst)
			out.Name, out.Rule, out.Reason = string(n), v.Rule, v.Reason
		}
		return out
	}
	if n, ok := a.jobAt(dst.Addr()); ok {
		v := a.policy.Job(n, proto, dst.Port())
		if out.Name, out.Rule, out.Reason = string(n), v.Rule, v.Reason; v.Allow {
			out.Reason = network.ReasonUnresolved // it has come since
		}
		return out
	}
	v := a.policy.Addr(proto, dst)
	out.Rule, out.Reason = v.Rule, v.Reason
	if v.Allow {
		// The host itself, or another sandbox: no rule reaches those.
		out.Rule, out.Reason = -1, network.ReasonHost
	}
	return out
}
