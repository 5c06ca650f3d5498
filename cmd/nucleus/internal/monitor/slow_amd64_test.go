//go:build amd64

package monitor

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

func TestMain(m *testing.M) {
	Slow()
	os.Exit(m.Run())
}

// Of all threads it is the monitor that is slow: the one that the kernel says sleeps by
// itself, and not in wait for another one.
func TestTheMonitorAloneIsSlow(t *testing.T) {
	testutil.Needs(t, testutil.Root) // to read of another thread
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	slow := ""
	for _, th := range threads {
		b, err := os.ReadFile("/proc/" + th.Name() + "/timerslack_ns")
		if err != nil {
			t.Fatal(err)
		}
		if strings.TrimSpace(string(b)) == "1000000" {
			slow += th.Name()
		}
	}
	if slow != threads[1].Name() {
		t.Fatalf("slow are %q of %v", slow, threads)
	}
	// The monitor sleeps in nanosleep(2) while this thread works, and any other in futex(2).
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); {
		b, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%s/syscall", slow))
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(string(b), "35 ") {
			return
		}
	}
	t.Error("it never was in nanosleep(2)")
}
