// Package network owns what a sandbox asks of the backend that connects it: what is
// to be reached, and in which order it is asked. It starts no plugin, and knows none:
// a Source does. The words are those of sdk/network.
package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"

	"github.com/nucleus-runtime/nucleus/core/plan"
	"github.com/nucleus-runtime/nucleus/sdk/network"
)

// Want is what a job asks for.
type Want struct {
	// Backend is the name of the plugin.
	Backend string
	// Config is the block for the plugin, nil for none, and Eval what it may refer to.
	Config   hcl.Body
	Eval     *hcl.EvalContext
	Hostname string
	Ports    []network.PortMap
	DNS      *network.DNS
	Egress   network.Egress
	// Member is the sandbox's place in its stack, nil if it is of none.
	Member *network.Member
	// WithoutInit are, by rule, jobs of it that have none.
	WithoutInit [][]string
}

// Initless is the first rule with a job that has no init, which makes the sockets for
// what comes from other jobs; "" if there is none.
func (w Want) Initless() (rule int, job string) {
	for i, all := range w.WithoutInit {
		if len(all) > 0 {
			return i, all[0]
		}
	}
	return -1, ""
}

// JobsRule is the place of the first rule that has jobs, -1 if none has.
func (w Want) JobsRule() int {
	return slices.IndexFunc(w.Egress.Allow, func(r network.Rule) bool { return len(r.Jobs) > 0 })
}

// Place is a network namespace that is to be connected.
type Place struct {
	NetNS  network.Namespace
	UserNS *network.UserNS
	// Files are what Prepare wanted opened, and Missing what this kernel has not.
	Files   []*os.File
	Missing []string
	// OwnStack: what the workload has for a network stack is not the namespace's.
	OwnStack bool
}

// Link connects one sandbox. Its methods are called one after the other, but for
// Watch, Status and Gone.
type Link interface {
	// Prepare says what is to be opened inside, for a workload that uses the namespace's
	// network stack or has one of its own.
	Prepare(ctx context.Context, ownStack bool) (*network.PrepareResponse, error)
	// Attach connects the sandbox: its policy is in force when it returns.
	Attach(ctx context.Context, at Place) (*network.AttachResponse, error)
	// Detach undoes both, whether or not they have been called.
	Detach(ctx context.Context) error
	// DialsMembers tells that it asks the core for connections to other jobs of the stack:
	// Attach is to have a file for that.
	DialsMembers() bool
	// Record is for a Detach that somebody else may have to make.
	Record() Record
	// Watch tells what the policy refuses, until ctx ends or the backend does.
	Watch(ctx context.Context, tell func(network.Denial)) error
	// Status tells how the attachment fares; nil for a backend that does not.
	Status(ctx context.Context) (*network.Status, error)
	// Gone is closed when a backend that has to live has ended.
	Gone() <-chan struct{}
	// Close ends the backend.
	Close()
}

// Source reaches backends. It may be asked by several sandboxes at once.
type Source interface {
	// Open starts a backend for one sandbox.
	Open(ctx context.Context, sandbox string, w Want) (Link, error)
	// Detach is for the sandbox of a supervisor that is gone.
	Detach(ctx context.Context, sandbox string, r Record) error
	// Collect has every backend that can remove what it has made for sandboxes which keep,
	// by their ids, does not have. Nobody may open a link meanwhile.
	Collect(ctx context.Context, keep map[string]Record) ([]Collected, error)
}

// Collected is what a backend has removed that was no sandbox's.
type Collected struct {
	Backend string
	Removed []string // in the backend's words
}

// Record is what another process needs to disconnect a sandbox.
type Record struct {
	Backend string `json:"backend"`
	// Config is what the backend was configured with, as it travels, without what must
	// not be shown.
	Config []byte `json:"config,omitempty"`
	// Pinned: only a plugin whose digest the operator names may be called.
	Pinned   bool           `json:"pinned,omitempty"`
	IfName   string         `json:"ifname"`
	Prepared network.Handle `json:"prepared,omitzero"`
	Handle   network.Handle `json:"handle,omitzero"`
}

// IfName is what the sandbox's interface is called.
const IfName = "eth0"

// Alone is what is said of a job with such a rule that is not started as one of a stack.
const Alone = "other jobs are reached within a stack alone, and this one is started by itself"

// JobsOrigin is where a job says which others a rule lets it reach.
func JobsOrigin(rule int) string { return fmt.Sprintf("network.egress.allow[%d].jobs", rule) }

// WantOf gives what a plan asks for, for a sandbox that has a place in a stack or none.
func WantOf(p *plan.Plan, m *network.Member) (Want, error) {
	n := p.Network
	w := Want{Backend: n.Backend, Config: n.Config, Eval: n.Eval, Hostname: p.Hostname, Member: m}
	for _, x := range n.Publish {
		a, err := netip.ParseAddr(x.HostIP)
		if err != nil {
			return w, err
		}
		w.Ports = append(w.Ports, network.PortMap{HostIP: a, HostPort: x.HostPort, ContainerPort: x.Container, Protocol: x.Protocol})
	}
	if len(n.DNS) > 0 {
		w.DNS = &network.DNS{}
		for _, s := range n.DNS {
			a, err := netip.ParseAddr(s)
			if err != nil {
				return w, err
			}
			w.DNS.Servers = append(w.DNS.Servers, a)
		}
	}
	var err error
	if w.Egress, err = egressOf(n.Egress); err != nil {
		return w, err
	}
	for _, r := range n.Egress.Allow {
		w.WithoutInit = append(w.WithoutInit, r.WithoutInit)
	}
	if i := w.JobsRule(); i >= 0 && m == nil {
		hint := "nucleus up -config " + p.File
		if strings.HasPrefix(p.File, "<") { // it came on standard input
			hint = "nucleus up -config - -stack NAME"
		}
		return w, &Error{
			Backend: w.Backend, Origin: JobsOrigin(i), Hint: hint,
			Err: errors.New(Alone),
		}
	}
	return w, nil
}

var verdicts = map[string]network.Verdict{plan.EgressDeny: network.Deny, plan.EgressPublic: network.Public}

func egressOf(in plan.Egress) (network.Egress, error) {
	verdict, ok := verdicts[in.Default]
	if !ok {
		return network.Egress{}, fmt.Errorf("egress: no verdict %q", in.Default)
	}
	out := network.Egress{Default: verdict}
	for _, r := range in.Allow {
		to := network.Rule{Names: r.Names, Jobs: r.Jobs}
		for _, c := range r.CIDRs {
			p, err := netip.ParsePrefix(c)
			if err != nil {
				return out, err
			}
			to.CIDRs = append(to.CIDRs, p)
		}
		for _, x := range r.Ports {
			to.Ports = append(to.Ports, network.Ports{Protocol: x.Protocol, First: x.Port, Last: x.Port})
		}
		out.Allow = append(out.Allow, to)
	}
	return out, nil
}

// Error is a backend that could not be reached, or that refuses.
type Error struct {
	Backend string
	// Origin is what of the job it is about, "" for the network as a whole.
	Origin string
	Hint   string
	Err    error
}

func (e *Error) Error() string {
	plugin := fmt.Sprintf("plugin %q: ", e.Backend)
	return "network " + plugin + strings.TrimPrefix(e.Err.Error(), plugin) // which the host of plugins may have said
}

func (e *Error) Unwrap() error { return e.Err }
