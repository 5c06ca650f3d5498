package hook

import (
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/plan"
	"github.com/nucleus-runtime/nucleus/internal/processors"
)

// A thread that Go's monitor has made has late timers. A hook that it runs has not.
func TestHookIsAsPunctualAsTheCaller(t *testing.T) {
	runtime.LockOSThread() // and never unlocked: the thread is spoilt
	processors.Punctual()
	before, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	processors.LateMonitor()
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, 400_000, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "out")
	h := plan.Hook{Phase: plan.HookCreateRuntime, Command: []string{script(t, "read n </proc/self/timerslack_ns; echo $n >"+out)}, Timeout: time.Minute}
	if err := run(t, h); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(out)
	if got := strings.TrimSpace(string(b)); err != nil || got != strconv.Itoa(before) {
		t.Errorf("timers of a hook may be late by %q ns, want %d (%v)", got, before, err)
	}
}
