package main

import (
	"fmt"
	"io"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// trace notes when each step of a run ended.
type trace struct {
	mu    sync.Mutex
	on    bool
	start time.Time
	laps  []lap
}

type lap struct {
	step string
	at   time.Time
}

func newTrace(on bool) *trace {
	t := &trace{on: on, start: time.Now()}
	if on {
		t.lap("program start to main")
		t.start = t.start.Add(-sinceExec())
	}
	return t
}

// sinceExec is how long ago this process was started, by its CPU clock: what
// the Go runtime and package initialisation took before main.
func sinceExec() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

func (t *trace) lap(step string) {
	if !t.on {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.laps = append(t.laps, lap{step, time.Now()})
}

func (t *trace) print(w io.Writer) {
	if !t.on {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	fmt.Fprintf(w, "nucleus: trace: %8s %8s  step\n", "ms", "+ms")
	last := t.start
	for _, l := range t.laps {
		fmt.Fprintf(w, "nucleus: trace: %8.3f %8.3f  %s\n", ms(l.at.Sub(t.start)), ms(l.at.Sub(last)), l.step)
		last = l.at
	}
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
