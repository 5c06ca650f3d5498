package kernel

import (
	"container/list"
	"errors"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/plugins/network/netuserspace/internal/exit"
	"github.com/nucleus-runtime/nucleus/plugins/network/netuserspace/internal/inside"
	"github.com/nucleus-runtime/nucleus/plugins/network/netuserspace/internal/packet"
)

// firstBytes is more than a first packet has without data.
const firstBytes = 2 << 10

// pending is a connection whose first packet the plugin has. It has a slot.
type pending struct {
	packet []byte
	done   bool // it is dialled
	limit  *list.Element
	early  int // what was accepted meanwhile, or -1
	dialled
}

// first takes the first packet of a TCP connection. Nothing is answered to it before
// the host's side is there, so that connect tells the truth.
func (p *Path) first(s *packet.Packet) {
	if len(s.Whole) > firstBytes {
		return // it carries data (RFC 7413), and comes again without
	}
	f := flow{s.Src, s.Dst}
	raw, l := p.raw[index(f.dst.Addr())], p.listeners[index(f.dst.Addr())]
	if d, again := p.pending[f]; again { // the sandbox sends it again while it waits
		if d.done {
			_ = raw.send(d.packet, f.dst.Addr())
		}
		return
	}
	if len(p.pending) >= firsts || raw == nil || l == nil {
		return // it comes again
	}
	select {
	case p.slots <- struct{}{}:
	default:
		// There is no room to connect. To say no takes none.
		if p.exit.Quick(exit.TCP, f.dst) != nil {
			p.prohibit(slices.Clone(s.Whole), f, unix.EACCES)
		}
		return
	}
	s.SetTTL(inside.SentTTL)
	d := &pending{packet: slices.Clone(s.Whole), early: -1}
	p.pending[f] = d
	p.dial(f.dst, func(got dialled, err error) {
		switch {
		case err != nil && d.early < 0:
			p.abandon(f)
			p.refuse(d.packet, f, err)
			return
		case err != nil:
			p.abandon(f)
			reset(d.early)
			return
		case d.early >= 0:
			p.settle(f, d)
			p.join(d.early, got.fd, got.count)
			return
		}
		d.done, d.dialled = true, got
		_ = raw.send(d.packet, f.dst.Addr()) // if it is lost, it comes again
		// The sandbox's side of it is over in one go: what can be accepted here is not
		// waited for.
		l.accept()
		if p.pending[f] == d {
			d.limit = p.loop.later(func() { p.expire(f, d) })
		}
	})
}

// settle is for a connection that has both its ends.
func (p *Path) settle(f flow, d *pending) {
	delete(p.pending, f)
	p.loop.callOff(d.limit)
}

func (p *Path) abandon(f flow) {
	delete(p.pending, f)
	p.giveBack()
}

// expire drops a connection whose sandbox's end has not come.
func (p *Path) expire(f flow, d *pending) {
	p.abandon(f)
	reset(d.fd)
}

// refuse answers a first packet with what came of the dial.
func (p *Path) refuse(first []byte, f flow, err error) {
	errno := exit.Errno(err)
	switch {
	case errors.Is(err, exit.ErrRefused):
		errno = unix.EACCES
	case errno == unix.ECONNREFUSED:
		if s, ok := packet.Parse(first); ok {
			p.answer(f.src.Addr(), func(b []byte) []byte { return packet.Reset(b, &s) })
		}
		return
	}
	p.prohibit(first, f, errno)
}

// prohibit tells a program that is connecting that it cannot. first is kept.
func (p *Path) prohibit(first []byte, f flow, errno error) {
	packet.Insist(func() { p.unreachable(first, f.src.Addr(), f.dst.Addr(), errno) })
}
