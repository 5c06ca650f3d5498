// Package audit owns the event stream of a sandbox: one versioned schema of
// JSON lines for events and audit alike. An event is written after the fact
// and never before it, and no event carries an environment value, a secret or
// the arguments of a command.
package audit

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"

	"golang.org/x/sys/unix"
)

// SchemaVersion is the version of Event.
const SchemaVersion = 1

// Type names what happened.
type Type string

// The events of a sandbox's life.
const (
	Refused         Type = "run.refused"      // nothing was touched
	Created         Type = "sandbox.created"  // its directory, name and journal exist
	Namespaces      Type = "namespaces.up"    // init runs in them
	Cgroup          Type = "cgroup.up"        // limits are set, init is attached
	Filesystem      Type = "fs.up"            // the new root stands
	RuntimePrepared Type = "runtime.prepared" // a runtime plugin has said how the sandbox is run
	MountAudit      Type = "fs.audited"       // mounts read back and as planned
	ContextVerified Type = "context.verified" // the context inside is the one that was named
	RootfsVerified  Type = "rootfs.verified"  // the digest is the pinned one
	SecretsPlaced   Type = "secrets.placed"   // init has the values, by name
	LoanLost        Type = "secrets.lost"     // the right to values has ended before the sandbox
	Security        Type = "security.up"      // capabilities, Landlock, seccomp are on
	Posture         Type = "posture.verified" // read back from the host and as planned
	Traced          Type = "seccomp.traced"   // what the workload called in seccomp's trace mode
	PostureFailed   Type = "posture.failed"   // the workload did not run
	DegradedBy      Type = "degraded"         // a default protection is missing
	Started         Type = "workload.started" // execve has happened
	Ready           Type = "workload.ready"   // its readiness probe has passed
	HealthChanged   Type = "health.changed"   // what the health probe says
	NotifyFailed    Type = "notify.failed"    // the service manager could not be told
	ExecStarted     Type = "exec.started"     // a further process of the sandbox, its posture verified
	ExecEnded       Type = "exec.exited"      // with its truth
	Paused          Type = "sandbox.paused"   // every process of it is stopped
	Resumed         Type = "sandbox.resumed"  // and goes on
	// Checkpointed tells of an image of the sandbox's state that is there, and
	// CheckpointFailed of one that could not be made.
	Checkpointed     Type = "sandbox.checkpointed"
	CheckpointFailed Type = "sandbox.checkpoint_failed"
	Signalled        Type = "signal.forwarded"    // to the workload
	TimedOut         Type = "workload.timeout"    // wall clock limit reached
	Stopping         Type = "workload.stopping"   // stop signal sent
	Killed           Type = "sandbox.killed"      // everything in it
	OOM              Type = "oom.killed"          // the kernel's OOM killer was there
	Exited           Type = "workload.exited"     // with its truth
	Restarting       Type = "workload.restarting" // it is started again
	HookRan          Type = "hook.ran"            // a hook of the job, without a fault
	HookFailed       Type = "hook.failed"         // or with one
	HookChanged      Type = "hook.changed"        // hooks plugins narrowed the plan
	NetworkUp        Type = "network.up"          // attached, its policy in force
	NetworkMissing   Type = "network.missing"     // the backend does without something that this sandbox has not
	NetworkDenied    Type = "network.denied"      // the policy has refused a flow, or a name
	NetworkUnreached Type = "network.unreached"   // what keeps a job of the stack from being reached, that is not its own doing
	NetworkLost      Type = "network.lost"        // the backend has ended before the sandbox
	NetworkStats     Type = "network.stats"       // what went through, at the end
	Undone           Type = "undo.done"           // one effect is gone again
	UndoFailed       Type = "undo.failed"         // and is owed to gc
	Removed          Type = "sandbox.removed"     // nothing is left
	Failed           Type = "sandbox.failed"      // it never ran, or its runtime broke
	Collected        Type = "gc.collected"        // a dead sandbox was cleaned up
	// NetworkCollected: a backend has removed what belonged to no sandbox.
	NetworkCollected Type = "gc.network"
)

// Event is one line.
type Event struct {
	Version int            `json:"v"`
	Seq     int            `json:"seq"`
	Time    string         `json:"time"` // RFC 3339, UTC, microseconds
	Sandbox string         `json:"sandbox,omitempty"`
	Name    string         `json:"name,omitempty"`
	Type    Type           `json:"type"`
	Error   string         `json:"error,omitempty"`
	Detail  map[string]any `json:"detail,omitempty"`
}

// Log writes events to all its sinks.
type Log struct {
	mu    sync.Mutex
	id    string
	name  string
	seq   int
	sinks []io.Writer
	now   func() time.Time
	err   error
}

// NewLog makes a log. A sandbox's begins without id and name, for a run may be
// refused before it has any.
func NewLog(id, name string, sinks ...io.Writer) *Log {
	return &Log{id: id, name: name, sinks: sinks, now: time.Now}
}

// Begin gives the log its sandbox, and one more sink: the sandbox's own file.
func (l *Log) Begin(id, name string, own io.Writer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.id, l.name = id, name
	l.sinks = append(l.sinks, own)
}

// Emit writes one event. An event that cannot be written does not stop a
// sandbox that runs; Err tells of it.
func (l *Log) Emit(t Type, err error, detail map[string]any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.sinks) == 0 {
		return
	}
	l.seq++
	e := Event{Version: SchemaVersion, Seq: l.seq, Time: l.now().UTC().Format("2006-01-02T15:04:05.000000Z07:00"), Sandbox: l.id, Name: l.name, Type: t, Detail: detail}
	if err != nil {
		e.Error = Clean(err.Error())
	}
	b, merr := e.append(make([]byte, 0, 512))
	if merr != nil {
		l.err = errors.Join(l.err, merr)
		return
	}
	for _, s := range l.sinks {
		if _, werr := s.Write(b); werr != nil && l.err == nil {
			l.err = fmt.Errorf("writing events: %w", werr)
		}
	}
}

// Err gives the first failure to write.
func (l *Log) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// Clean makes text from outside safe to show: control characters, which could
// forge lines or drive a terminal, become spaces, and so do those that turn the
// direction of writing, by which text can look like another (CVE-2021-42574).
func Clean(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) {
			return ' '
		}
		return r
	}, s)
}

// OpenSink opens where a user wants events: a file, appended to, or fd:N. Bounded is how to
// write to it.
func OpenSink(where string) (*os.File, error) {
	if n, ok := strings.CutPrefix(where, "fd:"); ok {
		fd, err := strconv.Atoi(n)
		if err != nil || fd < 1 {
			return nil, fmt.Errorf("events to %q: write fd:N with N > 0", where)
		}
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil {
			return nil, fmt.Errorf("events to %q: %w", where, os.NewSyscallError("fcntl", err))
		}
		unix.CloseOnExec(fd)
		return os.NewFile(uintptr(fd), where), nil
	}
	f, err := os.OpenFile(where, os.O_WRONLY|os.O_CREATE|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("events: %w", err)
	}
	return f, nil
}
