package processors

import (
	"runtime"
	"testing"
)

func TestOneAndAll(t *testing.T) {
	before := runtime.GOMAXPROCS(3)
	t.Cleanup(func() { all, users = 0, 0; runtime.GOMAXPROCS(before) })
	now := func(want int, when string) {
		t.Helper()
		if n := runtime.GOMAXPROCS(0); n != want {
			t.Errorf("%d processors %s, want %d", n, when, want)
		}
	}
	n, release := All()
	if n != 3 {
		t.Errorf("All gives %d of 3", n)
	}
	release()
	now(3, "where One was never asked for")
	One()
	One()
	now(1, "after One")
	n, first := All()
	if n != 3 {
		t.Errorf("All gives %d of 3", n)
	}
	_, second := All()
	first()
	first()
	now(3, "while there is a user")
	second()
	now(1, "after the last")
}
