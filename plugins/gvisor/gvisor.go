// Package gvisor says how a sandbox is run by gVisor's runsc. It starts no sandbox
// and touches none.
package gvisor

import (
	"context"
	"sync"

	"github.com/nucleus-runtime/nucleus/sdk/config"
	"github.com/nucleus-runtime/nucleus/sdk/errs"
	"github.com/nucleus-runtime/nucleus/sdk/runtime"
)

// Config is the config block of a job's runtime block.
type Config struct {
	Runsc        string `hcl:"runsc,optional" desc:"The runsc to run. Without it, one is looked for where nucleus and gVisor's packages put it." format:"abs_path"`
	SHA256       string `hcl:"sha256,optional" desc:"What runsc must be: the SHA-256 of the file, in hexadecimal digits." pattern:"^[0-9a-f]{64}$"`
	Platform     string `hcl:"platform,optional" desc:"How gVisor sees the workload's system calls: by seccomp's SIGSYS (systrap), by hardware virtualization (kvm), or by ptrace(2), which is slow." default:"systrap" enum:"systrap,kvm,ptrace"`
	NetworkStack string `hcl:"network_stack,optional" desc:"Whose TCP/IP the workload gets: host is the kernel's, in the sandbox's network namespace; own is gVisor's; auto is gVisor's where there is no network, and else the kernel's." default:"auto" enum:"auto,host,own"`
}

// Runtime is gVisor.
type Runtime struct {
	runscs places

	mu        sync.Mutex
	instances map[string]Config
}

var (
	_ runtime.Runtime           = (*Runtime)(nil)
	_ config.Configurer[Config] = (*Runtime)(nil)
)

// New makes one that knows no sandbox.
func New() *Runtime {
	return &Runtime{runscs: wellKnown(), instances: map[string]Config{}}
}

// Configure takes one sandbox's part. What is wrong with it whatever the sandbox is
// the schema's to say.
func (r *Runtime) Configure(_ context.Context, in config.Instance, c Config) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.instances[in.ID] = c
	return nil
}

// unconfigured is a sandbox whose job has no config block.
var unconfigured = Config{Platform: "systrap", NetworkStack: "auto"}

func (r *Runtime) configuration(id string) Config {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c, ok := r.instances[id]; ok {
		return c
	}
	return unconfigured
}

// Prepare says how.
func (r *Runtime) Prepare(ctx context.Context, q *runtime.PrepareRequest) (*runtime.Prepared, error) {
	c := r.configuration(q.Call.InstanceID)
	stack, err := stackFor(c.NetworkStack, q.Network)
	if err != nil {
		return nil, err
	}
	if q.Checkpoint && stack == stackSandbox {
		return nil, errs.ConfigErrorf(errs.Path("network_stack"), `what gVisor's own stack has taken over from one network is not in another when it is restored: leave network_stack out, or checkpoint`)
	}
	spec, err := rewrite(q.Spec, stack)
	if err != nil {
		return nil, err
	}
	devices, err := platformDevices(c.Platform)
	if err != nil {
		return nil, err
	}
	bin, err := r.runscs.find(ctx, c.Runsc)
	if err != nil {
		return nil, err
	}
	g := globals{network: stack, platform: c.Platform, hostSockets: spec.notifies()}
	out := &runtime.Prepared{
		Program:    runtime.Program{Path: bin.path, SHA256: c.SHA256, Libraries: bin.dynamic, Devices: devices},
		Run:        g.run(),
		Exec:       g.exec(),
		Signal:     g.signal(),
		OwnNetwork: stack != stackHost,
		Facts:      map[string]string{"version": bin.version, "platform": c.Platform, "network_stack": stack},
	}
	if bin.groups {
		out.SignalGroup = g.signalGroup()
	}
	switch {
	case !q.Checkpoint:
	case !bin.saves:
		return nil, errs.ConfigErrorf(errs.Path("runsc"), "%s is %s, and one of %s or later is needed for checkpoints; %s", bin.path, bin.version, savesSince, remedy)
	default:
		out.Checkpoint = g.checkpoint()
	}
	if out.Spec, err = spec.json(); err != nil {
		return nil, err
	}
	return out, nil
}
