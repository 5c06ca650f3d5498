package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/initproto"
	"github.com/nucleus-runtime/nucleus/sdk/runtime"
)

// signalTime bounds how long the delivery of one signal may take.
const signalTime = 10 * time.Second

// refusedError is a call of the program that came to its end and did not do it.
type refusedError struct{ code int }

func (e *refusedError) Error() string { return fmt.Sprintf("the program ended with %d", e.code) }

// deliver has the program send a signal to what has a number inside, by one of its
// commands for it.
func (s *Sandbox) deliver(c runtime.Command, pid int, n unix.Signal) error {
	ctx, cancel := context.WithTimeout(context.Background(), signalTime)
	defer cancel()
	p, err := s.startProgram(ctx, c, nil, nil, runtime.WordPID, strconv.Itoa(pid), runtime.WordSignal, strconv.Itoa(int(n)))
	if err != nil {
		return err
	}
	if !p.endsWithin(ctx) {
		return context.DeadlineExceeded
	}
	code, _, err := p.Wait()
	if err == nil && code != 0 {
		err = &refusedError{code}
	}
	return err
}

// startProgram begins a call of the program, with words in the place of those of its
// command. It says what it has to say to a file, and is given another, nil for none.
func (s *Sandbox) startProgram(ctx context.Context, c runtime.Command, says, pass *os.File, words ...string) (*Process, error) {
	sp := &initproto.Spawn{}
	s.asProgram(sp)
	sp.Args, sp.Env = s.programCommand(c, words...)
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	if says == nil {
		says = null
	}
	return s.further(ctx, sp, Command{Args: sp.Args, Stdio: [3]*os.File{null, null, says}, Quiet: true, program: true, pass: pass})
}

// foreignSignals delivers signals to the workload in their order, until the sandbox ends.
func (s *Sandbox) foreignSignals() {
	for {
		select {
		case n := <-s.foreign.signals:
			// By whom one wants an end has it: the program's is the workload's.
			if err := s.deliver(s.foreign.answer.Signal, 1, n); err != nil && Ends(n) {
				s.signalProgram(n)
			}
		case <-s.done:
			return
		}
	}
}

// signalInside signals a further process inside. Its program is not ended before, or what
// it is about to make would run on; and is afterwards by SIGKILL, as it has nothing left
// to wait for.
func (p *Process) signalInside(n unix.Signal) {
	d := delivery{
		number: func() int {
			if p.s.Status() == StatusPaused { // each try would be made up for when it goes on
				return 0
			}
			return p.s.insidePID(p.id)
		},
		deliver: func(pid int) error {
			p.pending.And(^(uint64(1) << (uint(n) - 1))) // the next one is another
			return p.deliver(pid, n)
		},
		ended: p.ended,
	}
	switch done, refused := d.run(); {
	case refused && Ends(n), (done || refused) && n == unix.SIGKILL:
		p.signalProgram(n)
	}
}

// delivery is a signal on its way to a further process inside.
type delivery struct {
	number  func() int // 0 as long as there is none
	deliver func(pid int) error
	ended   <-chan struct{}
}

// refusals are as many as say that there is nothing that could be signalled.
const refusals = 5

// run delivers it once there is a number, however long that takes, and again if the call
// for it was not made or came to no end, as it may on a host that is short of everything.
func (d delivery) run() (done, refused bool) {
	no := 0
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, 200*time.Millisecond) {
		if pid := d.number(); pid > 1 {
			err := d.deliver(pid)
			if err == nil {
				return true, false
			}
			var re *refusedError
			if errors.As(err, &re) {
				no++
			}
			if no == refusals {
				return false, true
			}
		}
		select {
		case <-d.ended:
			return false, false
		case <-time.After(wait):
		}
	}
}

// deliver sends a signal to the process that has a number inside; SIGKILL to the group
// that it leads, if there is a command for that.
func (p *Process) deliver(pid int, n unix.Signal) error {
	a := p.s.foreign.answer
	if n == unix.SIGKILL && len(a.SignalGroup.Args) > 0 {
		if err := p.s.deliver(a.SignalGroup, pid, n); err == nil {
			return nil
		}
	}
	return p.s.deliver(a.Signal, pid, n)
}
