package lifecycle

import (
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/nucleus-runtime/nucleus/core/audit"
	"github.com/nucleus-runtime/nucleus/core/notify"
	"github.com/nucleus-runtime/nucleus/core/plan"
)

// managed is a sandbox whose words a manager hears, and that manager's socket.
func managed(t *testing.T) (*Sandbox, *net.UnixConn) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "manager")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	m := notify.FromEnv(func(name string) string { return map[string]string{"NOTIFY_SOCKET": path}[name] }, 1)
	return &Sandbox{
		cfg: Config{Manager: m}, plan: &plan.Plan{Notify: &plan.Notify{Manager: true, Stopping: true}}, log: audit.NewLog("id", "name"),
		readied: make(chan struct{}), notices: notices{ready: make(chan struct{})},
	}, c
}

func heard(t *testing.T, c *net.UnixConn, wait time.Duration) string {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(wait)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 256)
	n, _ := c.Read(b)
	return string(b[:n])
}

// What a run says that is over, perhaps while the next one is waited for, is no word to the
// manager.
func TestManagerHearsNothingOfARunThatIsOver(t *testing.T) {
	s, c := managed(t)
	s.hear(notify.Message{Watchdog: true})
	if got := heard(t, c, 5*time.Second); got != "WATCHDOG=1" {
		t.Fatalf("of a run that lives: %q", got)
	}
	s.notices.close()
	for _, m := range []notify.Message{{Ready: true}, {Watchdog: true}, {Stopping: true}, {HasStatus: true, Status: "late"}} {
		s.hear(m)
	}
	s.tellManager(notify.Message{Ready: true}) // as a probe does
	if got := heard(t, c, 50*time.Millisecond); got != "" {
		t.Errorf("of one that is over: %q", got)
	}
}

// One that is on its way when the run ends is there before that.
func TestEndOfARunWaitsForTheMessageOnItsWay(t *testing.T) {
	s, c := managed(t)
	n := 0
	for ; ; n++ { // until the manager's queue is full, and the next one waits
		done := make(chan struct{})
		go func() {
			s.hear(notify.Message{Watchdog: true})
			close(done)
		}()
		select {
		case <-done:
			continue
		case <-time.After(200 * time.Millisecond):
		}
		break
	}
	closed := make(chan struct{})
	go func() {
		s.notices.close()
		close(closed)
	}()
	select {
	case <-closed:
		t.Error("the run is over, and a message of it is on its way")
	case <-time.After(50 * time.Millisecond):
	}
	for range n + 1 {
		if got := heard(t, c, 5*time.Second); got != "WATCHDOG=1" {
			t.Fatalf("%q", got)
		}
	}
	select {
	case <-closed:
	case <-time.After(5 * time.Second):
		t.Fatal("the end waits for ever")
	}
}
