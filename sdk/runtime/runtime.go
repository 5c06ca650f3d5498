// Package runtime is what a runtime plugin implements: it runs sandboxes in the
// place of the native runtime. It is plain Go: how it travels to the core is the
// business of sdk/plugin.
package runtime

import (
	"context"
	"io"

	"github.com/nucleus-runtime/nucleus/sdk/contract"
)

// Version of the contract between core and plugin.
const Version = "1.0"

// Features of a plugin, by the optional interfaces that it implements.
const (
	FeatureExec    = "runtime.exec"
	FeatureStats   = "runtime.stats"
	FeatureRecover = "runtime.recover"
	FeatureList    = "runtime.list"
)

// What the services have in common.
type (
	// Call identifies a request.
	Call = contract.Call
	// Handle is what the plugin wants to be told again.
	Handle = contract.Handle
	// Namespace is one that is there already; its Open makes sure of that.
	Namespace = contract.Namespace
)

// Runtime runs sandboxes. A sandbox outlives the plugin's process, and each call may
// reach another one: nothing may be kept in memory alone.
type Runtime interface {
	Capabilities(ctx context.Context, instanceID string) (Capabilities, error)
	// Prepare makes all but the workload's process.
	Prepare(ctx context.Context, r *PrepareRequest) (Handle, error)
	// Start lets the workload run.
	Start(ctx context.Context, r *StartRequest) (Started, error)
	// Wait returns when the workload has ended, and tells what happens before. It may
	// be called often, at the same time and after the end, and gives the same Exit.
	// When tell fails nobody listens any more.
	Wait(ctx context.Context, r *WaitRequest, tell func(Event) error) (Exit, error)
	// Signal fails with errs.NotFoundf if nothing runs.
	Signal(ctx context.Context, r *SignalRequest) error
	// Stop asks the workload to end, kills it after the grace, and returns when it
	// has ended. An error made with errs.NotFoundf counts as success.
	Stop(ctx context.Context, r *StopRequest) error
	// Delete removes what is left, also after a Prepare that failed. An error made
	// with errs.NotFoundf counts as success.
	Delete(ctx context.Context, r *DeleteRequest) error
}

// Execer is a Runtime that can run more processes in a sandbox.
type Execer interface {
	// Exec returns when the process has ended and its output is written. The process
	// ends with the context.
	Exec(ctx context.Context, r *ExecRequest, s Streams) (Exit, error)
}

// Statser is a Runtime that can measure.
type Statser interface {
	// Stats gives one sample, or one at each interval until the context ends, the
	// sandbox does, or give fails.
	Stats(ctx context.Context, r *StatsRequest, give func(Sample) error) error
}

// Recoverer is a Runtime that can tell what has become of a sandbox.
type Recoverer interface {
	Recover(ctx context.Context, r *RecoverRequest) (Condition, error)
}

// Lister is a Runtime that can tell which sandboxes it finds.
type Lister interface {
	List(ctx context.Context, instanceID string) ([]Sandbox, error)
}

// Streams of a process. They are a plugin's to read and write only until its Exec
// returns.
type Streams struct {
	Stdin  io.Reader // nil for none; it ends when the other side ends it
	Stdout io.Writer // all output of a terminal
	Stderr io.Writer
	// Resize may be nil. Only the latest size counts, and those in between may be
	// missing. In a plugin it is closed when nothing more comes, of Stdin neither.
	Resize <-chan Size
}
