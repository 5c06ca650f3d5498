package probe

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Health says how often to try, and which failures count.
type Health struct {
	Interval, Timeout, StartPeriod time.Duration
	Retries                        int
}

// State is what the probes say of a workload.
type State string

// The states. A workload is starting until its first pass.
const (
	Starting  State = "starting"
	Healthy   State = "healthy"
	Unhealthy State = "unhealthy"
)

// Status is the state, and what speaks against it.
type Status struct {
	State   State
	Failing int   // failures in a row that count
	Last    error // of the last try, nil if it passed
}

// UnhealthyError is the outcome of a watch that had its number of failures in
// a row. Like NotReadyError it does not unwrap to Last.
type UnhealthyError struct {
	Failures int
	Last     error
	// Well is how long the workload was healthy for sure: from the start of the
	// watch to the last pass, nothing without one. It is what Restarts.Next
	// wants to know.
	Well time.Duration
}

func (e *UnhealthyError) Error() string {
	times := "probes"
	if e.Failures == 1 {
		times = "probe"
	}
	return fmt.Sprintf("unhealthy after %d failed %s: %v", e.Failures, times, e.Last)
}

// Watch tries for as long as the workload is healthy. It ends with
// *UnhealthyError, or with ctx.Err() when ctx is over; a try that ctx cut off
// says nothing about the workload, nor does one with ErrPaused.
//
// The rules are those that Docker's users know. The first try is an interval
// after the start, for one at the very start fails with any workload; each
// other is an interval after the end of the one before, so two never overlap.
// A failure of a try that began in the start period does not count, unless
// there was a pass: that ends the period. A start period that ends without a
// pass ends with a try, or a period shorter than the interval would mean
// nothing.
//
// Watch calls report from its own goroutine: with the first status at once,
// and then when the state, the number of failures or the words of the last one
// have changed.
func Watch(ctx context.Context, h Health, try Try, report func(Status)) error {
	start := time.Now()
	interval, timeout := max(h.Interval, shortest), max(h.Timeout, shortest)
	w := watch{retries: max(h.Retries, 1), status: Status{State: Starting}, report: report}
	report(w.status)
	var well time.Duration
	for {
		wait := interval
		left := h.StartPeriod - time.Since(start)
		if w.status.State == Starting && left > 0 {
			wait = min(wait, left)
		}
		if !pause(ctx, wait) {
			return ctx.Err()
		}
		counts := time.Since(start) >= h.StartPeriod
		err := attempt(ctx, timeout, try)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, ErrPaused):
			continue
		case err == nil:
			well = time.Since(start)
			w.passed()
		default:
			w.failed(err, counts)
		}
		if w.status.State == Unhealthy {
			return &UnhealthyError{Failures: w.status.Failing, Last: err, Well: well}
		}
	}
}

// watch is what outcomes have made of the status.
type watch struct {
	retries int
	status  Status
	report  func(Status)
}

func (w *watch) passed() { w.change(Status{State: Healthy}) }

func (w *watch) failed(err error, counts bool) {
	next := w.status
	next.Last = err
	if counts || w.status.State == Healthy {
		next.Failing++
	}
	if next.Failing >= w.retries {
		next.State = Unhealthy
	}
	w.change(next)
}

func (w *watch) change(next Status) {
	was := w.status
	w.status = next
	if next.State != was.State || next.Failing != was.Failing || words(next.Last) != words(was.Last) {
		w.report(next)
	}
}

func words(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
