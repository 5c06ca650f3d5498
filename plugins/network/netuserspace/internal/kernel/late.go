package kernel

import (
	"time"

	"github.com/nucleus-runtime/nucleus/plugins/network/netuserspace/internal/exit"
)

// late is for a connection that was accepted before anything was known of it: another one
// to the same place has just been (see package inside), or there is no tap device, or the
// program has the TTL of those that were. It learns from a reset what others learn from
// connect.
func (p *Path) late(fd int, f flow) {
	if p.local(f.dst.Addr()) { // the listener's own address
		reset(fd)
		return
	}
	if len(p.queue.waiters) == 0 {
		select {
		case p.slots <- struct{}{}:
			p.dialLate(fd, f)
			return
		default:
		}
	}
	if p.exit.Quick(exit.TCP, f.dst) != nil { // to say no takes no slot
		reset(fd)
		return
	}
	p.queue.add(p, waiter{fd: fd, flow: f, until: time.Now().Add(patience)})
}

// dialLate has a slot.
func (p *Path) dialLate(fd int, f flow) {
	p.dial(f.dst, func(d dialled, err error) {
		if err != nil {
			reset(fd)
			p.giveBack()
			return
		}
		p.join(fd, d.fd, d.count)
	})
}

// giveBack gives a slot back, in the loop.
func (p *Path) giveBack() {
	<-p.slots
	p.queue.serve(p)
}

// waiter is a late connection without a slot.
type waiter struct {
	fd int
	flow
	until time.Time
}

// queue are those that wait, the first one first. Others wait at the tap, where they take
// no descriptor, and so of these there may be fewer.
type queue struct {
	waiters []waiter
	most    int
	timed   bool // it is served soon
}

// interval is when it is looked again whether there is a slot that was given back
// elsewhere.
const interval = 10 * time.Millisecond

func (q *queue) add(p *Path, w waiter) {
	if len(q.waiters) >= q.most {
		reset(w.fd)
		return
	}
	q.waiters = append(q.waiters, w)
	q.again(p)
}

func (q *queue) again(p *Path) {
	if q.timed {
		return
	}
	q.timed = true
	time.AfterFunc(interval, func() {
		p.loop.post(func() {
			q.timed = false
			q.serve(p)
		})
	})
}

func (q *queue) serve(p *Path) {
	for len(q.waiters) > 0 && p.ctx.Err() == nil { // else drop has them
		w := q.waiters[0]
		select {
		case p.slots <- struct{}{}:
			q.waiters = q.waiters[1:]
			p.dialLate(w.fd, w.flow)
			continue
		default:
		}
		if time.Now().Before(w.until) {
			q.again(p)
			return
		}
		q.waiters = q.waiters[1:]
		reset(w.fd)
	}
}

// drop gives up those that are left.
func (q *queue) drop() {
	for _, w := range q.waiters {
		reset(w.fd)
	}
}
