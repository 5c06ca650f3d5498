package processors

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestLateMonitor(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	Punctual() // this thread may be one that a late monitor has made
	before, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	LateMonitor()
	for end := time.Now().Add(10 * time.Second); atomic.LoadUint32(&isLate) == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the monitor was not reached")
		}
	}
	if int(monitor) == os.Getpid() {
		t.Error("it is the main thread that is late")
	}
	if Slack() != uint64(before) {
		t.Errorf("children get %d, want %d", Slack(), before)
	}
	now := func(what string, want int) {
		t.Helper()
		if n, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0); err != nil || n != want {
			t.Errorf("%s: %d (%v), want %d", what, n, err, want)
		}
	}
	now("this thread", before)

	// Which thread is the monitor shows in what it does: it looks at the others all the time.
	switches := func() (n int) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/status", monitor))
		if err != nil {
			t.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(b), "\nvoluntary_ctxt_switches:")
		if _, err := fmt.Sscan(rest, &n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	first := switches()
	for end := time.Now().Add(10 * time.Second); switches() < first+20; {
		if time.Now().After(end) {
			t.Fatalf("thread %d does not look like the monitor: %d switches, then %d", monitor, first, switches())
		}
	}

	// A thread that the monitor has made is late, and is put right for its children.
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, lateBy, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	now("late on purpose", lateBy)
	Punctual()
	now("punctual", before)
}
