package exec

import (
	"fmt"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/initproto"
)

// Cause says why a sandbox ended.
type Cause string

// The causes.
const (
	CauseExit    Cause = "exit"    // the workload returned
	CauseSignal  Cause = "signal"  // a signal that we did not send ended it
	CauseOOM     Cause = "oom"     // the kernel's OOM killer ended it
	CauseTimeout Cause = "timeout" // the job's timeout was reached
	CauseStopped Cause = "stopped" // the caller stopped it
	CauseProbe   Cause = "probe"   // a probe of the job says that it does not work
	CauseRuntime Cause = "runtime" // Nucleus itself failed
	// CauseCheckpointed: its state was saved, to be restored, and the sandbox ended then.
	CauseCheckpointed Cause = "checkpointed"
)

// Peaks are the resources that the sandbox used at most, as far as the host's
// cgroups tell.
type Peaks struct {
	MemoryBytes *uint64       `json:"memory_bytes,omitempty"`
	Pids        *uint64       `json:"pids,omitempty"`
	CPU         time.Duration `json:"cpu,omitempty"`
	OOMKills    uint64        `json:"oom_kills,omitempty"`
}

// Result is how a run ended.
type Result struct {
	ID       string        `json:"id"`
	Name     string        `json:"name"`
	Cause    Cause         `json:"cause"`
	ExitCode int           `json:"exit_code"` // 0..255, or 128+n for signal n
	Signal   int           `json:"signal,omitempty"`
	Peaks    Peaks         `json:"peaks"`
	Started  time.Time     `json:"started,omitzero"`
	Duration time.Duration `json:"duration"`
	// Restarts is how often the workload was started again; the rest is of its last run.
	Restarts int `json:"restarts,omitempty"`
	// OutputError tells that output of the workload was lost, for a full disk for
	// instance, after the workload believed it written.
	OutputError string `json:"output_error,omitempty"`
	// HooksError tells what the poststop hooks could not do.
	HooksError string `json:"hooks_error,omitempty"`
	// NetworkError tells that the network has ended before the sandbox, which went on.
	NetworkError string `json:"network_error,omitempty"`
	// Network is what went through the sandbox's network, if its backend counts.
	Network *Network `json:"network,omitempty"`
	// Syscalls is what the sandbox's processes called in seccomp's trace mode, by name.
	Syscalls []TracedCall `json:"syscalls,omitempty"`
	// EventsError tells that an event could not be written.
	EventsError string `json:"events_error,omitempty"`
}

// TracedCall is a system call that was made in seccomp's trace mode.
type TracedCall struct {
	Name  string `json:"name"`
	Count uint64 `json:"count"`
	// Refused is how many of them the job's filter does not admit; Answer is what it says to
	// the first of these, an errno by its name or what else becomes of the caller.
	Refused uint64 `json:"refused,omitempty"`
	Answer  string `json:"answer,omitempty"`
	// Args are the first one's arguments, if the filter decides the call by them.
	Args []uint64 `json:"args,omitempty"`
	// Closed: they were refused in the trace as well.
	Closed bool `json:"closed,omitempty"`
}

// Network counts what went through a network.
type Network struct {
	Denied uint64 `json:"denied"` // flows and names that the policy refused
	Flows  []Flow `json:"flows,omitempty"`
	// Denials are at most 32 different ones of them, in the order in which they came.
	Denials []Denial `json:"denials,omitempty"`
}

// Denial is a flow, or a question for a name, that the policy refused.
type Denial struct {
	Protocol    string `json:"protocol"`
	Destination string `json:"destination,omitempty"`
	Name        string `json:"name,omitempty"`
	Reason      string `json:"reason"`
	Where       string `json:"where,omitempty"` // the line of the job that refuses it
	Count       uint64 `json:"count"`
}

// Flow counts what went to one name, or with none to all that was reached by address.
type Flow struct {
	Name        string `json:"name,omitempty"`
	Connections uint64 `json:"connections"`
	RxBytes     uint64 `json:"rx_bytes"`
	TxBytes     uint64 `json:"tx_bytes"`
}

// ExitCode gives the code that a shell would show for a wait status.
func ExitCode(ws syscall.WaitStatus) (code, signal int) {
	if ws.Signaled() {
		return 128 + int(ws.Signal()), int(ws.Signal())
	}
	return ws.ExitStatus(), 0
}

// The exit codes of Nucleus itself, as users of Docker and Podman expect them.
const (
	CodeRuntime       = 125
	CodeNotExecutable = 126
	CodeNotFound      = 127
)

// CommandError tells that the workload's program could not be executed.
type CommandError struct {
	Command string
	Code    int
	Errno   syscall.Errno
	Hint    string // the remedy, if one is known
}

func (e *CommandError) Error() string {
	if e.Code == CodeNotFound {
		return fmt.Sprintf("command %q: not found in the sandbox", e.Command)
	}
	return fmt.Sprintf("command %q: cannot be executed: %s", e.Command, e.Errno.Error())
}

func (e *CommandError) Unwrap() error { return e.Errno }

// StageError tells that stage 2 could not put on a restriction.
type StageError struct {
	Step  initproto.Step
	Index int
	Errno syscall.Errno
}

func (e *StageError) Error() string {
	if e.Errno == 0 {
		return fmt.Sprintf("preparing the workload ended early, at: %s", e.Step)
	}
	return fmt.Sprintf("preparing the workload: %s: %s", e.Step, e.Errno.Error())
}

func (e *StageError) Unwrap() error { return e.Errno }

// StageFailure turns what init tells of stage 2's end into an error, nil if
// stage 2 had become the workload.
func StageFailure(x initproto.Exited, command string) error {
	if x.Step == initproto.StepNone {
		return nil
	}
	errno := syscall.Errno(x.Errno)
	if x.Step == initproto.StepExec {
		code := CodeNotExecutable
		if errno == unix.ENOENT || errno == unix.ENOTDIR {
			code = CodeNotFound
		}
		return &CommandError{Command: command, Code: code, Errno: errno}
	}
	return &StageError{Step: x.Step, Index: int(x.ExecIndex), Errno: errno}
}
