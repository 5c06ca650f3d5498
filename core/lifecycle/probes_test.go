package lifecycle

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nucleus-runtime/nucleus/core/probe"
)

// A sandbox that was paused is not to be blamed for it.
func TestAPauseSaysNothing(t *testing.T) {
	failure := errors.New("no")
	for name, c := range map[string]struct {
		before Status
		during bool // a pause begins, and may be over
		err    error
		want   error
		tried  bool
	}{
		"a failure":             {StatusRunning, false, failure, failure, true},
		"a pass":                {StatusRunning, false, nil, nil, true},
		"a failure by a pause":  {StatusRunning, true, failure, probe.ErrPaused, true},
		"a pass, pause or not":  {StatusRunning, true, nil, nil, true},
		"nothing while paused":  {StatusPaused, false, nil, probe.ErrPaused, false},
		"nor when it goes over": {StatusPaused, true, failure, probe.ErrPaused, false},
	} {
		s := &Sandbox{status: c.before}
		tried := false
		err := s.unlessPaused(func(context.Context) error {
			tried = true
			if c.during {
				s.pauses.Add(1)
			}
			return c.err
		})(t.Context())
		if !errors.Is(err, c.want) || tried != c.tried {
			t.Errorf("%s: %v, tried: %t", name, err, tried)
		}
	}
}

func TestAPauseGivesReadinessItsTimeoutAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Sandbox{status: StatusRunning}
		start, tries := time.Now(), 0
		err := s.awaitReady(t.Context(), probe.Readiness{Interval: time.Second, Timeout: 5 * time.Second}, func(context.Context) error {
			if tries++; tries == 3 {
				s.pauses.Add(1)
			}
			return errors.New("no")
		})
		var never *probe.NotReadyError
		if took := time.Since(start); !errors.As(err, &never) || took != 10*time.Second {
			t.Errorf("%v after %s", err, took)
		}
	})
}
