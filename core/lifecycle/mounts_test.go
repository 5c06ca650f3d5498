package lifecycle

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

// mountNS tells the namespace that a link of /proc stands for.
func mountNS(t *testing.T, link string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(link, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

func TestMountsAreHeldOverTheEndOfTheirProcesses(t *testing.T) {
	testutil.Needs(t, testutil.UserNS)
	cmd := exec.CommandContext(t.Context(), "sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}}, GidMappings: []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}},
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	want := mountNS(t, fmt.Sprintf("/proc/%d/ns/mnt", cmd.Process.Pid))
	var m heldMounts
	m.hold(cmd.Process.Pid)
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	held := fmt.Sprintf("/proc/self/fd/%d", m.fd)
	if got := mountNS(t, held); got != want {
		t.Errorf("namespace %d is held, want %d", got, want)
	}
	m.letGo()
	m.wait()
	if _, err := os.Readlink(held); !os.IsNotExist(err) {
		t.Errorf("the descriptor is still open: %v", err)
	}
	m.letGo() // again, and of nothing
	m.wait()
}

func TestMountsOfNobodyAreNotHeld(t *testing.T) {
	var m heldMounts
	m.hold(1 << 30)
	m.letGo()
	m.wait()
	if m.held {
		t.Error("held")
	}
}
