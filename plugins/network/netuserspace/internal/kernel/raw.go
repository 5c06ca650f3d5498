package kernel

import (
	"errors"
	"net/netip"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/relay"
	"github.com/nucleus-runtime/nucleus/plugins/network/netuserspace/internal/exit"
	"github.com/nucleus-runtime/nucleus/plugins/network/netuserspace/internal/packet"
)

// raw sends packets with whatever source, within the sandbox.
type raw struct{ file *os.File }

// send sends one, or loses it where the sandbox's queues are full.
func (r *raw) send(b []byte, to netip.Addr) error {
	if r == nil {
		return errors.New("no raw socket in this family")
	}
	_, sa := exit.Sockaddr(netip.AddrPortFrom(to, 0))
	return relay.Control(r.file, func(fd int) error { return unix.Sendto(fd, b, unix.MSG_DONTWAIT, sa) })
}

// scratch is for packets that are made and sent.
var scratch = sync.Pool{New: func() any { b := make([]byte, 0, 2048); return &b }}

// answer makes a packet and sends it to the sandbox.
func (p *Path) answer(to netip.Addr, build func([]byte) []byte) {
	b, _ := scratch.Get().(*[]byte)
	*b = build((*b)[:0])
	_ = p.raw[index(to)].send(*b, to) // a network may lose packets
	scratch.Put(b)
}

// unreachable says so to whoever sent a packet.
func (p *Path) unreachable(original []byte, src, dst netip.Addr, errno error) {
	why := packet.Because(errno)
	p.answer(src, func(b []byte) []byte { return packet.Unreachable(b, original, dst, src, why) })
}
