package resolver

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
	"pgregory.net/rapid"

	"github.com/nucleus-runtime/nucleus/sdk/dnsname"
	"github.com/nucleus-runtime/nucleus/sdk/network"
)

func numbered(i int) dnsname.Name { return dnsname.Name(fmt.Sprintf("n%d.example", i)) }

func TestNamesThatHaveAddressesAreLimited(t *testing.T) {
	var ns names
	now := time.Unix(1e9, 0)
	addrs := make(map[netip.Addr]int)
	for i := range owned {
		o, lost, err := ns.get(numbered(i), now)
		if err != nil || lost != nil {
			t.Fatal(o, lost, err)
		}
		for _, a := range []netip.Addr{o.own.V4, o.own.V6} {
			if other, taken := addrs[a]; taken {
				t.Fatalf("%s is both %d's and %d's", a, i, other)
			}
			addrs[a] = i
			if n, ok := ns.of(a, now); !ok || n != numbered(i) || !Synthetic(a) {
				t.Fatalf("%s of %d: %s, %v", a, i, n, ok)
			}
		}
	}
	now = now.Add(idle - 1)
	if _, _, err := ns.get("more.example", now); !errors.Is(err, errFull) {
		t.Errorf("one more: %v", err)
	}
	// The first is used by a flow, the second by a question: the third is idle longest.
	first, _, err := ns.get(numbered(0), now)
	if err != nil {
		t.Fatal(err)
	}
	ns.of(ownOf(firstIndex+1).V6, now)
	now = now.Add(1)
	o, lost, err := ns.get("more.example", now)
	if err != nil || lost == nil || lost.name != numbered(2) {
		t.Fatalf("%v, %v, %v", o, lost, err)
	}
	if _, taken := addrs[o.own.V4]; taken {
		t.Error("it has got an address that another had, while there are others")
	}
	if n, ok := ns.of(lost.own.V4, now); ok {
		t.Errorf("what was given up is still %s's", n)
	}
	if again, _, err := ns.get(numbered(0), now); err != nil || again.own != first.own {
		t.Errorf("the first has got %v, %v", again, err)
	}
	if ns.used.Len() != owned || len(ns.byName) != owned || len(ns.byIndex) != owned {
		t.Error("more are kept")
	}
}

// Whatever is asked for, no two names have one address at a time, and a name's own
// stay while it is in use.
func TestOwnAddressesAreOneNamesAlone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var ns names
		now := time.Unix(1e9, 0)
		have := make(map[dnsname.Name]Own)
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			n := numbered(rapid.IntRange(0, 20).Draw(t, "name"))
			o, _, err := ns.get(n, now)
			if err != nil {
				t.Fatal(err)
			}
			if own, ok := have[n]; ok && own != o.own {
				t.Fatalf("%s had %v, has %v", n, own, o.own)
			}
			have[n] = o.own
			if len(have) == 2 {
				ns.next = indices - 2 // soon it begins anew
			}
			if i, ok := indexOf(o.own.V6); !ok || i != o.index || i < firstIndex {
				t.Fatalf("%s has %v of %d, %d", n, o.own, o.index, i)
			}
			for other, own := range have {
				if other != n && (own.V4 == o.own.V4 || own.V6 == o.own.V6) {
					t.Fatalf("%s and %s have %v", n, other, own)
				}
			}
		}
	})
}

func TestThereIsNoRoomForAName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, names2rules("*.example"), nil, nil)
		b.up.set(func(q *dns.Msg, _, _ string) [][]byte { return [][]byte{reply(t, q, "8.8.8.8", nil)} })
		for i := range owned {
			if _, _, err := b.names.get(numbered(i), time.Now()); err != nil {
				t.Fatal(err)
			}
		}
		for range 3 {
			if got := brief(b.ask(t, "x.example.", dns.TypeA)); got != "SERVFAIL" {
				t.Error(got)
			}
		}
		if ds := b.denials(); len(ds) != 1 || ds[0].Reason != network.ReasonUnresolved || ds[0].Name != "x.example" || ds[0].Rule != 0 {
			t.Errorf("told %+v", ds)
		}
		// The name that is given up is bound to nothing before its address can be another's,
		// if it ever was to something.
		if got := brief(b.ask(t, "n0.example.", dns.TypeA)); got != "NOERROR 198.18.1.0" {
			t.Error(got)
		}
		time.Sleep(idle)
		for i := 1; i < owned; i++ {
			b.NameOf(ownOf(firstIndex + uint32(i)).V4)
		}
		if got := brief(b.ask(t, "x.example.", dns.TypeA)); got != "NOERROR 198.18.65.0" {
			t.Error(got)
		}
		if got, want := b.bindings(), []string{"n0.example 8.8.8.8", "n0.example", "x.example 8.8.8.8"}; !slices.Equal(got, want) {
			t.Errorf("bound %q, want %q", got, want)
		}
		if got := brief(b.ask(t, "y.example.", dns.TypeA)); got != "SERVFAIL" {
			t.Errorf("all others are in use: %s", got)
		}
	})
}

func TestANameIsBoundBeforeItIsAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fail := true
		b := newBench(t, names2rules("a.example"), []string{"a.example. 10 A 8.8.8.8", "a.example. 10 A 8.8.4.4"}, func(c *Config, _ *bench) {
			bind := c.Bind
			c.Bind = func(ctx context.Context, n dnsname.Name, own Own, real []netip.Addr) error {
				if fail {
					return errors.New("no")
				}
				return bind(ctx, n, own, real)
			}
		})
		ask := func(want string, bound ...string) {
			t.Helper()
			if got := brief(b.ask(t, "a.example.", dns.TypeA)); got != want {
				t.Errorf("%s, want %s", got, want)
			}
			if got := b.bindings(); !slices.Equal(got, bound) {
				t.Errorf("bound %q, want %q", got, bound)
			}
		}
		ask("SERVFAIL")
		fail = false
		ask("NOERROR 198.18.1.0", "a.example 8.8.8.8 8.8.4.4")
		ask("NOERROR 198.18.1.0", "a.example 8.8.8.8 8.8.4.4")
		time.Sleep(10 * time.Second)
		b.up.set(zone(t, "a.example. 10 A 8.8.4.4", "a.example. 10 A 8.8.8.8"))
		ask("NOERROR 198.18.1.0", "a.example 8.8.8.8 8.8.4.4")
		time.Sleep(10 * time.Second)
		b.up.set(zone(t, "a.example. 10 A 8.8.4.4"))
		ask("NOERROR 198.18.1.0", "a.example 8.8.8.8 8.8.4.4", "a.example 8.8.4.4")
		// A failure must not leave the old addresses answered for the new ones.
		time.Sleep(10 * time.Second)
		b.up.set(zone(t, "a.example. 10 A 8.8.8.8"))
		fail = true
		ask("SERVFAIL", "a.example 8.8.8.8 8.8.4.4", "a.example 8.8.4.4")
		fail = false
		ask("NOERROR 198.18.1.0", "a.example 8.8.8.8 8.8.4.4", "a.example 8.8.4.4", "a.example 8.8.8.8")
	})
}

// A question that has waited long must not bind a name to what was found before.
func TestWhatWasFoundLaterStaysBound(t *testing.T) {
	b := newBench(t, names2rules("a.example"), nil, nil)
	now, before := netip.MustParseAddr("8.8.8.8"), netip.MustParseAddr("8.8.4.4")
	for _, c := range []struct {
		seq  uint64
		real netip.Addr
	}{{2, now}, {1, before}, {2, now}} {
		if _, err := b.own(t.Context(), "a.example", &found{seq: c.seq}, []netip.Addr{c.real}); err != nil {
			t.Fatal(err)
		}
	}
	if got := b.bindings(); !slices.Equal(got, []string{"a.example 8.8.8.8"}) {
		t.Errorf("bound %q", got)
	}
}

func TestBindIsCalledOnceAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		now, calls := 0, 0
		b := newBench(t, names2rules("a.example"), []string{"a.example. 300 A 8.8.8.8"}, func(c *Config, _ *bench) {
			c.Bind = func(ctx context.Context, _ dnsname.Name, _ Own, _ []netip.Addr) error {
				mu.Lock()
				now++
				calls++
				if now > 1 {
					t.Error("two at a time")
				}
				mu.Unlock()
				defer func() {
					mu.Lock()
					now--
					mu.Unlock()
				}()
				<-ctx.Done() // hangs: the question gives up
				return ctx.Err()
			}
		})
		began := time.Now()
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				if got := brief(b.ask(t, "a.example.", dns.TypeA)); got != "SERVFAIL" {
					t.Error(got)
				}
			})
		}
		wg.Wait()
		if calls == 0 || time.Since(began) != answerLimit {
			t.Errorf("%d calls, after %s", calls, time.Since(began))
		}
	})
}

func TestTheCacheIsLimited(t *testing.T) {
	var c cache
	now := time.Unix(1e9, 0)
	for i := range cached + 10 {
		c.put(numbered(i), &found{expires: now.Add(time.Minute)})
		if c.get(numbered(0), now) == nil {
			t.Fatal("what is used is lost")
		}
	}
	if c.used.Len() != cached || len(c.byName) != cached {
		t.Errorf("%d, %d are kept", c.used.Len(), len(c.byName))
	}
	if c.get(numbered(1), now) != nil {
		t.Error("the oldest is kept")
	}
	if c.get(numbered(0), now.Add(time.Minute)) != nil || c.used.Len() != cached-1 {
		t.Error("what has expired is kept")
	}
}

// A network that binds few names has the one that was unused for longest make room,
// once no cache can have its answer any more.
func TestFewNamesMakeRoom(t *testing.T) {
	var few names
	few.limit = 2
	now := time.Now()
	get := func(n dnsname.Name, at time.Duration) (lost string, err error) {
		_, o, err := few.get(n, now.Add(at))
		if o != nil {
			lost = string(o.name)
		}
		return lost, err
	}
	for i, n := range []dnsname.Name{"a.example", "b.example", "a.example"} {
		if lost, err := get(n, time.Duration(i)*time.Second); lost != "" || err != nil {
			t.Fatalf("%s: %q, %v", n, lost, err)
		}
	}
	if _, err := get("c.example", time.Minute); !errors.Is(err, errFull) {
		t.Errorf("too early: %v", err)
	}
	if lost, err := get("c.example", 3*time.Minute); lost != "b.example" || err != nil {
		t.Errorf("lost %q, %v", lost, err)
	}
}
