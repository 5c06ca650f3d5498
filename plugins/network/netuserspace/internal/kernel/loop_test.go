package kernel

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestALoopLooksLessAndLessWhereNothingComes(t *testing.T) {
	l, err := newLoop()
	if err != nil {
		t.Fatal(err)
	}
	defer l.giveUp()
	events := make([]unix.EpollEvent, 1)
	var k looker
	took := func() time.Duration {
		began := time.Now()
		if n := k.look(l.epoll, events); n != 0 {
			t.Fatalf("%d events of nothing", n)
		}
		return time.Since(began)
	}
	for looks := range 12 {
		if d := took(); d < eagerness {
			t.Fatalf("look %d took %v", looks, d)
		}
		turns := k.skip
		for range turns {
			took()
		}
		if want := min(1<<looks, mostTurns); turns != want {
			t.Errorf("after %d looks in vain %d turns go without, want %d", looks+1, turns, want)
		}
	}
	l.ring()
	if n := k.look(l.epoll, events); n != 1 {
		t.Fatalf("%d events where there is one", n)
	}
	if n := k.look(l.epoll, events); n != 1 || k.skip != 0 {
		t.Errorf("%d events, and %d turns go without: a look that was not in vain is followed by others", n, k.skip)
	}
}
