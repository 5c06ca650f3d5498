package signals

import (
	"errors"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Why not os/signal: it switches two threads back and forth for each signal that
// it enables, and has two threads more, all in all a millisecond of a start. This
// handler writes the number to a pipe (the self-pipe trick of D. J. Bernstein)
// and needs nothing of the Go runtime but the alternate stack of the thread that
// it runs on.

const (
	sigIgn     = 1
	saRestorer = 0x04000000
	saOnStack  = 0x08000000
	saRestart  = 0x10000000
)

// sigaction is the kernel's struct, not the C library's.
type sigaction struct {
	handler  uintptr
	flags    uint64
	restorer uintptr
	mask     uint64
}

// pipeFD is where the handler writes.
var pipeFD uint32 //nolint:unused // the handler reads it, and is in assembly

// entries gives the addresses of the handler and of what returns from it.
func entries() (handler, restorer uintptr)

func catch(nums []unix.Signal) (<-chan unix.Signal, func(), error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, nil, os.NewSyscallError("pipe2", err)
	}
	pipeFD = uint32(p[1])
	handler, restorer := entries()
	before := make(map[unix.Signal]*sigaction, len(nums))
	release := func() {
		for n, old := range before {
			_ = set(n, old, nil) // it was set before
		}
	}
	for _, n := range nums {
		old := &sigaction{}
		if err := set(n, nil, old); err != nil {
			release()
			return nil, nil, err
		}
		if old.handler == sigIgn {
			continue
		}
		if err := set(n, &sigaction{handler: handler, flags: saRestorer | saOnStack | saRestart, restorer: restorer, mask: ^uint64(0)}, nil); err != nil {
			release()
			return nil, nil, err
		}
		before[n] = old
	}
	out := make(chan unix.Signal, backlog)
	go read(os.NewFile(uintptr(p[0]), "signals"), out)
	return out, release, nil
}

func set(n unix.Signal, act, old *sigaction) error {
	_, _, errno := syscall.RawSyscall6(syscall.SYS_RT_SIGACTION, uintptr(n), uintptr(unsafe.Pointer(act)), uintptr(unsafe.Pointer(old)), unsafe.Sizeof(old.mask), 0, 0)
	if errno != 0 {
		return os.NewSyscallError("rt_sigaction", errno)
	}
	return nil
}

func read(pipe *os.File, out chan<- unix.Signal) {
	b := make([]byte, backlog)
	for {
		n, err := pipe.Read(b)
		for _, s := range b[:n] {
			select {
			case out <- unix.Signal(s):
			default:
			}
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return // not while this process holds the other end
		}
	}
}
