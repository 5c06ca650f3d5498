package host

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// filterOn puts a filter on this thread that answers getppid with action and
// allows the rest. It returns what the kernel returns: a listener, if asked.
func filterOn(action uint32, flags uintptr) (int, error) {
	if _, err := probeNoNewPrivs(""); err != nil {
		return 0, setup("setting no_new_privs", err)
	}
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // seccomp_data.nr
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: unix.SYS_GETPPID},
		{Code: unix.BPF_RET | unix.BPF_K, K: action},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	r, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(filter)
	if errno != 0 {
		return 0, fmt.Errorf("installing a filter: %w", errno)
	}
	return int(r), nil
}

func probeSeccomp(string) (string, error) {
	if _, err := filterOn(unix.SECCOMP_RET_ERRNO|uint32(unix.EDOM), 0); err != nil {
		return "", err
	}
	if _, _, errno := unix.Syscall(unix.SYS_GETPPID, 0, 0, 0); errno != unix.EDOM {
		return "", &refusal{why: fmt.Sprintf("a filter was installed and did not act (%v)", errno)}
	}
	killProcess := uint32(unix.SECCOMP_RET_KILL_PROCESS)
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_GET_ACTION_AVAIL, 0, uintptr(unsafe.Pointer(&killProcess))); errno != 0 {
		return "", &refusal{"the kernel cannot kill a whole process from a filter", "boot Linux 4.14 or newer"}
	}
	return "filter, kill process", nil
}

// The kernel's struct seccomp_notif and seccomp_notif_resp.
type (
	notif struct {
		id    uint64
		pid   uint32
		flags uint32
		data  struct {
			nr   int32
			arch uint32
			ip   uint64
			args [6]uint64
		}
	}
	notifResp struct {
		id    uint64
		val   int64
		err   int32
		flags uint32
	}
)

// probeSeccompNotify has another thread answer a call of this one.
func probeSeccompNotify(string) (string, error) {
	fd, err := filterOn(unix.SECCOMP_RET_USER_NOTIF, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER)
	if err != nil {
		return "", err
	}
	const reply = 4711
	served := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		served <- answerOne(fd, reply)
	}()
	got, _, errno := unix.Syscall(unix.SYS_GETPPID, 0, 0, 0)
	if err := <-served; err != nil {
		return "", err
	}
	if errno != 0 || got != reply {
		return "", &refusal{why: fmt.Sprintf("a call got %d, %v instead of the listener's answer", got, errno)}
	}
	// Yama's scope 2 and 3 keep even a parent from reading the memory that
	// pointer arguments lead to.
	switch scope := root("").word("/proc/sys/kernel/yama/ptrace_scope"); scope {
	case "2", "3":
		return "without reading arguments in memory: kernel.yama.ptrace_scope is " + scope, nil
	}
	return "", nil
}

// answerOne receives one notification and answers it. If it cannot, it closes
// the listener, which lets the waiting call fail instead of waiting for ever.
func answerOne(fd int, reply int64) error {
	defer unix.Close(fd)
	var n notif
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SECCOMP_IOCTL_NOTIF_RECV, uintptr(unsafe.Pointer(&n)))
		if errno == unix.EINTR {
			n = notif{}
			continue
		}
		if errno != 0 {
			return fmt.Errorf("receiving a notification: %w", errno)
		}
		break
	}
	resp := notifResp{id: n.id, val: reply}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SECCOMP_IOCTL_NOTIF_SEND, uintptr(unsafe.Pointer(&resp))); errno != 0 {
		return fmt.Errorf("answering a notification: %w", errno)
	}
	return nil
}

func probeSeccompLog(string) (string, error) {
	action := uint32(unix.SECCOMP_RET_LOG)
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_GET_ACTION_AVAIL, 0, uintptr(unsafe.Pointer(&action))); errno != 0 {
		return "", fmt.Errorf("asking for the log action: %w", errno)
	}
	if _, err := filterOn(unix.SECCOMP_RET_ERRNO|uint32(unix.EDOM), unix.SECCOMP_FILTER_FLAG_LOG); err != nil {
		return "", err
	}
	b, err := os.ReadFile("/proc/sys/kernel/seccomp/actions_logged")
	if errors.Is(err, os.ErrNotExist) {
		return "", setup("reading which actions are logged", err)
	}
	if err != nil {
		return "", setup("reading which actions are logged", err)
	}
	logged := strings.Fields(string(b))
	for _, want := range []string{"log", "errno"} {
		if !slices.Contains(logged, want) {
			return "", &refusal{
				fmt.Sprintf("kernel.seccomp.actions_logged lacks %q: denials leave no trace in the log", want),
				fmt.Sprintf("sudo sysctl kernel.seccomp.actions_logged=%q", strings.Join(append(logged, want), " ")),
			}
		}
	}
	return strings.Join(logged, " "), nil
}
