package rundir

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/internal/procid"
)

// Process is a process, and never another that has got its number.
type Process struct {
	PID int
	fd  int
}

func open(pid int) (*Process, error) {
	if pid <= 1 {
		return nil, fmt.Errorf("process %d is no plugin's", pid)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, os.NewSyscallError("pidfd_open", err)
	}
	return &Process{pid, fd}, nil
}

// Close lets go of it.
func (p *Process) Close() { _ = unix.Close(p.fd) }

// Alive tells whether it runs. One that nobody has waited for yet does not.
func (p *Process) Alive() bool {
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}, 0)
		if !errors.Is(err, unix.EINTR) {
			return err == nil && n == 0
		}
	}
}

// Wait waits for its end.
func (p *Process) Wait(ctx context.Context) error {
	for pause := 100 * time.Microsecond; p.Alive(); pause = min(2*pause, 10*time.Millisecond) {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
	return nil
}

// pidfdGroup is PIDFD_SIGNAL_PROCESS_GROUP.
const pidfdGroup = 1 << 2

// Kill ends it, and waits. Before Linux 6.9 its group has no descriptor, and what else
// is in there is left to its control group: a number may be another's by then.
func (p *Process) Kill(ctx context.Context) error {
	err := unix.PidfdSendSignal(p.fd, unix.SIGKILL, nil, pidfdGroup)
	if errors.Is(err, unix.EINVAL) {
		err = unix.PidfdSendSignal(p.fd, unix.SIGKILL, nil, 0)
	}
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return os.NewSyscallError("pidfd_send_signal", err)
	}
	if err := p.Wait(ctx); err != nil {
		return fmt.Errorf("waiting for the end of process %d: %w", p.PID, err)
	}
	return nil
}

// startOf is procid's, as a number.
func startOf(pid int) (uint64, error) {
	start, err := procid.Start(pid)
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(start, 10, 64)
}
