package testutil

import (
	"os"
	"time"
)

// Patient stretches a time limit that holds on an ordinary host for where the
// tests run: the emulated VM is some thirty times slower to fork and exec, and
// the race detector slows pure computation by ten.
func Patient(limit time.Duration) time.Duration {
	if os.Getenv("NUCLEUS_VM") == "1" {
		limit *= 30
	}
	return limit * raceSlowdown
}
