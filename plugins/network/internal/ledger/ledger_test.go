package ledger

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

	"github.com/nucleus-runtime/nucleus/sdk/dnsname"
	"github.com/nucleus-runtime/nucleus/sdk/network"
)

func denied(i int) network.Denial {
	return network.Denial{Protocol: "tcp", Dst: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 443), Rule: -1, Reason: network.ReasonDefault}
}

// heard is what a watcher was told.
type heard struct {
	mu   sync.Mutex
	told []network.Denial
	at   []time.Time
}

func (h *heard) tell(d network.Denial) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.told = append(h.told, d)
	h.at = append(h.at, time.Now())
	return nil
}

func (h *heard) count() (told int, counted uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, d := range h.told {
		counted += d.Count
	}
	return len(h.told), counted
}

// watch watches until the returned function is called.
func watch(t *testing.T, l *Ledger, tell func(network.Denial) error) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Watch(ctx, tell) }()
	stop = sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	t.Cleanup(func() { _ = stop() })
	return stop
}

func TestWhatIsAlikeIsToldOnceASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New()
		h := new(heard)
		stop := watch(t, l, h.tell)
		began := time.Now()
		for range 2500 {
			l.Deny(denied(1))
			time.Sleep(time.Millisecond)
		}
		time.Sleep(time.Second)
		if err := stop(); err != nil {
			t.Error(err)
		}
		if told, counted := h.count(); told != 4 || counted != 2500 || l.Denied() != 2500 {
			t.Errorf("told %d of %d, %d in all: %+v", told, counted, l.Denied(), h.told)
		}
		if h.at[0] != began || h.told[0].At != began || h.told[0].Count != 1 {
			t.Errorf("the first is told after %s: %+v", h.at[0].Sub(began), h.told[0])
		}
		if want := began.Add(time.Millisecond); h.told[1].At != want {
			t.Errorf("the second is of %s, want the first of those alike, %s", h.told[1].At, want)
		}
	})
}

func TestWhatDiffersIsToldApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New()
		h := new(heard)
		watch(t, l, h.tell)
		base := network.Denial{Protocol: "dns", Name: "a.example", Rule: 1, Reason: network.ReasonPort}
		var want []network.Denial
		for _, change := range []func(d *network.Denial){
			func(*network.Denial) {},
			func(d *network.Denial) { d.Protocol = "udp" },
			func(d *network.Denial) { d.Name = "b.example" },
			func(d *network.Denial) { d.Rule = 2 },
			func(d *network.Denial) { d.Reason = network.ReasonPrivate },
			func(d *network.Denial) { d.Dst = netip.MustParseAddrPort("8.8.8.8:1") },
			func(d *network.Denial) { d.Dst = netip.MustParseAddrPort("8.8.8.8:2") },
		} {
			d := base
			change(&d)
			d.At, d.Count = time.Now(), 2
			want = append(want, d)
			l.Deny(d)
		}
		synctest.Wait()
		if !slices.Equal(h.told, want) {
			t.Errorf("told %+v, want %+v", h.told, want)
		}
	})
}

func TestAFloodIsToldSlowlyAndCountedWhole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New()
		h := new(heard)
		watch(t, l, h.tell)
		const kinds = 100
		for i := range 10 * kinds {
			l.Deny(denied(i % kinds))
		}
		synctest.Wait()
		if told, _ := h.count(); told != rate {
			t.Errorf("%d are told at once, want %d", told, rate)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if told, _ := h.count(); told != 2*rate {
			t.Errorf("%d are told after a second, want %d", told, 2*rate)
		}
		time.Sleep(10 * time.Second)
		if told, counted := h.count(); told < kinds || told > kinds+rate || counted != 10*kinds {
			t.Errorf("%d are told, of %d", told, counted)
		}
	})
}

// The kept ones are the last ones, and the total is right.
func TestWhatNobodyWatchesIsKeptWithinLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New()
		const all = 10_000
		for i := range all {
			l.Deny(denied(i))
		}
		if len(l.waiting) != kinds || len(l.byKind) != kinds || l.Denied() != all {
			t.Errorf("%d, %d are kept of %d", len(l.waiting), len(l.byKind), l.Denied())
		}
		h := new(heard)
		watch(t, l, h.tell)
		time.Sleep(time.Minute)
		if told, counted := h.count(); told != kinds || counted != kinds || h.told[0].Dst != denied(all-kinds).Dst || h.told[kinds-1].Dst != denied(all-1).Dst {
			t.Errorf("%d are told, from %v", told, h.told[0])
		}
		if len(l.waiting)+len(l.byKind) != 0 || len(l.told) > 2*rate {
			t.Errorf("%d, %d, %d are kept", len(l.waiting), len(l.byKind), len(l.told))
		}
	})
}

