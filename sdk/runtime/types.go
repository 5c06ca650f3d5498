package runtime

import (
	"os"
	"time"
)

// Capabilities is what cannot be told from the features.
type Capabilities struct {
	TTY            bool
	UserNamespaces bool
	Networks       []string // "none", "host", "namespace"
	Mounts         []string // "bind", "tmpfs", "overlay", "idmap"
	Signals        []int    // that reach the workload; nil for all
}

// Stdio is where the workload's standard streams are: paths of pipes, or three
// times that of one terminal. They are files, so that no output is lost with a plugin.
type Stdio struct {
	Stdin    string
	Stdout   string
	Stderr   string
	Terminal bool
}

// PrepareRequest is a sandbox that is to be made.
type PrepareRequest struct {
	Call       Call
	Spec       []byte // an OCI runtime specification, config.json
	Bundle     string // the directory that holds it, the plugin's to write to
	Cgroup     string // the path of its directory
	Namespaces map[string]Namespace
	Stdio      Stdio

	// Files are the plugin's if Prepare succeeds; else the SDK closes them. In a host
	// they are sent, and stay the host's.
	Files []*os.File
}

// StartRequest is a sandbox whose workload is to run.
type StartRequest struct {
	Call   Call
	Handle Handle
}

// Process is one of the host, and known from a later one with its number by the
// time of its start: field 22 of /proc/PID/stat.
type Process struct {
	PID       int
	StartTime uint64
}

// Started is a workload that runs.
type Started struct {
	Process Process
	At      time.Time
}

// Exit is how a process has ended.
type Exit struct {
	Code      int
	Signal    int // that killed it, 0 for none
	OOMKilled bool
	At        time.Time
}

// WaitRequest is a sandbox whose end is waited for.
type WaitRequest struct {
	SandboxID  string
	InstanceID string
	Handle     Handle
}

// EventKind is what has happened.
type EventKind uint8

// The kinds. The zero value is one of a newer contract.
const (
	_ EventKind = iota
	EventStarted
	EventOOM // a process was killed for memory, not always the workload
)

// Event is something that happens before the end.
type Event struct {
	Kind EventKind
	At   time.Time
}

// SignalRequest is a signal to be sent.
type SignalRequest struct {
	Call   Call
	Handle Handle
	Signal int
	All    bool // every process, not the first alone
}

// ExecRequest is a process to be run beside the workload.
type ExecRequest struct {
	Call    Call
	Handle  Handle
	Process []byte // the process of an OCI runtime specification
}

// Size is that of a terminal.
type Size struct{ Columns, Rows uint32 }

// StatsRequest is a sandbox to be measured.
type StatsRequest struct {
	SandboxID  string
	InstanceID string
	Handle     Handle
	Interval   time.Duration // 0 for one sample
}

// Sample is what a sandbox has used.
type Sample struct {
	At         time.Time
	CPUUser    time.Duration
	CPUSystem  time.Duration
	Memory     uint64 // bytes
	MemoryPeak uint64
	PIDs       uint64
	IORead     uint64
	IOWrite    uint64
	OOMKills   uint64
}

// StopRequest is a sandbox whose workload is to end.
type StopRequest struct {
	Call   Call
	Handle Handle
	Signal int
	Grace  time.Duration
}

// DeleteRequest is a sandbox that is to be removed.
type DeleteRequest struct {
	Call   Call
	Handle Handle // zero if Prepare gave none, or its answer was lost
	Force  bool   // kill what runs
}

// State is what has become of a sandbox.
type State uint8

// The states.
const (
	Lost     State = iota // nothing of it can be found
	Prepared              // and not started
	Running
	Exited
)

// RecoverRequest is a sandbox that was another process's.
type RecoverRequest struct {
	SandboxID  string
	InstanceID string
	Handle     Handle
}

// Condition is what has become of a sandbox.
type Condition struct {
	State   State
	Process Process // of Running
	Exit    Exit    // of Exited
}

// Sandbox is one that a plugin finds.
type Sandbox struct {
	ID     string
	Handle Handle
	State  State
}
