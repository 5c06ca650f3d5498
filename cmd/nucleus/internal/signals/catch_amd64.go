package signals

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/internal/sigaction"
)

// Why not os/signal: it switches two threads back and forth for each signal that
// it enables, and has two threads more, all in all a millisecond of a start. This
// handler writes the number to a pipe (the self-pipe trick of D. J. Bernstein)
// and needs nothing of the Go runtime but the alternate stack of the thread that
// it runs on.

// pipeFD is where the handler writes.
var pipeFD uint32 //nolint:unused // the handler reads it, and is in assembly

// entry gives the address of the handler.
func entry() uintptr

func catch(nums []unix.Signal) (<-chan unix.Signal, func(), error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, nil, os.NewSyscallError("pipe2", err)
	}
	pipeFD = uint32(p[1])
	act := sigaction.To(entry())
	before := make(map[unix.Signal]*sigaction.Action, len(nums))
	release := func() {
		for n, old := range before {
			_ = sigaction.Set(n, old, nil) // it was set before
		}
	}
	for _, n := range nums {
		old := &sigaction.Action{}
		if err := sigaction.Set(n, nil, old); err != nil {
			release()
			return nil, nil, os.NewSyscallError("rt_sigaction", err)
		}
		if old.Handler == sigaction.Ignore {
			continue
		}
		if err := sigaction.Set(n, act, nil); err != nil {
			release()
			return nil, nil, os.NewSyscallError("rt_sigaction", err)
		}
		before[n] = old
	}
	out := make(chan unix.Signal, backlog)
	go read(os.NewFile(uintptr(p[0]), "signals"), out)
	return out, release, nil
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
