// Package network is what a network plugin implements: it connects sandboxes. It
// is plain Go: how it travels to the core is the business of sdk/plugin.
package network

import (
	"context"

	"github.com/nucleus-runtime/nucleus/sdk/contract"
)

// Version of the contract between core and plugin.
const Version = "1.0"

// Features of a plugin, by the optional interfaces that it implements.
const (
	FeaturePrepare = "network.prepare"
	FeatureStatus  = "network.status"
	FeatureGC      = "network.gc"
	FeatureWatch   = "network.watch"
	FeatureStack   = "network.stack"
	// FeatureDialMember is of a MemberDialer.
	FeatureDialMember = "network.dial-member"
)

// What the services have in common.
type (
	// Call identifies a request.
	Call = contract.Call
	// Handle is what the plugin wants to be told again.
	Handle = contract.Handle
	// Namespace is the sandbox's; its Open makes sure of that.
	Namespace = contract.Namespace
)

// Network connects sandboxes. Nothing may be kept in memory alone: the next call
// may reach another process.
type Network interface {
	// Attach connects one sandbox. What r.Egress says is enforced before it returns,
	// or the call fails with errs.Preconditionf: nothing runs before its policy.
	Attach(ctx context.Context, r *AttachRequest) (*AttachResponse, error)
	// Detach undoes what Prepare and Attach have made for one sandbox, and says what
	// was removed. It is called also where they failed, never came, or are undone
	// already, and then removes what it finds. An error made with errs.NotFoundf
	// counts as success; one made with errs.Residue tells what is left.
	Detach(ctx context.Context, r *DetachRequest) (removed []string, err error)
}

// Preparer is a Network with something to do before there is a namespace: what all
// sandboxes share, and saying what it wants opened inside this one.
type Preparer interface {
	Prepare(ctx context.Context, r *PrepareRequest) (*PrepareResponse, error)
}

// Checker is a Network that can compare what is with what Attach has made.
type Checker interface {
	Status(ctx context.Context, r *StatusRequest) (*Status, error)
}

// Watcher is a Network that tells what its policy refuses.
type Watcher interface {
	// Watch tells of denials until ctx ends, or the sandbox is detached and there is
	// nothing left to tell: those from before it is called, too, as far as they are
	// kept. What is alike and comes fast is told once, with a Count.
	// There is one Watch for an attachment.
	Watch(ctx context.Context, r *WatchRequest, tell func(Denial) error) error
}

// Joiner is a Network that connects the sandboxes of a stack with each other. A policy
// whose rules have Jobs comes to no other.
//
// Between two sandboxes passes what a rule of the one has with the other's job, and
// nothing else: the name of the job leads, from inside the first, to the sandbox that
// is attached as this member of the same stack and of the same state root at the
// moment, whichever was there first and however often it is attached anew. Whether its
// address is a way as well is the network's choice, but it is none to whoever has the
// address later. The other begins nothing by that rule. While there is no such sandbox,
// flows to it are refused, and its name does not exist or leads nowhere.
type Joiner interface {
	// JoinsStacks does nothing: to have it is the promise.
	JoinsStacks()
}

// MemberDialer is a Joiner without a way of its own from one sandbox to another. The core
// makes the connections for it: where the policy has jobs, one more descriptor comes with
// Attach, MembersFile, on which they are asked for (package member). What the core gives
// is a socket of the other sandbox's network namespace, which sees its own address as
// the one who asks.
type MemberDialer interface {
	Joiner
	// DialsMembers does nothing: to have it is what the core asks for.
	DialsMembers()
}

// MembersFile is the name, among AttachRequest.Files, of the descriptor of a MemberDialer.
// No opening may have it.
const MembersFile = "members"

// Collector is a Network that can remove what belongs to no sandbox any more. The
// SDK runs GC alone: no Prepare, Attach or Detach is at work beside it.
type Collector interface {
	GC(ctx context.Context, r *GCRequest) (*GCResponse, error)
}
