package kernel

import "time"

// late is a connection that was accepted before anything was known of it: another one to
// the same place has just been (see package inside), or there is no tap device, or the
// program has the TTL of those that were. It learns from a reset what others learn from
// connect.
type late struct {
	fd int
	flow
	until time.Time
}

// late dials for a connection, if need be when there is a slot for it.
func (p *Path) late(fd int, f flow) {
	if p.local(f.dst.Addr()) { // the listener's own address
		reset(fd)
		return
	}
	select {
	case p.slots <- struct{}{}:
		p.dialLate(fd, f)
	default:
		p.queue.add(p, late{fd, f, time.Now().Add(patience)})
	}
}

// dialLate has a slot.
func (p *Path) dialLate(fd int, f flow) {
	p.dial(f.dst, func(d dialled, err error) {
		if err != nil {
			reset(fd)
			<-p.slots
			return
		}
		p.join(fd, d.fd, d.count)
	})
}

// queue are those that wait for a slot, the first one first. Others wait at the tap, where
// they take no descriptor, and so of these there may be fewer.
type queue []late

const (
	// waiting is what part of the slots may be waited for.
	waiting = 8
	// interval is when it is looked again whether there is a slot. Few are given back by
	// the loop, and a place that is full is slow anyway.
	interval = 10 * time.Millisecond
)

func (q *queue) add(p *Path, c late) {
	if len(*q) >= cap(p.slots)/waiting {
		reset(c.fd)
		return
	}
	*q = append(*q, c)
	if len(*q) == 1 {
		q.again(p)
	}
}

func (q *queue) again(p *Path) {
	time.AfterFunc(interval, func() { p.loop.post(func() { q.serve(p) }) })
}

func (q *queue) serve(p *Path) {
	for len(*q) > 0 {
		c := (*q)[0]
		select {
		case p.slots <- struct{}{}:
			p.dialLate(c.fd, c.flow)
		default:
			if time.Now().Before(c.until) {
				q.again(p)
				return
			}
			reset(c.fd)
		}
		*q = (*q)[1:]
	}
	*q = nil
}

// drop gives up those that are left.
func (q *queue) drop() {
	for _, c := range *q {
		reset(c.fd)
	}
}
