package member_test

import (
	"errors"
	"syscall"
	"testing"
	"time"

	"github.com/nucleus-runtime/nucleus/sdk/network"
	wire "github.com/nucleus-runtime/nucleus/sdk/network/member"
)

// connect is a request for a connection that the rules have.
var connect = wire.Request{Job: "db", Protocol: wire.TCP, Family: wire.V4, Port: 5432}

// times asks so often, closes what comes, and counts the answers by how they are.
func times(t *testing.T, d *wire.Dialer, n int, q wire.Request) map[error]int {
	t.Helper()
	got := map[error]int{}
	for range n {
		var err error
		if q.Protocol == wire.None {
			_, err = d.Look(t.Context(), "db")
		} else {
			file, derr := d.Dial(t.Context(), q.Protocol, q.Family, "db", q.Port)
			if err = derr; err == nil {
				file.Close()
			}
		}
		var errno syscall.Errno
		if errors.As(err, &errno) {
			err = errno
		}
		got[err]++
	}
	return got
}

func dialer(t *testing.T, s *stack) (*wire.Dialer, func()) {
	t.Helper()
	f, b := broker(t, s)
	d, err := wire.New(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return d, b.Close
}

func (s *stack) set(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

// Where a job is, or that it is not there, is asked for ten times a second at most,
// however often its name is looked up.
func TestAnswersAreKeptForAMoment(t *testing.T) {
	for name, there := range map[string]error{"there": nil, "absent": wire.ErrAbsent} {
		s := &stack{}
		s.set(there)
		d, _ := dialer(t, s)
		began := time.Now()
		if got := times(t, d, 500, wire.Request{}); got[there] != 500 {
			t.Errorf("%s: %v", name, got)
		}
		if asked, _ := s.seen(); len(asked) > 1+int(time.Since(began)/(100*time.Millisecond)) {
			t.Errorf("%s: others were asked %d times in %s", name, len(asked), time.Since(began))
		}
		// It is seen soon when that changes.
		changed := map[error]error{nil: wire.ErrAbsent, wire.ErrAbsent: nil}[there]
		s.set(changed)
		for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
			_, err := d.Look(t.Context(), "db")
			if errors.Is(err, changed) {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("%s: it stays %v", name, err)
			}
		}
	}
}

// A connection is made each time, and none to a job that is known to be absent.
func TestConnectionsAreMadeAnew(t *testing.T) {
	s := &stack{}
	d, _ := dialer(t, s)
	if _, err := d.Look(t.Context(), "db"); err != nil {
		t.Fatal(err)
	}
	before, _ := s.seen()
	if got := times(t, d, 50, connect); got[nil] != 50 {
		t.Error(got)
	}
	if after, _ := s.seen(); len(after)-len(before) != 50 {
		t.Errorf("%d connections were made, want 50", len(after)-len(before))
	}
	s.set(syscall.ECONNREFUSED) // which may be otherwise at once
	if got := times(t, d, 50, connect); got[syscall.ECONNREFUSED] != 50 {
		t.Error(got)
	}
	s.set(nil)
	if got := times(t, d, 50, connect); got[nil] != 50 {
		t.Error(got)
	}
	s.set(wire.ErrAbsent)
	before, _ = s.seen()
	began := time.Now()
	if got := times(t, d, 200, connect); got[wire.ErrAbsent] != 200 {
		t.Error(got)
	}
	if after, _ := s.seen(); len(after)-len(before) > 1+int(time.Since(began)/(100*time.Millisecond)) {
		t.Errorf("an absent job was asked for %d times in %s", len(after)-len(before), time.Since(began))
	}
}

// What an honest workload does at once passes; one that goes on and on is refused, and
// that is told now and then, with how much it was.
func TestConnectionsAreSoManyASecond(t *testing.T) {
	s := &stack{}
	d, closeBroker := dialer(t, s)
	const burst, perSecond, all = 4096, 1000, 20_000
	began := time.Now()
	if got := times(t, d, 2000, connect); got[nil] != 2000 {
		t.Errorf("2000 at once: %v", got)
	}
	got := times(t, d, all-2000, connect)
	took := time.Since(began)
	refused := got[syscall.EAGAIN]
	asked, _ := s.seen()
	if most := burst + int(took.Seconds()*perSecond) + 1; len(asked) > most {
		t.Errorf("%d connections were made in %s, want %d at most", len(asked), took, most)
	}
	if refused == 0 || refused+len(asked) != all {
		t.Errorf("%d made, and of the others %v", len(asked), got)
	}
	closeBroker() // tells the rest
	s.mu.Lock()
	defer s.mu.Unlock()
	var told uint64
	for _, x := range s.denials {
		told += x.Count
		if x.Name != "db" || x.Protocol != "tcp" || x.Reason != network.ReasonLimit || x.Rule != 0 {
			t.Errorf("told %+v", x)
		}
	}
	if most := 2 + int(took/time.Second); told != uint64(refused) || len(s.denials) > most {
		t.Errorf("%d of %d refusals were told, %d times in %s, want %d times at most", told, refused, len(s.denials), took, most)
	}
}
