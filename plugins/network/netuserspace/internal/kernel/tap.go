package kernel

import (
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/plugins/network/netuserspace/internal/exit"
	"github.com/nucleus-runtime/nucleus/plugins/network/netuserspace/internal/inside"
	"github.com/nucleus-runtime/nucleus/plugins/network/netuserspace/internal/packet"
)

// tap is the sandbox's interface, from the other side.
type tap struct{ file *os.File }

const ethernet = 14 // the size of its header

// readTap takes what no socket takes.
func (p *Path) readTap() {
	b := make([]byte, ethernet+inside.MTU)
	for {
		n, err := p.tap.file.Read(b)
		if err != nil {
			return // closed, or the namespace is gone
		}
		if n > ethernet {
			p.fromTap(b[:n])
		}
	}
}

func (p *Path) fromTap(frame []byte) {
	s, ok := packet.Parse(frame[ethernet:])
	if !ok {
		return
	}
	switch {
	case s.First():
		p.first(&s)
	case s.Protocol == unix.IPPROTO_TCP:
		// Of a connection that is bound to the interface, or was.
	case s.Protocol == unix.IPPROTO_ICMP || s.Protocol == unix.IPPROTO_ICMPV6:
		p.ping(&s, frame[:ethernet])
	case s.Dst.Addr().IsMulticast():
		// The kernel's own talk, as it joins groups.
	default:
		name := fmt.Sprint(s.Protocol)
		if s.Protocol == unix.IPPROTO_UDP {
			name = exit.UDP
		}
		_ = p.exit.Refuse(name, netip.AddrPortFrom(s.Dst.Addr(), s.Dst.Port()))
		p.unreachable(s.Whole, s.Src.Addr(), s.Dst.Addr(), unix.EACCES)
	}
}
