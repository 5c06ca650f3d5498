package conformance

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"unsafe"
)

// What the kernel shows of a process.

// fate is how a process ended.
type fate struct {
	exited bool // of itself, with status
	status int  // or the signal that killed it
}

func (f fate) String() string {
	if f.exited {
		return fmt.Sprintf("exit status %d", f.status)
	}
	return "signal: " + syscall.Signal(f.status).String()
}

// await waits for the end of a child and leaves it to be reaped, so that its number
// stays its own: its process group is killed by that number.
func await(pid int) fate {
	const (
		pPID      = 1
		cldExited = 1
	)
	var info [128]byte // siginfo_t
	for {
		_, _, errno := syscall.Syscall6(syscall.SYS_WAITID, pPID, uintptr(pid), uintptr(unsafe.Pointer(&info[0])), syscall.WEXITED|syscall.WNOWAIT, 0, 0)
		if errno != syscall.EINTR {
			break
		}
	}
	return fate{
		exited: binary.NativeEndian.Uint32(info[8:]) == cldExited, // si_code
		status: int(int32(binary.NativeEndian.Uint32(info[24:]))), // si_status
	}
}

// procField is a field of /proc/PID/status; "" if it is not there.
func procField(pid int, field string) string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)) // it may have ended
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, field+":"); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// size is what may grow.
type size struct {
	descriptors int // -1 if they can't be seen
	threads     int
	rss         int // bytes
}

func sizeOf(pid int) size {
	s := size{descriptors: -1}
	if fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid)); err == nil {
		s.descriptors = len(fds)
	}
	s.threads, _ = strconv.Atoi(procField(pid, "Threads"))
	kib, _ := strconv.Atoi(strings.TrimSuffix(procField(pid, "VmRSS"), " kB"))
	s.rss = kib << 10
	return s
}

// started is a process that cannot be mistaken for a later one of its number.
type started struct {
	pid  int
	time string
}

func (s started) alive() bool {
	st := procField(s.pid, "State")
	return st != "" && !strings.HasPrefix(st, "Z") && startTime(s.pid) == s.time
}

func startTime(pid int) string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)) // it may have ended
	// The name is in parentheses and may have anything in it.
	_, rest, _ := strings.Cut(string(b[strings.LastIndexByte(string(b), ')')+1:]), " ")
	f := strings.Fields(rest)
	if len(f) < 20 {
		return ""
	}
	return f[19]
}

// descendants of a process, itself left out.
func descendants(pid int) []started {
	children := map[int][]int{}
	dirs, _ := filepath.Glob("/proc/[0-9]*") // the pattern is a good one
	for _, d := range dirs {
		n, err := strconv.Atoi(filepath.Base(d))
		if err != nil {
			continue
		}
		parent, _ := strconv.Atoi(procField(n, "PPid"))
		children[parent] = append(children[parent], n)
	}
	var out []started
	for queue := []int{pid}; len(queue) > 0; queue = queue[1:] {
		for _, c := range children[queue[0]] {
			out = append(out, started{c, startTime(c)})
			queue = append(queue, c)
		}
	}
	return out
}

// shown is what other users can read of a process: its arguments and, if it is not
// careful, its environment.
func shown(pid int) string {
	args, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	env, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	return string(args) + "\x00" + string(env)
}
