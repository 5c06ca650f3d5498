package main

import (
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/control"
	"github.com/nucleus-runtime/nucleus/core/exec"
	"github.com/nucleus-runtime/nucleus/core/state"
	"github.com/nucleus-runtime/nucleus/core/supervisor"
)

// killTime is how long a command may take to end that was killed, before its client ends
// without it: what is paused does not end, nor what a runtime's program does not pass on.
const killTime = 2 * time.Second

// wishes are what the caller of a further command wants of it: signals, and the keys to
// leave its terminal.
type wishes struct {
	c       *control.Conn
	io      *exec.Stdio
	caught  <-chan unix.Signal
	started chan struct{} // closed when the command runs
	done    chan struct{} // closed when nobody wants anything any more
	leave   chan struct{} // closed when the command is not waited for any more
	gaveUp  atomic.Bool   // it was killed, and does not end
	cut     atomic.Int32  // the signal that came before it ran, and ended the wait for that
}

// fatal are the signals that end whoever has no other use for them.
var fatal = []unix.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT}

// pass tells the supervisor. A second Ctrl-C kills, as in forward.
func (w *wishes) pass() {
	var interrupted time.Time
	var late <-chan time.Time
	var early []unix.Signal
	started, detached := w.started, w.io.Detached()
	send := func(n unix.Signal) {
		_ = w.c.Send(supervisor.VerbSignal, supervisor.SignalRequest{Signal: int(n)}) // its end is on the way
		if n == unix.SIGTERM || n == unix.SIGHUP {
			// What somebody in the sandbox has stopped would not hear of it, as timeout(1) knows.
			_ = w.c.Send(supervisor.VerbSignal, supervisor.SignalRequest{Signal: int(unix.SIGCONT)}) // as above
		}
	}
	for {
		select {
		case <-started:
			for _, n := range early {
				send(n)
			}
			started, early = nil, nil
		case n := <-w.caught:
			if started != nil && slices.Contains(fatal, n) {
				// Processes of the sandbox can hold up one that is not its program yet.
				w.cut.Store(int32(n))
				_ = w.c.Close() // the supervisor kills it
				return
			}
			if n == unix.SIGINT {
				if time.Since(interrupted) < twice {
					n = unix.SIGKILL
					if late == nil {
						late = time.After(killTime)
					}
				}
				interrupted = time.Now()
			}
			if started == nil {
				send(n)
			} else {
				early = append(early, n)
			}
		case <-detached:
			_ = w.c.Send(supervisor.VerbDetach, nil) // as above
			close(w.leave)
			return
		case <-late:
			w.gaveUp.Store(true)
			_ = w.c.Close() // the supervisor kills the command once more, as soon as that can be
			close(w.leave)
			return
		case <-w.done:
			return
		}
	}
}

// unended tells that the caller was kept waiting.
func unended(at state.Ref) error {
	return &hintedError{
		err:  &endedError{code: 128 + int(unix.SIGINT), text: fmt.Sprintf("received SIGINT twice: the command was killed, and has not ended within %s", killTime)},
		hint: "nucleus kill " + at.Name,
	}
}

// cutOff tells that a signal came before the command ran.
func cutOff(at state.Ref, n unix.Signal) error {
	return &hintedError{
		err:  &endedError{code: 128 + int(n), text: fmt.Sprintf("received %s before the command ran: it is killed", unix.SignalName(n))},
		hint: "if it should have run by then, a process of the sandbox may have stopped it: nucleus kill " + at.Name,
	}
}
