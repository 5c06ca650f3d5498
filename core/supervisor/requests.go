package supervisor

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/control"
	"github.com/nucleus-runtime/nucleus/core/exec"
)

// The verbs of the control protocol, with the bodies of their requests and answers.
// An answer of a verb without one is empty.
const (
	VerbState   = "state"   // answer: Record
	VerbStart   = "start"   // opens the start gate
	VerbRestart = "restart" // ends the workload as the job says, and starts it again; answers when it is ready
	VerbSignal  = "signal"  // SignalRequest
	VerbStop    = "stop"    // as the job says; answers when it was asked
	VerbKill    = "kill"    // at once
	VerbPause   = "pause"
	VerbResume  = "resume"
	// VerbCheckpoint saves the sandbox's state: CheckpointRequest. It answers when there
	// is an image, and the sandbox has ended unless it is to go on. A client that goes away
	// before takes the image with it.
	VerbCheckpoint = "checkpoint"
	VerbStats      = "stats" // answer: Stats
	// VerbDiff writes what the sandbox has changed in its overlay to the descriptor that
	// comes with DiffRequest: a stream of package changes. It answers when all is written.
	VerbDiff = "diff"
	VerbWait = "wait" // answers with Ended when the sandbox is gone
	// VerbExec starts a command: ExecRequest, and its three standard streams unless it
	// has a terminal. "started" comes with Started, and the terminal's master. The
	// client may then send "signal" or "detach"; "exited" with Exited is last. A client that goes
	// away before that takes the command with it, unless it is detached.
	VerbExec = "exec"
	// VerbDetach leaves a command with a terminal running: "detached" is last.
	VerbDetach = "detach"
	// VerbAttach connects a client: "attached" comes with Attached, and descriptors to
	// read output from, one for each stream, and to write input to, if there is any.
	// Then it is VerbWait.
	VerbAttach = "attach"
	// VerbConnect connects another member of the sandbox's stack: ConnectRequest; answer:
	// Connected, and a socket.
	VerbConnect = "connect"

	KindStarted  = "started"
	KindExited   = "exited"
	KindAttached = "attached"
	KindDetached = "detached"
)

// SignalRequest names a signal by its number.
type SignalRequest struct {
	Signal int `json:"signal"`
}

// signalOf is what a message of VerbSignal asks for.
func signalOf(m control.Message) (unix.Signal, error) {
	var r SignalRequest
	if err := m.Decode(&r); err != nil {
		return 0, err
	}
	if r.Signal < 1 || r.Signal > 64 {
		return 0, &control.Error{Code: control.CodeBadRequest, Text: fmt.Sprintf("signal %d: from 1 to 64", r.Signal)}
	}
	return unix.Signal(r.Signal), nil
}

// CheckpointRequest is an image that is to be made.
type CheckpointRequest struct {
	Image        string `json:"image"` // absolute; nothing is there, or an empty directory
	LeaveRunning bool   `json:"leave_running,omitempty"`
}

// DiffRequest asks for the changes in an overlay.
type DiffRequest struct {
	Content bool `json:"content,omitempty"` // what is in files as well
}

// ExecRequest is a command beside the workload.
type ExecRequest struct {
	Args []string   `json:"args"`
	Env  []string   `json:"env,omitempty"`
	Cwd  string     `json:"cwd,omitempty"`
	User *exec.User `json:"user,omitempty"`
	// Account is a user by name instead: USER[:GROUP].
	Account string    `json:"account,omitempty"`
	TTY     bool      `json:"tty,omitempty"`
	Size    exec.Size `json:"size,omitzero"` // of the terminal
	Detach  bool      `json:"detach,omitempty"`
}

// Started tells of a command that runs.
type Started struct {
	Pid int `json:"pid"` // as the host sees it
}

// Exited tells the end of a command.
type Exited struct {
	ExitCode int    `json:"exit_code"`
	Signal   int    `json:"signal,omitempty"`
	Error    string `json:"error,omitempty"` // why it could not be run, or its end is not known
}

// Attached tells which descriptors were passed.
type Attached struct {
	Terminal bool `json:"terminal"` // one to read, one that is the terminal's master
	Input    bool `json:"input"`    // the last one is to be written to
}
