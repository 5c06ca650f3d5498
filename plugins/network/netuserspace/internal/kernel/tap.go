package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/plugins/network/netuserspace/internal/exit"
	"github.com/nucleus-runtime/nucleus/plugins/network/netuserspace/internal/packet"
	"github.com/nucleus-runtime/nucleus/plugins/network/netuserspace/internal/ping"
)

// tap is the sandbox's interface, from the other side.
type tap struct {
	file  *os.File
	pings *ping.Pings
	head  atomic.Pointer[[ethernet]byte] // of frames to the sandbox
}

// give sends a packet through the interface, to which a program's socket may be bound.
func (t *tap) give(b []byte) {
	head := t.head.Load()
	if head == nil {
		return
	}
	frame := make([]byte, 0, ethernet+len(b))
	frame = append(append(frame, head[:]...), b...)
	if b[0]>>4 == 6 {
		binary.BigEndian.PutUint16(frame[12:], unix.ETH_P_IPV6)
	} else {
		binary.BigEndian.PutUint16(frame[12:], unix.ETH_P_IP)
	}
	_, _ = t.file.Write(frame)
}

const ethernet = 14 // the size of its header

// tapReader takes what no socket takes.
type tapReader struct {
	path *Path
	fd   int
}

func (t tapReader) ready(int, uint32) {
	b := t.path.loop.pages
	switch n, err := unix.Read(t.fd, b); {
	case err == nil:
		if n > ethernet {
			t.path.fromTap(b[:n])
		}
	case !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR):
		t.path.loop.forget(t.fd) // the namespace is gone
	}
}

func (tapReader) drop() {} // the path leaves it

func (p *Path) fromTap(frame []byte) {
	s, ok := packet.Parse(frame[ethernet:])
	if !ok {
		return
	}
	switch {
	case s.First() && p.listeners[index(s.Dst.Addr())] != nil:
		p.first(&s)
	case s.Protocol == unix.IPPROTO_TCP && !s.First():
		// Of a connection that is bound to the interface, or was.
	case s.Protocol == unix.IPPROTO_ICMP || s.Protocol == unix.IPPROTO_ICMPV6:
		if p.tap.head.Load() == nil {
			// Without ARP the interface sends to its own address, which is that to send to.
			head := [ethernet]byte(frame)
			p.tap.head.Store(&head)
		}
		p.tap.pings.Take(&s)
	case s.Dst.Addr().IsMulticast():
		// The kernel's own talk, as it joins groups.
	default:
		name := fmt.Sprint(s.Protocol)
		switch s.Protocol {
		case unix.IPPROTO_TCP: // in a family without listeners, as UDP may be
			name = exit.TCP
		case unix.IPPROTO_UDP:
			name = exit.UDP
		}
		_ = p.exit.Refuse(name, netip.AddrPortFrom(s.Dst.Addr(), s.Dst.Port()))
		if s.First() {
			p.prohibit(slices.Clone(s.Whole), flow{s.Src, s.Dst}, unix.EACCES)
			return
		}
		p.unreachable(s.Whole, s.Src.Addr(), s.Dst.Addr(), unix.EACCES)
	}
}
