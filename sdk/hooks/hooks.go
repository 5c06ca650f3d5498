// Package hooks is what a hooks plugin implements: it is called at the boundaries
// of a sandbox's phases. It is plain Go: how it travels to the core is the
// business of sdk/plugin.
package hooks

import (
	"context"

	"github.com/nucleus-runtime/nucleus/sdk/contract"
)

// Version of the contract between core and plugin.
const Version = "1.0"

// Boundary is a moment of a sandbox's life.
type Boundary uint32

// The boundaries by their phases. Init is born in its control group, and told what to
// build before it is let go: so they come as PreNamespaces, PreCgroups,
// PostNamespaces, PreFS, PostCgroups, PostFS and from there as they stand.
const (
	PreNamespaces Boundary = iota + 1
	PostNamespaces
	PreCgroups
	PostCgroups
	PreFS
	PostFS
	PreSecurity
	PostSecurity
	PreExec
	PostExec
	Stopping
	Stopped
	Cleanup // always, even if nothing came before
)

var names = [...]string{
	"", "PRE_NAMESPACES", "POST_NAMESPACES", "PRE_CGROUPS", "POST_CGROUPS", "PRE_FS", "POST_FS", "PRE_SECURITY", "POST_SECURITY",
	"PRE_EXEC", "POST_EXEC", "STOPPING", "STOPPED", "CLEANUP",
}

func (b Boundary) String() string {
	if int(b) < len(names) && b > 0 {
		return names[b]
	}
	return "UNKNOWN"
}

// Mask is a set of boundaries.
type Mask uint64

// At makes a Mask.
func At(bs ...Boundary) Mask {
	var m Mask
	for _, b := range bs {
		m |= 1 << b
	}
	return m
}

// Has tells whether a boundary is in the set.
func (m Mask) Has(b Boundary) bool { return m&(1<<b) != 0 }

// Call identifies a request.
type Call = contract.Call

// Subscription is what a plugin wants to hear of.
type Subscription struct {
	At    Mask
	Order int32 // lower comes first
}

// Event is one boundary that was reached.
type Event struct {
	Boundary    Boundary
	SandboxName string
	Pid         int    // of init, later of the workload; 0 for none
	Plan        []byte // JSON; from PreFS to Stopped
	// Cause is how it ended, at Stopped and Cleanup: exit, signal, oom, timeout, stopped,
	// runtime. At Stopping it is stopped or timeout.
	Cause    string
	ExitCode int
}

// Mutation restricts further, or adds variables and annotations. It is taken of
// PreNamespaces, PreCgroups, PreFS and PreSecurity only.
type Mutation struct {
	AddEnv           map[string]string
	DropCapabilities []string          // "CAP_CHOWN"
	LowerRlimits     map[string]uint64 // soft and hard, by setrlimit(2)'s names: "nofile"
	Annotations      map[string]string
}

// Answer to an Event.
type Answer struct {
	Veto     string // a reason ends the start; of Pre boundaries only
	Mutation Mutation
}

// Handler is a hooks plugin.
type Handler interface {
	// Describe is called after the configuration, once for each instance.
	Describe(ctx context.Context, instanceID string) (Subscription, error)
	OnPhase(ctx context.Context, call Call, e Event) (Answer, error)
}
