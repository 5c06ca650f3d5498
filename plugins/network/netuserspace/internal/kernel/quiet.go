package kernel

import (
	"errors"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/ledger"
	"github.com/nucleus-runtime/nucleus/plugins/network/internal/relay"
	"github.com/nucleus-runtime/nucleus/plugins/network/netuserspace/internal/exit"
)

// busy is from how many bytes in one direction a connection is worth a relay of its
// own, which may wait, and moves pages.
const busy = 256 << 10

// The ends of a connection.
const (
	in  = 0 // the sandbox's
	out = 1
)

// quiet is a connection whose bytes the loop moves: those of which there are few.
type quiet struct {
	path  *Path
	fd    [2]int
	eof   [2]bool
	moved [2]int // from each end
	count *ledger.Flow
	kept  bool // the far end is asked now and then whether it is there
}

// join moves bytes between two connected sockets until both are done. It has a slot,
// and gives it back.
func (p *Path) join(inside, outside int, count *ledger.Flow) {
	q := &quiet{path: p, fd: [2]int{inside, outside}, count: count}
	for _, fd := range q.fd {
		if p.loop.watch(fd, unix.EPOLLIN, q) != nil {
			q.fail()
			return
		}
	}
	if !p.sweeping {
		p.sweeping = true
		p.loop.later(p.sweep)
	}
}

// sweep has the far ends of connections asked now and then whether they are there: most
// have ended before it is worth the calls.
func (p *Path) sweep() {
	p.sweeping = false
	for _, h := range p.loop.by {
		if q, ok := h.(*quiet); ok {
			q.keep()
			p.sweeping = true
		}
	}
	if p.sweeping {
		p.loop.later(p.sweep)
	}
}

func (q *quiet) keep() {
	if !q.kept {
		q.kept = exit.KeepAlive(q.fd[out]) == nil
	}
}

func (q *quiet) ready(fd int, events uint32) {
	from := in
	if fd == q.fd[out] {
		from = out
	}
	if q.eof[from] { // there can be nothing but an error
		if events&(unix.EPOLLERR|unix.EPOLLHUP) != 0 {
			q.fail()
		}
		return
	}
	l := q.path.loop
	n, err := unix.Read(fd, l.pages)
	switch {
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
	case err != nil:
		q.fail()
	case n == 0:
		q.ended(from)
	default:
		q.move(from, l.pages[:n])
	}
}

func (q *quiet) ended(from int) {
	q.eof[from] = true
	if q.eof[1-from] {
		q.drop()
		return
	}
	if err := unix.Shutdown(q.fd[1-from], unix.SHUT_WR); err != nil && !errors.Is(err, unix.ENOTCONN) {
		q.fail()
		return
	}
	q.path.loop.change(q.fd[from], 0)
}

func (q *quiet) move(from int, b []byte) {
	n, err := unix.Write(q.fd[1-from], b)
	switch {
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
		n = 0
	case err != nil:
		q.fail()
		return
	}
	q.moved[from] += n
	if from == in {
		q.count.Add(0, uint64(n))
	} else {
		q.count.Add(uint64(n), 0)
	}
	if n < len(b) || len(b) == largest || q.moved[from] > busy {
		var left [2][]byte
		left[from] = slices.Clone(b[n:])
		q.leave(left)
	}
}

// leave gives the connection to a relay, with what is still to be written.
func (q *quiet) leave(left [2][]byte) {
	p := q.path
	q.keep()
	for _, fd := range q.fd {
		p.loop.forget(fd)
	}
	inside, outside := relay.NewSocket(q.fd[in]), relay.NewSocket(q.fd[out])
	if !p.track(inside, outside) {
		inside.Close()
		outside.Close()
		p.giveBack()
		return
	}
	p.wg.Go(func() {
		relay.Resume(inside, outside, left[out], left[in], q.count.Add)
		p.untrack(inside, outside)
		<-p.slots
	})
}

// fail resets both ends: neither may take what it got for all that there was.
func (q *quiet) fail() {
	for _, fd := range q.fd {
		breakOff(fd)
	}
	q.drop()
}

// drop closes both ends.
func (q *quiet) drop() {
	for _, fd := range q.fd {
		q.path.loop.close(fd)
	}
	q.path.giveBack()
}
