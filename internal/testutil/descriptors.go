package testutil

import (
	"os"
	"runtime/debug"
	"strconv"
	"testing"
	"time"
)

// Descriptors notes what this process has open. The function that it gives fails the test if
// anything has come to that: now, or within a moment, for who closes it may be another. What an
// earlier test has lost may be closed meanwhile, by the collector.
func Descriptors(t testing.TB) (same func()) {
	t.Helper()
	if _, fuzz := t.(*testing.F); !fuzz {
		// It would close what this test loses as well, and hide that. A fuzzer runs too long to go without.
		was := debug.SetGCPercent(-1)
		t.Cleanup(func() { debug.SetGCPercent(was) })
	}
	poller(t)
	before := opened(t)
	return func() {
		t.Helper()
		var more []string
		for end := time.Now().Add(Patient(2 * time.Second)); ; time.Sleep(time.Millisecond) {
			more = more[:0]
			for fd, to := range opened(t) {
				if before[fd] != to {
					more = append(more, fd+" -> "+to)
				}
			}
			if len(more) == 0 {
				return
			}
			if time.Now().After(end) {
				t.Errorf("left open: %q", more)
				return
			}
		}
	}
}

// poller has Go's runtime open what it waits with, which stays.
func poller(t testing.TB) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	_, _ = r.Close(), w.Close()
}

func opened(t testing.TB) map[string]string {
	t.Helper()
	dir, err := os.Open("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		t.Fatal(err)
	}
	own := strconv.Itoa(int(dir.Fd()))
	out := map[string]string{}
	for _, fd := range names {
		to, err := os.Readlink("/proc/self/fd/" + fd)
		if err == nil && fd != own {
			out[fd] = to
		}
	}
	return out
}
