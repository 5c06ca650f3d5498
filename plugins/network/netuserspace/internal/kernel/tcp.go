package kernel

import (
	"net"
	"net/netip"
	"time"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/ledger"
	"github.com/nucleus-runtime/nucleus/plugins/network/internal/relay"
)

// accept takes connections, whose local address is the one that was meant.
func (p *Path) accept(l *net.TCPListener) {
	for {
		c, err := l.AcceptTCP()
		if err != nil {
			if p.ctx.Err() != nil {
				return
			}
			time.Sleep(10 * time.Millisecond) // out of descriptors or memory
			continue
		}
		f := flow{addrPort(c.RemoteAddr()), addrPort(c.LocalAddr())}
		if d := p.claim(f); d != nil {
			p.wg.Go(func() { p.join(c, d.conn, d.flow) })
			continue
		}
		select {
		case p.slots <- struct{}{}:
			p.wg.Go(func() { p.dial(c, f) })
		default:
			relay.Reset(c)
		}
	}
}

func addrPort(a net.Addr) netip.AddrPort {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := t.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
}

// dial is for a connection that was accepted before anything was known: there is no tap
// device, or the program has the TTL of those that were. It learns from a reset what
// others learn from connect.
func (p *Path) dial(c *net.TCPConn, f flow) {
	if p.local(f.dst.Addr()) || !p.track(c) {
		relay.Reset(c) // the listener's own address
		<-p.slots
		return
	}
	out, count, err := p.exit.DialTCP(p.ctx, f.dst)
	p.untrack(c)
	if err != nil {
		relay.Reset(c)
		<-p.slots
		return
	}
	p.join(c, out, count)
}

// join moves bytes until both ends are done. It has a slot, and gives it back.
func (p *Path) join(in, out *net.TCPConn, count *ledger.Flow) {
	defer func() { <-p.slots }()
	if !p.track(in, out) {
		in.Close()
		out.Close()
		return
	}
	defer p.untrack(in, out)
	relay.Run(in, out, count.Add)
}
