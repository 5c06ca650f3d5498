package packet

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// An error is given again, and no more than is bounded waits for that.
func TestInsist(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		many := cap(insisting) + 3
		var given atomic.Int64
		for range many {
			Insist(func() { given.Add(1) })
		}
		if given.Load() != int64(many) {
			t.Errorf("%d of %d were given at once", given.Load(), many)
		}
		time.Sleep(6 * time.Millisecond)
		synctest.Wait()
		if want := many + cap(insisting); int(given.Load()) != want {
			t.Errorf("%d were given a moment later, want %d", given.Load(), want)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if want := many + 2*cap(insisting); int(given.Load()) != want || len(insisting) != 0 {
			t.Errorf("%d were given in the end, want %d; %d wait", given.Load(), want, len(insisting))
		}
	})
}
