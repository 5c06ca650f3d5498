package probe

import "time"

const (
	// longestWait is where doubling ends. It is Docker's: a service that is down
	// because another is should be back soon after that one.
	longestWait = time.Minute
	// recovery is the shortest run that can count as one that went well: the
	// time after which Docker starts its delay anew, and over which systemd
	// counts starts (StartLimitIntervalSec).
	recovery = 10 * time.Second
	// recoveryWaits is how many times the last wait a run must have lasted, too:
	// 10 s say little after a wait of a minute. One that breaks 11 s after each
	// start is restarted for ever with a backoff of a second, as systemd and
	// Docker have it, and is given up with one of two.
	recoveryWaits = 10
)

// Restarts decides whether a workload that has ended is started again, and
// when. It is for one goroutine.
type Restarts struct {
	always   bool
	attempts int
	backoff  time.Duration

	row   int           // restarts since the last run that went well
	wait  time.Duration // before the last of them
	count int
}

// NewRestarts makes the decisions of a restart block: on is "failure" or
// "always".
//
// Attempts are restarts in a row, not in a lifetime: a service that fails once
// a week would otherwise be given up after some weeks. Waits double from
// backoff up to a minute, or stay at backoff if that is longer.
func NewRestarts(on string, attempts int, backoff time.Duration) *Restarts {
	return &Restarts{always: on == "always", attempts: attempts, backoff: max(backoff, 0)}
}

// Next says what follows a run that has ended: whether to start again, and
// after how long.
//
// A run of at least 10 s and ten times the wait before it, whichever is
// longer, is a recovery: attempts and waits begin anew. This holds for clean
// ends as well, which with "always" use up attempts if they come fast.
//
// Ran is how long the workload worked, not how long it existed. For one that
// was stopped as unhealthy that is UnhealthyError.Well, for one that was never
// ready nothing: the probes alone take longer than 10 s to find that out, and
// what never works would be restarted for ever.
func (r *Restarts) Next(failed bool, ran time.Duration) (wait time.Duration, again bool) {
	if !failed && !r.always {
		return 0, false
	}
	if ran >= recovery && ran/recoveryWaits >= r.wait {
		r.row = 0
	}
	if r.row >= r.attempts {
		return 0, false
	}
	longest := max(longestWait, r.backoff)
	switch {
	case r.row == 0:
		r.wait = r.backoff
	case r.wait > longest/2: // before it could overflow
		r.wait = longest
	default:
		r.wait *= 2
	}
	r.row++
	r.count++
	return r.wait, true
}

// Count is the number of restarts so far, recovered from or not.
func (r *Restarts) Count() int { return r.count }
