package probe

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestAwaitReady(t *testing.T) {
	const ms, s = time.Millisecond, time.Second
	refused := line{0, errRefused}
	for name, c := range map[string]struct {
		r     Readiness
		lines []line
		began []time.Duration
		took  time.Duration
		want  string // "" for ready
	}{
		"the first try is made at once": {
			Readiness{s, 60 * s}, []line{{0, nil}}, []time.Duration{0}, 0, "",
		},
		"tries go on until one passes": {
			Readiness{s, 60 * s}, []line{refused, refused, {0, nil}}, []time.Duration{0, s, 2 * s}, 2 * s, "",
		},
		"the interval begins when a try ends": {
			Readiness{s, 60 * s}, []line{{3 * s, errRefused}, {2 * s, nil}}, []time.Duration{0, 4 * s}, 6 * s, "",
		},
		"the timeout ends it, with the last reason": {
			Readiness{s, 3 * s},
			[]line{{0, errors.New("first")}, refused},
			[]time.Duration{0, s, 2 * s},
			3 * s,
			"not ready after 3s: connection refused",
		},
		"a try that hangs does not use up the timeout": {
			Readiness{s, 60 * s}, []line{{hang, nil}, {0, nil}}, []time.Duration{0, 11 * s}, 11 * s, "",
		},
		"a try may take as long as the interval": {
			Readiness{20 * s, 60 * s}, []line{{15 * s, nil}}, []time.Duration{0}, 15 * s, "",
		},
		"a try has no more than what remains": {
			Readiness{s, 5 * s},
			[]line{{hang, nil}},
			[]time.Duration{0},
			5 * s,
			"not ready after 5s: no answer within 5s",
		},
		"a try that was cut off by its limit says so": {
			Readiness{s, 11500 * ms},
			[]line{{hang, nil}},
			[]time.Duration{0, 11 * s},
			11500 * ms,
			"not ready after 11.5s: no answer within 10s",
		},
		"a try that was cut off by the end does not hide the reason": {
			Readiness{s, 5 * s},
			[]line{refused, {hang, nil}},
			[]time.Duration{0, s},
			5 * s,
			"not ready after 5s: connection refused",
		},
		"a pause does not hide the reason": {
			Readiness{s, 3 * s},
			[]line{refused, {0, ErrPaused}},
			[]time.Duration{0, s, 2 * s},
			3 * s,
			"not ready after 3s: connection refused",
		},
		"a pause is not why one is not ready, if there is a reason": {
			Readiness{s, 3 * s},
			[]line{{0, ErrPaused}, refused},
			[]time.Duration{0, s, 2 * s},
			3 * s,
			"not ready after 3s: connection refused",
		},
		"a timeout shorter than the interval still has a second try": {
			Readiness{s, 500 * ms}, []line{refused, {0, nil}}, []time.Duration{0, 250 * ms}, 250 * ms, "",
		},
		"a pass in the last moment is one": {
			Readiness{s, 5 * s}, []line{{5*s - 1, nil}}, []time.Duration{0}, 5*s - 1, "",
		},
		"nothing said is no busy loop": {
			Readiness{}, []line{refused}, []time.Duration{0, ms / 2}, ms, "not ready after 1ms: connection refused",
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				sc := scripted(c.lines...)
				err := AwaitReady(t.Context(), c.r, sc.try)
				if took := time.Since(sc.start); took != c.took {
					t.Errorf("took %s, want %s", took, c.took)
				}
				sc.wantBegan(t, c.began...)
				if c.want == "" {
					if err != nil {
						t.Errorf("not ready: %v", err)
					}
					return
				}
				var not *NotReadyError
				if !errors.As(err, &not) || err.Error() != c.want {
					t.Fatalf("got %v, want %s", err, c.want)
				}
				if not.After != c.took {
					t.Errorf("after %s, want %s", not.After, c.took)
				}
				if errors.Is(err, context.DeadlineExceeded) {
					t.Error("it looks like the end of the caller's context")
				}
			})
		})
	}
}

func TestRhythm(t *testing.T) {
	const s = time.Second
	for r, want := range map[Readiness][2]time.Duration{
		{s, 60 * s}:      {s, 10 * s},
		{20 * s, 60 * s}: {20 * s, 20 * s},
		{s, s / 2}:       {s / 4, 10 * s},
		{}:               {time.Millisecond / 2, 10 * s},
	} {
		if interval, limit := r.Rhythm(); interval != want[0] || limit != want[1] {
			t.Errorf("%v: %s and %s, want %v", r, interval, limit, want)
		}
	}
}

func TestAwaitReadyEndsWithItsContext(t *testing.T) {
	for name, l := range map[string]line{
		"during a try":  {hang, nil},
		"between tries": {0, errRefused},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer time.AfterFunc(2500*time.Millisecond, cancel).Stop()
				sc := scripted(l)
				err := AwaitReady(ctx, Readiness{time.Second, time.Minute}, sc.try)
				if took := time.Since(sc.start); err != context.Canceled || took != 2500*time.Millisecond { //nolint:errorlint // as it is, not wrapped
					t.Errorf("got %v after %s", err, took)
				}
			})
		})
	}
	t.Run("before the first try", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		sc := scripted(line{0, nil})
		if err := AwaitReady(ctx, Readiness{time.Second, time.Minute}, sc.try); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		sc.wantBegan(t)
	})
	t.Run("by a deadline of its own", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			err := AwaitReady(ctx, Readiness{time.Second, time.Minute}, scripted(line{hang, nil}).try)
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v", err)
			}
		})
	})
}
