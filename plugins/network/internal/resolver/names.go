package resolver

import (
	"container/list"
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"sync"
	"time"

	"github.com/nucleus-runtime/nucleus/sdk/dnsname"
)

// The blocks that names have their own addresses of. The first is for benchmarking
// (RFC 2544) and the second a ULA ("nuc" and "l"), so that neither is found on the
// internet, and hardly where sandboxes want to go. The first 256 addresses of each are
// never a name's: a network may have them for itself.
const (
	PrefixV4 = "198.18.0.0/15"
	PrefixV6 = "fd00:6e75:636c::/64"
)

const (
	firstIndex = 256
	indices    = 1 << 17 // the size of the smaller block

	// own is how many names have addresses of their own. When there are so many, the
	// one that was unused for the longest time makes room, if that is longer than idle.
	owned = 16384
	idle  = 10 * time.Minute
)

var errFull = errors.New("too many names have addresses")

// Own are the synthetic addresses of a name, or those that a job has.
type Own struct{ V4, V6 netip.Addr }

// Synthetic reports whether an address is of the blocks that names' own addresses are of.
func Synthetic(a netip.Addr) bool {
	_, ok := indexOf(a)
	return ok
}

// indexOf tells the place of an address in its block; one that is too far behind for
// any name gives a place that none has.
func indexOf(a netip.Addr) (uint32, bool) {
	a = a.Unmap()
	if a.Is4() {
		b := a.As4()
		return binary.BigEndian.Uint32(b[:]) & (indices - 1), b[0] == 198 && b[1]&^1 == 18
	}
	b := a.As16()
	if [8]byte(b[:8]) != [8]byte{0xfd, 0, 0x6e, 0x75, 0x63, 0x6c} {
		return 0, false
	}
	low := binary.BigEndian.Uint64(b[8:])
	if low >= indices {
		return 0, true
	}
	return uint32(low), true
}

func ownOf(index uint32) Own {
	v4 := [4]byte{198, 18}
	v6 := [16]byte{0xfd, 0, 0x6e, 0x75, 0x63, 0x6c}
	binary.BigEndian.PutUint32(v4[:], binary.BigEndian.Uint32(v4[:])|index)
	binary.BigEndian.PutUint32(v6[12:], index)
	return Own{netip.AddrFrom4(v4), netip.AddrFrom16(v6)}
}

// names are those that have addresses. The zero value is empty and ready; it may be
// used from several goroutines.
type names struct {
	mu      sync.Mutex
	byName  map[dnsname.Name]*list.Element
	byIndex map[uint32]*list.Element
	used    list.List // of *owner, the one used last in front
	next    uint32
	limit   int // of names; 0 for owned
}

// bounds are how many names there may be, and after which time one makes room for
// another: where there are few, answers that are in caches still hold (maxTTL).
func (t *names) bounds() (int, time.Duration) {
	if t.limit == 0 || t.limit >= owned {
		return owned, idle
	}
	return t.limit, 2 * maxTTL * time.Second
}

// owner is a name with its addresses. What it is bound to is guarded by lock, a
// channel, so that who waits can give up.
type owner struct {
	name  dnsname.Name
	index uint32
	own   Own
	used  time.Time

	lock chan struct{}
	seq  uint64 // of what it is bound to; 0 for nothing
	real []netip.Addr
}

func (t *names) of(a netip.Addr, now time.Time) (dnsname.Name, bool) {
	i, ok := indexOf(a)
	if !ok {
		return "", false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	e, ok := t.byIndex[i]
	if !ok {
		return "", false
	}
	return t.touch(e, now).name, true
}

func (t *names) touch(e *list.Element, now time.Time) *owner {
	t.used.MoveToFront(e)
	o := e.Value.(*owner)
	o.used = now
	return o
}

// get gives the name its addresses, or those that it has. Another name may have lost
// its own by that.
func (t *names) get(n dnsname.Name, now time.Time) (o, lost *owner, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e, ok := t.byName[n]; ok {
		return t.touch(e, now), nil, nil
	}
	if limit, idle := t.bounds(); t.used.Len() >= limit {
		e := t.used.Back()
		lost = e.Value.(*owner)
		if now.Sub(lost.used) < idle {
			return nil, nil, errFull
		}
		t.used.Remove(e)
		delete(t.byName, lost.name)
		delete(t.byIndex, lost.index)
	}
	if t.byName == nil {
		t.byName = make(map[dnsname.Name]*list.Element)
		t.byIndex = make(map[uint32]*list.Element)
		t.next = firstIndex
	}
	// In turn, so that an address that was another name's is the last to be taken:
	// somebody may have it in a cache.
	for t.byIndex[t.next] != nil {
		t.step()
	}
	o = &owner{name: n, index: t.next, own: ownOf(t.next), used: now, lock: make(chan struct{}, 1)}
	t.step()
	e := t.used.PushFront(o)
	t.byName[n] = e
	t.byIndex[o.index] = e
	return o, lost, nil
}

func (t *names) step() {
	if t.next++; t.next == indices {
		t.next = firstIndex
	}
}

// Stands gives the addresses that stand for a name which is resolved by somebody else.
func (r *Resolver) Stands(n dnsname.Name) (Own, error) {
	o, _, err := r.names.get(n, time.Now())
	if err != nil {
		return Own{}, err
	}
	return o.own, nil
}

// own gives the name's own addresses, bound to the real ones.
func (r *Resolver) own(ctx context.Context, n dnsname.Name, f *found, real []netip.Addr) (Own, error) {
	o, lost, err := r.names.get(n, time.Now())
	if err != nil {
		return Own{}, err
	}
	if r.c.Bind == nil {
		return o.own, nil
	}
	if lost != nil {
		if err := r.bind(ctx, lost, ^uint64(0), nil); err != nil {
			return Own{}, err
		}
	}
	return o.own, r.bind(ctx, o, f.seq, real)
}

// bind lets the name's addresses stand for the real ones, unless they stand for them
// already or for some found later.
func (r *Resolver) bind(ctx context.Context, o *owner, seq uint64, real []netip.Addr) error {
	select {
	case o.lock <- struct{}{}:
		defer func() { <-o.lock }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if o.seq >= seq {
		return nil
	}
	// What was never bound differs from every real address, and from none.
	if !sameAddrs(o.real, real) {
		if err := r.c.Bind(ctx, o.name, o.own, real); err != nil {
			return err
		}
	}
	o.seq, o.real = seq, real
	return nil
}
