package supervisor

import (
	"context"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/cgroups"
	"github.com/nucleus-runtime/nucleus/core/exec"
	"github.com/nucleus-runtime/nucleus/core/lifecycle"
	"github.com/nucleus-runtime/nucleus/core/plan"
	"github.com/nucleus-runtime/nucleus/core/probe"
	"github.com/nucleus-runtime/nucleus/sdk/network/member"
)

// Run is one sandbox from its creation to its last undo, as a supervisor sees it: a
// lifecycle.Sandbox.
type Run interface {
	// What becomes of it.
	Start(ctx context.Context) error
	Wait() (exec.Result, error)
	Destroy(ctx context.Context) error
	Stop()
	Kill()
	Abandon()
	Signal(n unix.Signal)
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error
	Checkpoint(ctx context.Context, image string, leave bool) error
	Changes(ctx context.Context, out *os.File, content bool) error
	Exec(ctx context.Context, c lifecycle.Command) (*lifecycle.Process, error)
	Connect(ctx context.Context, q member.Request) (member.Families, *os.File, error)

	// What there is to wait for.
	Running() <-chan struct{}
	Ready() <-chan struct{}
	Gone() <-chan struct{}
	Abandoned() <-chan struct{}
	OnChange(changed func())

	// What is known of it.
	Plan() *plan.Plan
	Status() lifecycle.Status
	Pid() int
	InitPid() int
	Cgroup() map[string]string
	Started() time.Time
	Health() probe.State
	StatusText() string
	Master() (*os.File, error)
	Stats() (*cgroups.Stats, error)
	NetworkStats(ctx context.Context) (*lifecycle.NetworkStats, error)
}
