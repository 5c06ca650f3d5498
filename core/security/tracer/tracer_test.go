package tracer

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/security/seccomp"
)

const childEnv = "NUCLEUS_TEST_TRACED"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		if err := traced(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// traced puts the filter on one thread, which then calls getppid for each line of its input; another one, without the
// filter, tells of the listener and of what came of each call.
func traced() error {
	lines := bufio.NewScanner(os.Stdin)
	listener, errno := make(chan int), atomic.Int64{}
	var calls, done atomic.Int64
	go func() {
		runtime.LockOSThread()
		raw := seccomp.TraceFilter().BPF
		prog := unix.SockFprog{Len: uint16(len(raw) / 8), Filter: (*unix.SockFilter)(unsafe.Pointer(&raw[0]))}
		_ = unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
		var fd atomic.Int64
		go func() {
			for fd.Load() == 0 {
				time.Sleep(time.Millisecond)
			}
			listener <- int(fd.Load())
		}()
		r, _, e := syscall.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uintptr(Flags()), uintptr(unsafe.Pointer(&prog)))
		if e != 0 {
			r = ^uintptr(0)
		}
		fd.Store(int64(r))
		for {
			for done.Load() == calls.Load() {
			}
			_, _, e := syscall.RawSyscall(unix.SYS_GETPPID, 0, 0, 0)
			errno.Store(int64(e))
			done.Add(1)
		}
	}()
	fmt.Println(<-listener)
	for lines.Scan() {
		calls.Add(1)
		for done.Load() != calls.Load() {
			time.Sleep(time.Millisecond)
		}
		fmt.Println(errno.Load())
	}
	return lines.Err()
}

func TestTracer(t *testing.T) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), childEnv+"=1")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	said := bufio.NewScanner(out)
	line := func() string {
		t.Helper()
		if !said.Scan() {
			t.Fatalf("the child has ended: %v", said.Err())
		}
		return strings.TrimSpace(said.Text())
	}
	call := func() string {
		t.Helper()
		if _, err := fmt.Fprintln(in); err != nil {
			t.Fatal(err)
		}
		return line()
	}
	var fd int
	if _, err := fmt.Sscan(line(), &fd); err != nil || fd < 0 {
		t.Fatalf("listener %d: %v", fd, err)
	}
	pidfd, err := unix.PidfdOpen(cmd.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)

	var mu sync.Mutex
	answer, seen := syscall.Errno(0), 0
	tr := New(func(number uint32, _ [6]uint64) syscall.Errno {
		mu.Lock()
		defer mu.Unlock()
		if number != unix.SYS_GETPPID {
			return 0
		}
		seen++
		return answer
	}, func(err error) { t.Error(err) })
	if err := tr.Follow(pidfd, 1); err == nil || !strings.Contains(err.Error(), "descriptor 1 is not the listener") {
		t.Errorf("a pipe is followed: %v", err)
	}
	if err := tr.Follow(pidfd, 4000); !errors.Is(err, unix.EBADF) {
		t.Errorf("a descriptor that is not open is followed: %v", err)
	}
	if err := tr.Follow(pidfd, fd); err != nil {
		t.Fatal(err)
	}
	for _, want := range []syscall.Errno{0, unix.EDOM, 0, unix.ENOSYS} {
		mu.Lock()
		answer = want
		mu.Unlock()
		if got := call(); got != fmt.Sprint(int(want)) {
			t.Errorf("errno %s, want %d", got, want)
		}
	}
	mu.Lock()
	if seen != 4 {
		t.Errorf("%d calls were asked for, want 4", seen)
	}
	mu.Unlock()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := tr.Close(); err != nil {
		t.Error(err)
	}
	if err := tr.Follow(pidfd, fd); err == nil {
		t.Error("followed after the end")
	}
}
