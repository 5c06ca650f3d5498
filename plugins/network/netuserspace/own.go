package netuserspace

import (
	"fmt"
	"os"
	"runtime"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Own says that the process is the plugin's alone. It then gives up, before it serves a
// sandbox, what it needs no more: it has its Unix sockets, and makes no others. Whoever
// takes it over connects to none of those that its user may connect to: other jobs'
// supervisors, a user's service manager, agents that hold keys.
func (n *Network) Own() *Network {
	n.giveUp = sync.OnceValue(noUnixSockets)
	return n
}

// architectures are those of filters of system calls, by Go's name.
var architectures = map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64}

// noUnixSockets takes socket(2) and socketpair(2) of AF_UNIX from all threads, for good. No
// socket that is there can be connected to another path: those of streams and sequences
// of packets that are connected stay so (unix(7)).
func noUnixSockets() error {
	arch := architectures[runtime.GOARCH]
	if arch == 0 {
		return fmt.Errorf("there is no filter of system calls for %s", runtime.GOARCH)
	}
	const (
		number, architecture, domain = 0, 4, 16 // in struct seccomp_data, the low half of the first argument
		x32                          = 0x40000000
		load                         = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		equal, from                  = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K
		answer                       = unix.BPF_RET | unix.BPF_K
	)
	program := []unix.SockFilter{
		{Code: load, K: architecture},
		{Code: equal, K: arch, Jf: 7},
		{Code: load, K: number},
		{Code: from, K: x32, Jt: 5},
		{Code: equal, K: unix.SYS_SOCKET, Jt: 1},
		{Code: equal, K: unix.SYS_SOCKETPAIR, Jf: 2},
		{Code: load, K: domain},
		{Code: equal, K: unix.AF_UNIX, Jt: 1},
		{Code: answer, K: unix.SECCOMP_RET_ALLOW},
		{Code: answer, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EACCES)},
	}
	runtime.LockOSThread() // the others get no_new_privs with the filter
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl PR_SET_NO_NEW_PRIVS", err)
	}
	filter := &unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	thread, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(filter)))
	if errno != 0 {
		return os.NewSyscallError("seccomp", errno)
	}
	if thread != 0 {
		return fmt.Errorf("seccomp: thread %d has a filter of its own", thread)
	}
	return nil
}
