package testutil

import (
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/internal/processors"
)

// LateThread gives the test a thread as one that Go's monitor has made may be, with late
// timers, and how late they may usually be, in nanoseconds. Nobody else gets the thread.
func LateThread(t testing.TB) (usual int) {
	t.Helper()
	runtime.LockOSThread() // and never unlocked: the thread is spoilt
	processors.Punctual()
	usual, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	processors.LateMonitor()
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, 400_000, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	return usual
}
