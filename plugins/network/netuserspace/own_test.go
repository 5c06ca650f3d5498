package netuserspace

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// without is set in the process that gives up its Unix sockets.
const without = "NETUSERSPACE_TEST_WITHOUT"

// What is there works on, and what is made anew is not of Unix, on any thread.
func TestOwnProcessMakesNoUnixSockets(t *testing.T) {
	if os.Getenv(without) == "" {
		cmd := exec.Command("/proc/self/exe", "-test.run", "^TestOwnProcessMakesNoUnixSockets$", "-test.v")
		cmd.Env = append(os.Environ(), without+"=1")
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "--- PASS: TestOwnProcessMakesNoUnixSockets") {
			t.Errorf("%v: %s", err, out)
		}
		return
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	n := New().Own()
	if err := errors.Join(n.giveUp(), n.giveUp()); err != nil {
		t.Fatal(err)
	}
	failed := make(chan error)
	for range 20 { // goroutines that are made wait for threads
		go func() {
			_, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
			failed <- err
		}()
	}
	for range 20 {
		if err := <-failed; !errors.Is(err, unix.EACCES) {
			t.Errorf("socketpair: %v", err)
		}
	}
	if _, err := net.Dial("unix", "@nobody"); !errors.Is(err, unix.EACCES) {
		t.Errorf("a connection: %v", err)
	}
	for _, domain := range []int{unix.AF_INET, unix.AF_INET6} {
		fd, err := unix.Socket(domain, unix.SOCK_STREAM, 0)
		if err != nil {
			t.Errorf("domain %d: %v", domain, err)
			continue
		}
		unix.Close(fd)
	}
	if _, err := unix.Write(pair[0], []byte("x")); err != nil {
		t.Error(err)
	}
	if got, err := unix.Read(pair[1], make([]byte, 2)); got != 1 || err != nil {
		t.Error(got, err)
	}
	if _, _, errno := unix.Syscall(unix.SYS_SOCKET|0x40000000, unix.AF_UNIX, unix.SOCK_STREAM, 0); errno != unix.EACCES {
		t.Errorf("by the number of another table: %v", errno)
	}
}

// A process that has more to do than this keeps what it has.
func TestOthersKeepTheirSockets(t *testing.T) {
	if err := New().giveUp(); err != nil {
		t.Fatal(err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(pair[0])
	unix.Close(pair[1])
}
