package probe

import (
	"math"
	"slices"
	"testing"
	"time"
)

// waits asks for decisions after failed runs of equal length until it is told to give up.
func waits(r *Restarts, ran time.Duration, limit int) (got []time.Duration) {
	for range limit {
		w, again := r.Next(true, ran)
		if !again {
			if w != 0 {
				got = append(got, -w)
			}
			return got
		}
		got = append(got, w)
	}
	return got
}

func TestWaitsDoubleUntilAttemptsAreUsedUp(t *testing.T) {
	const s, m = time.Second, time.Minute
	for name, c := range map[string]struct {
		attempts int
		backoff  time.Duration
		want     []time.Duration
	}{
		"one attempt":                   {1, s, []time.Duration{s}},
		"the default":                   {3, s, []time.Duration{s, 2 * s, 4 * s}},
		"up to a minute":                {8, s, []time.Duration{s, 2 * s, 4 * s, 8 * s, 16 * s, 32 * s, m, m}},
		"onto a minute":                 {3, 30 * s, []time.Duration{30 * s, m, m}},
		"beyond half a minute":          {3, 31 * s, []time.Duration{31 * s, m, m}},
		"a backoff longer than the cap": {3, 5 * m, []time.Duration{5 * m, 5 * m, 5 * m}},
		"no backoff":                    {3, 0, []time.Duration{0, 0, 0}},
		"a backoff below nothing":       {2, -s, []time.Duration{0, 0}},
		"the longest backoff":           {2, math.MaxInt64, []time.Duration{math.MaxInt64, math.MaxInt64}},
		"no attempts":                   {0, s, nil},
		"fewer than no attempts":        {-1, s, nil},
	} {
		t.Run(name, func(t *testing.T) {
			r := NewRestarts("failure", c.attempts, c.backoff)
			if got := waits(r, 0, 20); !slices.Equal(got, c.want) {
				t.Errorf("waits %v, want %v", got, c.want)
			}
			if r.Count() != len(c.want) {
				t.Errorf("count %d", r.Count())
			}
		})
	}
}

func TestOnSaysWhetherAGoodEndIsStartedAgain(t *testing.T) {
	for on, want := range map[string]bool{"failure": false, "always": true, "": false} {
		r := NewRestarts(on, 3, time.Second)
		if _, again := r.Next(false, time.Hour); again != want {
			t.Errorf("%q: a good end is started again: %t", on, again)
		}
		if _, again := r.Next(true, time.Hour); !again {
			t.Errorf("%q: a failure is not started again", on)
		}
	}
}

func TestGoodEndsThatComeFastUseUpAttempts(t *testing.T) {
	r := NewRestarts("always", 2, time.Second)
	for i := range 3 {
		if _, again := r.Next(false, time.Second); again != (i < 2) {
			t.Errorf("end %d is started again: %t", i, again)
		}
	}
}

func TestRecovery(t *testing.T) {
	const s, m = time.Second, time.Minute
	for name, c := range map[string]struct {
		backoff time.Duration
		before  int // restarts before the run
		ran     time.Duration
		want    bool
	}{
		"ten seconds":                              {s, 1, 10 * s, true},
		"hardly ten seconds":                       {s, 1, 10*s - 1, false},
		"ten seconds are the least":                {time.Millisecond, 1, 5 * s, false},
		"ten seconds without a wait":               {0, 1, 10 * s, true},
		"ten waits":                                {s, 3, 40 * s, true},
		"hardly ten waits":                         {s, 3, 40*s - 1, false},
		"ten times the longest wait":               {m, 3, 10 * m, true},
		"less than ten times the longest wait":     {m, 3, 10*m - 1, false},
		"ten times the longest backoff is no time": {math.MaxInt64, 1, math.MaxInt64, false},
	} {
		t.Run(name, func(t *testing.T) {
			r := NewRestarts("failure", c.before, c.backoff)
			waits(r, 0, c.before)
			wait, again := r.Next(true, c.ran)
			if again != c.want {
				t.Fatalf("recovered: %t", again)
			}
			if again && wait != c.backoff {
				t.Errorf("waits %s after a recovery", wait)
			}
			if again && r.Count() != c.before+1 {
				t.Errorf("count %d: a recovery is no reason to forget restarts", r.Count())
			}
			if more := waits(r, 0, 20); again && len(more) != c.before-1 {
				t.Errorf("then %v", more)
			}
		})
	}
}

// What the comment on recoveryWaits says of a workload that breaks 11 s after each start.
func TestRunsOfElevenSeconds(t *testing.T) {
	const ran, many = 11 * time.Second, 100
	got := waits(NewRestarts("failure", 3, time.Second), ran, many)
	if want := slices.Repeat([]time.Duration{time.Second}, many); !slices.Equal(got, want) {
		t.Errorf("a backoff of 1 s: waits %v", got)
	}
	got = waits(NewRestarts("failure", 3, 2*time.Second), ran, many)
	if want := []time.Duration{2 * time.Second, 4 * time.Second, 8 * time.Second}; !slices.Equal(got, want) {
		t.Errorf("a backoff of 2 s: waits %v", got)
	}
}
