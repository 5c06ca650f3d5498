package hook

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nucleus-runtime/nucleus/core/plan"
	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

// A thread that Go's monitor has made has late timers. A hook that it runs has not.
func TestHookIsAsPunctualAsTheCaller(t *testing.T) {
	before := testutil.LateThread(t)
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
