// Package probe owns the judgement on probes and restarts: when a readiness or
// health probe is due, what its outcomes mean, and whether a workload that has
// ended is started again. It never reaches into a sandbox: it opens no socket
// and starts no process. Who does hands in a Try, and gives the bytes of an
// HTTP answer to be read here, where a hostile server's can be fuzzed.
package probe

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Try runs one probe and gives nil if it passed. It must end when ctx does:
// the next one waits for it, for probes that pile up would be a load that the
// workload makes its host carry.
type Try func(ctx context.Context) error

// ErrPaused is the outcome of a try that says nothing about the workload, for it
// stood still.
var ErrPaused = errors.New("the sandbox is paused")

// SlowError is the outcome of a try that was cut off by its own limit.
type SlowError struct {
	Limit time.Duration
	Err   error // what the try said when it was cut off
}

func (e *SlowError) Error() string {
	if errors.Is(e.Err, context.DeadlineExceeded) {
		return fmt.Sprintf("no answer within %s", e.Limit)
	}
	return fmt.Sprintf("no answer within %s: %v", e.Limit, e.Err)
}

func (e *SlowError) Unwrap() error { return e.Err }

// attempt makes one try with a limit. A pass that comes late is a pass: what
// was asked has been answered.
func attempt(ctx context.Context, limit time.Duration, try Try) error {
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err := try(limited)
	if err != nil && limited.Err() != nil && ctx.Err() == nil {
		return &SlowError{Limit: limit, Err: err}
	}
	return err
}

// pause waits, and reports whether ctx let it.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// shortest is the least that a job file may say for an interval or a timeout.
// Less, which only a program can ask for, would be a busy loop.
const shortest = time.Millisecond