func TestWhatCouldNotBeToldIsToldTheNextWatcher(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New()
		l.Deny(denied(1))
		l.Deny(denied(2))
		broken := errors.New("broken")
		if err := l.Watch(t.Context(), func(network.Denial) error {
			l.Deny(denied(1)) // comes while the other is on its way
			return broken
		}); !errors.Is(err, broken) {
			t.Error(err)
		}
		h := new(heard)
		watch(t, l, h.tell)
		time.Sleep(2 * time.Second)
		if told, counted := h.count(); told != 2 || counted != 3 {
			t.Errorf("told %+v", h.told)
		}
	})
}

func TestALaterWatcherReplacesTheFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New()
		first, second := new(heard), new(heard)
		stop := watch(t, l, first.tell)
		synctest.Wait()
		watch(t, l, second.tell)
		synctest.Wait()
		l.Deny(denied(1))
		synctest.Wait()
		if err := stop(); !errors.Is(err, ErrReplaced) {
			t.Errorf("the first ends with %v", err)
		}
		l.Deny(denied(2))
		time.Sleep(time.Second)
		a, _ := first.count()
		b, _ := second.count()
		if a != 0 || b != 2 {
			t.Errorf("the first was told %d, the second %d", a, b)
		}
	})
}

func TestAClosedLedgerIsToldWholeAndNotWatchedAnyLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New()
		h := new(heard)
		ended := make(chan error)
		go func() { ended <- l.Watch(t.Context(), h.tell) }()
		for i := range 200 {
			l.Deny(denied(i / 2))
		}
		synctest.Wait()
		if told, _ := h.count(); told != rate {
			t.Errorf("%d are told before the end", told)
		}
		began := time.Now()
		l.Close()
		if err := <-ended; err != nil || time.Since(began) != 0 {
			t.Errorf("the watch ends with %v after %s", err, time.Since(began))
		}
		if _, counted := h.count(); counted != 200 {
			t.Errorf("%d are told of 200", counted)
		}
		if err := l.Watch(t.Context(), h.tell); err != nil {
			t.Errorf("a later watch ends with %v", err)
		}
	})
}

func TestAnIdleWatchEndsWithTheLedger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New()
		ended := make(chan error)
		go func() { ended <- l.Watch(t.Context(), new(heard).tell) }()
		synctest.Wait()
		l.Close()
		l.Close()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

func TestNothingIsLostBetweenWatchers(t *testing.T) {
	l := New()
	h := new(heard)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for ctx.Err() == nil {
				if err := l.Watch(ctx, h.tell); err != nil && !errors.Is(err, ErrReplaced) {
					t.Error(err)
				}
			}
		})
	}
	const all = 1000
	for i := range all {
		l.Deny(denied(i % rate)) // what may be told at once
	}
	time.Sleep(50 * time.Millisecond)
	cancel()
	wg.Wait()
	rest := uint64(0)
	for _, d := range l.waiting {
		rest += d.Count
	}
	if _, counted := h.count(); counted+rest != all || counted < rate {
		t.Errorf("%d are told, %d wait", counted, rest)
	}
}

func TestFlows(t *testing.T) {
	l := New()
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			for _, n := range []dnsname.Name{"b.example", "a.example", ""} {
				f := l.Open(n)
				for range 100 {
					f.Add(1, 2)
				}
			}
		})
	}
	wg.Wait()
	want := []network.FlowStats{
		{Name: "", Connections: 10, RxBytes: 1000, TxBytes: 2000},
		{Name: "a.example", Connections: 10, RxBytes: 1000, TxBytes: 2000},
		{Name: "b.example", Connections: 10, RxBytes: 1000, TxBytes: 2000},
	}
	if got := l.Flows(); !slices.Equal(got, want) {
		t.Errorf("%+v", got)
	}
}

func TestNamesWithACountOfTheirOwnAreLimited(t *testing.T) {
	l := New()
	const all = 3 * names
	for i := range all {
		l.Open(dnsname.Name(fmt.Sprintf("n%d.example", i))).Add(1, 0)
	}
	flows := l.Flows()
	var connections, bytes uint64
	for _, f := range flows {
		connections += f.Connections
		bytes += f.RxBytes
	}
	if len(flows) != names+1 || flows[0].Name != "" || flows[0].Connections != all-names || connections != all || bytes != all {
		t.Errorf("%d names, the first %+v, %d connections", len(flows), flows[0], connections)
	}
	l.Open("n0.example")
	if got := l.Flows(); got[0].Connections != all-names {
		t.Error("a name that has a count is counted with the others")
	}
}

func BenchmarkDeny(b *testing.B) {
	l := New()
	d := denied(1)
	b.ReportAllocs()
	for b.Loop() {
		l.Deny(d)
	}
}
