package kernel

import (
	"container/list"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/ledger"
	"github.com/nucleus-runtime/nucleus/plugins/network/netuserspace/internal/exit"
)

// dialled is the host's side of a connection.
type dialled struct {
	fd    int
	count *ledger.Flow
}

// dial connects to where a flow goes, and has then done called in the loop, at once if
// nobody has to be waited for.
func (p *Path) dial(dst netip.AddrPort, done func(dialled, error)) {
	t, known, err := p.exit.Ready(exit.TCP, dst)
	if err != nil {
		done(dialled{}, err)
		return
	}
	if !known || len(t.Addrs) != 1 {
		p.ask(dst, done)
		return
	}
	fd, connected, err := exit.Begin(t.Addrs[0])
	switch {
	case err != nil:
		done(dialled{}, err)
	case connected:
		done(dialled{fd, p.exit.Opened(t)}, nil)
	default:
		(&connecting{path: p, target: t, fd: fd, done: done}).wait()
	}
}

// ask is for what takes its time: a name to be looked up, more than one address, or a job
// of the stack.
func (p *Path) ask(dst netip.AddrPort, done func(dialled, error)) {
	p.wg.Go(func() {
		conn, count, err := p.exit.DialTCP(p.ctx, dst)
		fd := -1
		if err == nil {
			fd, err = takeOver(conn)
		}
		p.loop.post(func() { done(dialled{fd, count}, err) })
	})
}

// connecting is a socket that is being connected to its target's only address.
type connecting struct {
	path   *Path
	target exit.Target
	fd     int
	limit  *list.Element
	done   func(dialled, error)
}

func (c *connecting) wait() {
	if err := c.path.loop.watch(c.fd, unix.EPOLLOUT, c); err != nil {
		c.end(err)
		return
	}
	c.limit = c.path.loop.later(func() { c.end(unix.ETIMEDOUT) })
}

func (c *connecting) ready(int, uint32) {
	switch connected, err := exit.Proceed(c.fd, c.target.Addrs[0]); {
	case err != nil:
		c.end(err)
	case connected:
		c.path.loop.callOff(c.limit)
		c.path.loop.forget(c.fd)
		c.done(dialled{c.fd, c.path.exit.Opened(c.target)}, nil)
	}
}

func (c *connecting) end(err error) {
	c.path.loop.callOff(c.limit)
	c.path.loop.close(c.fd)
	c.done(dialled{}, err)
}

func (c *connecting) drop() { c.end(c.path.ctx.Err()) }
