// Package resolver owns the names of one sandbox: it is the only resolver there, and
// answers each name that the policy allows with addresses that stand for this name
// alone. What connects to them is resolved at that time, on the host's side, so that
// rotation, short lives and shared addresses cannot make the policy wrong, and
// nothing but questions for allowed names ever leaves.
//
// It is spoken to by whatever runs in the sandbox. All that it keeps and does is
// bounded, and one sandbox's resolver shares nothing with another's.
package resolver

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nucleus-runtime/nucleus/sdk/dnsname"
	"github.com/nucleus-runtime/nucleus/sdk/network"
	"github.com/nucleus-runtime/nucleus/sdk/network/egress"
)

// Config says how to resolve.
type Config struct {
	Policy   *egress.Policy
	Upstream []netip.AddrPort // asked from the host's side, in this order
	// Denied is told of each name that was refused. It must not wait.
	Denied func(network.Denial)
	// Dial connects to an upstream, over "udp" or "tcp"; nil for a net.Dialer's.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Bind is called before a name's own addresses are first answered, and again when
	// its real addresses have changed; their order is no change. No real address means
	// that the name is forgotten, and its own addresses may go to another one. If it
	// fails, so does the question. Calls for one name come one at a time.
	Bind func(ctx context.Context, n dnsname.Name, own Own, real []netip.Addr) error
	// SameFamily answers with an own address only in a family of which the name has a
	// real one. Without it, a name that has any address gets one of each.
	SameFamily bool
	// Job gives the addresses that a job of the sandbox's stack has now, an invalid one for
	// a family without; of other names it says that they are none. It comes before the
	// policy: no name of a job is asked for elsewhere. Nil knows none.
	Job func(ctx context.Context, n dnsname.Name) (at Own, is bool, err error)
	// Names is how many names may have addresses at a time, for a network that cannot
	// bind as many as there are addresses; 0 is for all.
	Names int
}

// ErrRefused is Lookup's error for a name that may not be asked for.
var ErrRefused = errors.New("the policy refuses the name")

var (
	errClosed = errors.New("the resolver is closed")
	errBusy   = errors.New("too many names are being resolved")
)

const (
	// lookupLimit is how long resolving a name may take, tries and servers together.
	lookupLimit = 6 * time.Second
	// lookups is how many names are resolved at a time, each with two questions.
	lookups = 64
	// flights is how many names may wait for that.
	flights = 512
)

// Resolver is that of one sandbox.
type Resolver struct {
	c       Config
	base    context.Context // of lookups, which outlive the question that began them
	cancel  context.CancelFunc
	wg      sync.WaitGroup // lookups
	queries chan struct{}  // a slot for each question that is being answered
	conns   chan struct{}  // and each TCP connection
	slots   chan struct{}  // and each lookup that asks upstream
	leader  atomic.Uint32  // the upstream that answered last
	names   names
	// toldFull is when it was last told that there is no room, in nanoseconds.
	toldFull atomic.Int64

	mu      sync.Mutex
	closed  bool
	seq     uint64
	cache   cache
	flights map[dnsname.Name]*flight
}

// flight is a lookup that is under way, for all who want the name.
type flight struct {
	done  chan struct{}
	found *found // once done
}

// New makes a resolver that serves nothing yet.
func New(c Config) (*Resolver, error) {
	if c.Policy == nil {
		return nil, errors.New("a resolver needs a policy")
	}
	for _, a := range c.Upstream {
		if !a.IsValid() || a.Port() == 0 {
			return nil, errors.New("an upstream is no address with a port")
		}
	}
	if c.Dial == nil {
		c.Dial = new(net.Dialer).DialContext
	}
	r := &Resolver{
		c:       c,
		queries: make(chan struct{}, queries),
		conns:   make(chan struct{}, conns),
		slots:   make(chan struct{}, lookups),
		flights: make(map[dnsname.Name]*flight),
	}
	r.names.limit = c.Names
	r.base, r.cancel = context.WithCancel(context.Background())
	return r, nil
}

// Close ends Serve and what is being resolved, and waits for the latter.
func (r *Resolver) Close() error {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.cancel()
	r.wg.Wait()
	return nil
}

// Lookup resolves a name for a flow: its real addresses, IPv4 first, each family in
// upstream's order. The policy has the last word on each, with Policy.Bound. A name
// that does not exist has none.
func (r *Resolver) Lookup(ctx context.Context, n dnsname.Name) ([]netip.Addr, error) {
	if local(n) || !r.c.Policy.Resolve(n).Allow {
		return nil, ErrRefused
	}
	f, err := r.find(ctx, n)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(f.all(), hosts), nil
}

// Known is Lookup where nobody has to be asked for it.
func (r *Resolver) Known(n dnsname.Name) (addrs []netip.Addr, ok bool) {
	if local(n) || !r.c.Policy.Resolve(n).Allow {
		return nil, false
	}
	r.mu.Lock()
	f := r.cache.get(n, time.Now())
	r.mu.Unlock()
	if f == nil || f.err != nil {
		return nil, false
	}
	return slices.DeleteFunc(f.all(), hosts), true
}

// NameOf says which name owns a synthetic address.
func (r *Resolver) NameOf(a netip.Addr) (dnsname.Name, bool) {
	return r.names.of(a, time.Now())
}

// find gives what is known of a name or becomes known; an error says that nothing is.
func (r *Resolver) find(ctx context.Context, n dnsname.Name) (*found, error) {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return nil, errClosed
	}
	if f := r.cache.get(n, time.Now()); f != nil {
		r.mu.Unlock()
		return f, f.err
	}
	fl, ok := r.flights[n]
	if !ok {
		if len(r.flights) >= flights {
			r.mu.Unlock()
			return nil, errBusy
		}
		fl = &flight{done: make(chan struct{})}
		r.flights[n] = fl
		r.wg.Add(1)
		go r.fly(n, fl)
	}
	r.mu.Unlock()
	select {
	case <-fl.done:
		return fl.found, fl.found.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (r *Resolver) fly(n dnsname.Name, fl *flight) {
	defer r.wg.Done()
	ctx, cancel := context.WithTimeout(r.base, lookupLimit)
	defer cancel()
	select {
	case r.slots <- struct{}{}:
		fl.found = r.resolve(ctx, n)
		<-r.slots
	case <-ctx.Done():
		fl.found = &found{err: errBusy}
	}
	r.mu.Lock()
	r.seq++
	fl.found.seq = r.seq
	if !fl.found.expires.IsZero() {
		r.cache.put(n, fl.found)
	}
	delete(r.flights, n)
	r.mu.Unlock()
	close(fl.done)
}
