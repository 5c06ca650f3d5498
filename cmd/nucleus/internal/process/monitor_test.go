package process

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func policy(t *testing.T, tid int) uint32 {
	t.Helper()
	attr, err := unix.SchedGetAttr(tid, 0)
	if err != nil {
		t.Fatal(err)
	}
	return attr.Policy
}

func TestMonitorLater(t *testing.T) {
	tid := second(os.Getpid())
	if tid == 0 || tid == os.Getpid() {
		t.Fatalf("thread %d of process %d", tid, os.Getpid())
	}
	if err := unix.SchedSetAttr(tid, &unix.SchedAttr{Size: unix.SizeofSchedAttr}, 0); err != nil {
		t.Fatal(err) // as it was before this package was initialised
	}
	monitorLater()
	if p := policy(t, tid); p != unix.SCHED_BATCH {
		t.Errorf("policy %d of the monitor thread", p)
	}
	if p := policy(t, os.Getpid()); p != unix.SCHED_NORMAL {
		t.Errorf("policy %d of the first thread", p)
	}
	// sched(7): field 41 of /proc/PID/stat, behind the name.
	out, err := exec.Command("cat", "/proc/self/stat").Output()
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(out), ") ")
	if p := strings.Fields(rest)[41-3]; p != "0" {
		t.Errorf("policy %s of a child", p)
	}
}
