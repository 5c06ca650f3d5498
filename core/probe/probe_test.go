package probe

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

var errRefused = errors.New("connection refused")

// script is a Try whose tries take and give what was written down; the last
// line holds for all that follow. It notes when each began.
type script struct {
	start time.Time
	lines []line
	began []time.Duration
	now   int // tries that run
	most  int // of them at once
}

type line struct {
	takes time.Duration
	err   error
}

func (s *script) try(ctx context.Context) error {
	l := s.lines[min(len(s.began), len(s.lines)-1)]
	s.began = append(s.began, time.Since(s.start))
	s.now++
	s.most = max(s.most, s.now)
	defer func() { s.now-- }()
	select {
	case <-time.After(l.takes):
		return l.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func scripted(lines ...line) *script { return &script{start: time.Now(), lines: lines} }

func (s *script) wantBegan(t *testing.T, want ...time.Duration) {
	t.Helper()
	if !slices.Equal(s.began, want) {
		t.Errorf("tries began at %v, want %v", s.began, want)
	}
}

const hang = time.Hour

func TestSlowErrorSaysTheLimitOnce(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{context.DeadlineExceeded, "no answer within 5s"},
		{errRefused, "no answer within 5s: connection refused"},
	} {
		e := &SlowError{Limit: 5 * time.Second, Err: c.err}
		if e.Error() != c.want {
			t.Errorf("got %q, want %q", e, c.want)
		}
		if !errors.Is(e, c.err) {
			t.Errorf("%q hides what the try said", e)
		}
	}
}

func TestALatePassIsAPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		err := attempt(t.Context(), time.Second, func(ctx context.Context) error {
			<-ctx.Done()
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
}

func TestOnlyItsOwnLimitMakesATrySlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := attempt(ctx, time.Minute, scripted(line{hang, nil}).try)
		var slow *SlowError
		if errors.As(err, &slow) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
}
