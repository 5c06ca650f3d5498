package kernel

import (
	"errors"
	"net"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/ledger"
	"github.com/nucleus-runtime/nucleus/plugins/network/internal/relay"
	"github.com/nucleus-runtime/nucleus/plugins/network/netuserspace/internal/exit"
	"github.com/nucleus-runtime/nucleus/plugins/network/netuserspace/internal/inside"
	"github.com/nucleus-runtime/nucleus/plugins/network/netuserspace/internal/packet"
)

// claimed is how long a connection that was dialled waits for the sandbox's end.
const claimed = 10 * time.Second

// firstBytes is more than a first packet has without data.
const firstBytes = 2 << 10

// pending is a connection whose first packet the plugin has.
type pending struct {
	packet []byte
	conn   *net.TCPConn // nil while it is dialled
	flow   *ledger.Flow
	timer  *time.Timer
}

// drop resets the far end of a connection that nobody claims.
func (d *pending) drop() {
	if d.conn != nil {
		relay.Reset(d.conn)
	}
	if d.timer != nil {
		d.timer.Stop()
	}
}

// first takes the first packet of a TCP connection. Nothing is answered to it before
// the host's side is there, so that connect tells the truth.
func (p *Path) first(s *packet.Packet) {
	if len(s.Whole) > firstBytes {
		return // it carries data (RFC 7413), and comes again without
	}
	f := flow{s.Src, s.Dst}
	p.mu.Lock()
	d, again := p.pending[f]
	if again { // the sandbox sends it again while it waits
		b := d.packet
		ready := d.conn != nil
		p.mu.Unlock()
		if ready {
			_ = p.raw[index(f.dst.Addr())].send(b, f.dst.Addr())
		}
		return
	}
	full := len(p.pending) >= firsts || p.closed
	p.mu.Unlock()
	if full || p.raw[index(f.dst.Addr())] == nil {
		return // it comes again
	}
	if err := p.exit.Quick(exit.TCP, f.dst); err != nil {
		p.unreachable(s.Whole, f.src.Addr(), f.dst.Addr(), unix.EACCES)
		return
	}
	select {
	case p.slots <- struct{}{}:
	default:
		return
	}
	s.SetTTL(inside.SentTTL)
	d = &pending{packet: slices.Clone(s.Whole)}
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		<-p.slots
		return
	}
	p.pending[f] = d
	p.wg.Add(1)
	p.mu.Unlock()
	go func() {
		defer p.wg.Done()
		p.dialFirst(f, d)
	}()
}

func (p *Path) dialFirst(f flow, d *pending) {
	conn, count, err := p.exit.DialTCP(p.ctx, f.dst)
	p.mu.Lock()
	if err != nil || p.closed {
		delete(p.pending, f)
		p.mu.Unlock()
		<-p.slots
		if err == nil {
			conn.Close()
		} else {
			p.refuse(d.packet, f, err)
		}
		return
	}
	d.conn, d.flow = conn, count
	d.timer = time.AfterFunc(claimed, func() { p.forget(f, d) })
	p.mu.Unlock()
	_ = p.raw[index(f.dst.Addr())].send(d.packet, f.dst.Addr()) // it comes again
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
	p.unreachable(first, f.src.Addr(), f.dst.Addr(), errno)
}

// forget drops a connection whose sandbox's end has not come.
func (p *Path) forget(f flow, d *pending) {
	p.mu.Lock()
	gone := p.pending[f] != d
	if !gone {
		delete(p.pending, f)
	}
	p.mu.Unlock()
	if !gone {
		d.drop()
		<-p.slots
	}
}

// claim gives what was dialled for a connection, with its slot.
func (p *Path) claim(f flow) *pending {
	p.mu.Lock()
	defer p.mu.Unlock()
	d := p.pending[f]
	if d == nil || d.conn == nil {
		return nil
	}
	delete(p.pending, f)
	d.timer.Stop()
	return d
}
