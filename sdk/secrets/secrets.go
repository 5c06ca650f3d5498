// Package secrets is what a provider of secret values implements. It is plain
// Go: how it travels to the core is the business of sdk/plugin.
package secrets

import (
	"context"
	"time"

	"github.com/nucleus-runtime/nucleus/sdk/contract"
)

// Version of the contract between core and provider.
const Version = "1.0"

// Features of a provider, by the optional interfaces that it implements.
const (
	FeatureRenew  = "secrets.renew"
	FeatureRevoke = "secrets.revoke"
)

// Ref names one secret of a job.
type Ref struct {
	Name       string // the label of the job's block
	InstanceID string // says which configuration tells where it is: that of one sandbox
	Optional   bool   // absent is no error
}

// Secret is a value.
type Secret struct {
	Name     string
	Value    []byte // the receiver's, who overwrites it after use
	Version  string
	NotAfter time.Time // zero: no end is known
	Lease    Lease
	Absent   bool // of an optional ref; Value is empty
}

// Lease is the right to a value for some time. The zero Lease is none.
type Lease struct {
	ID        string
	Duration  time.Duration
	Renewable bool
}

// Call identifies a request. Its InstanceID is that of Renew and Revoke: whose lease
// it is; Fetch has it in each Ref.
type Call = contract.Call

// Provider gives secrets.
type Provider interface {
	// Fetch gives the values of all refs in their order, or an error.
	Fetch(ctx context.Context, call Call, refs []Ref) ([]Secret, error)
}

// Renewer is a Provider whose leases can be prolonged.
type Renewer interface {
	Renew(ctx context.Context, call Call, leaseID string, increment time.Duration) (Lease, error)
}

// Revoker is a Provider whose leases can be ended. A lease that is gone already is
// no error.
type Revoker interface {
	Revoke(ctx context.Context, call Call, leaseID string) error
}
