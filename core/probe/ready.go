package probe

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// longestTry bounds one try for readiness, whose block has no limit for it. A
// server that takes a connection before it can answer may never answer that
// one: a probe that hangs on it must not use up the default timeout of a
// minute. A check that works takes less than this.
const longestTry = 10 * time.Second

// Readiness says how often and how long to try.
type Readiness struct {
	Interval, Timeout time.Duration
}

// Rhythm is how long AwaitReady waits between tries, and how long a try may take.
func (r Readiness) Rhythm() (interval, limit time.Duration) {
	interval = min(max(r.Interval, shortest), max(r.Timeout, shortest)/2)
	return interval, max(longestTry, interval)
}

// NotReadyError is the outcome of a readiness probe that never passed. It does
// not unwrap to Last: whoever asks an error for context.DeadlineExceeded means
// the deadline of their own context, not that of a try.
type NotReadyError struct {
	After time.Duration
	Last  error // of the last try that said why
}

func (e *NotReadyError) Error() string {
	return fmt.Sprintf("not ready after %s: %v", e.After, e.Last)
}

// AwaitReady tries at once, and again an interval after the end of each try,
// until one passes. Otherwise it gives *NotReadyError when the timeout is over,
// or ctx.Err() when ctx is.
//
// A try has what remains of the timeout, at most 10 s, or the interval if that
// is longer: who leaves that long between tries knows them to be slow. The
// interval is at most half of the timeout, for the first try comes before a
// workload can be ready, and with the default interval and a short timeout it
// would be the only one.
func AwaitReady(ctx context.Context, r Readiness, try Try) error {
	timeout := max(r.Timeout, shortest)
	interval, limit := r.Rhythm()
	deadline := time.Now().Add(timeout)
	bounded, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	var last error
	for ctx.Err() == nil {
		err := attempt(bounded, limit, try)
		if err == nil {
			return nil
		}
		switch {
		case errors.Is(err, ErrPaused) && last != nil: // says less than what there is
		case bounded.Err() == nil:
			last = err
		case last == nil: // with an earlier reason, that says more than a try that the end cut off
			last = &SlowError{Limit: timeout, Err: err}
		}
		// With the usual whole seconds the next try is due just when the timeout
		// is over: whether it is made must not be left to which timer wins.
		if time.Until(deadline) <= interval {
			<-bounded.Done()
		}
		if !pause(bounded, interval) && ctx.Err() == nil {
			return &NotReadyError{After: timeout, Last: last}
		}
	}
	return ctx.Err()
}
