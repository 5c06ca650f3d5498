// Package secret owns values that a sandbox gets at its start and that nothing
// of Nucleus may keep, print or log: how they are asked for, and the sealed
// memory that they travel in. It never writes a value to anything that has a
// name, and gives none back to its caller.
package secret

import (
	"context"
	"fmt"

	"github.com/hashicorp/hcl/v2"

	"github.com/nucleus-runtime/nucleus/core/initproto"
)

// The limits of values.
const (
	// MaxValue is the largest value, in bytes.
	MaxValue = initproto.MaxSecret
	// MaxTotal bounds the values of one sandbox together: they are charged to its
	// memory.
	MaxTotal = 8 << 20
	// MaxEnv is the most that a variable may be long, with its name and the NUL at
	// its end: the kernel's MAX_ARG_STRLEN (execve(2)).
	MaxEnv = 128 << 10
)

// Request asks for all values of one sandbox.
type Request struct {
	// Sandbox is the id of the sandbox that is being started.
	Sandbox string
	Groups  []Group
}

// Group is what one provider is to give, in the order of the job.
type Group struct {
	Provider string
	Refs     []Ref
}

// Ref names one secret of a job.
type Ref struct {
	// Name is the label of the job's block; a job has each once.
	Name string
	// Config is the block that tells the provider where the value is, nil if there
	// is none. It is not decoded, and not part of the plan's JSON form.
	Config hcl.Body
	// Eval holds the variables, locals and functions that Config may refer to.
	Eval *hcl.EvalContext
	// Where is the "file:line" of the block.
	Where string
}

// Source gives values. It is asked once in each start, beside the making of the
// sandbox's init, and may be asked by several starts at once.
type Source interface {
	// Fetch gives a value for every name of the request and for no other, or an
	// error. What it returns is the caller's, with an error too. It returns as soon
	// as ctx is done, which is at the latest when the start has failed or taken too
	// long. Its error is shown and logged: it holds no part of a value.
	Fetch(ctx context.Context, r Request) (Fetched, error)
}

// Fetched is what a Source has given.
type Fetched struct {
	// Values are by name. Whoever has them closes them.
	Values map[string]*Value
	// Loans are those of the values that are lent for a time, by provider.
	Loans []Loan
}

// Loan is the right of one sandbox to some values of one provider, which ends: by
// its time, unless it is renewed, or when the sandbox ends. One without leases is a
// provider that still has something to undo for itself, which Close waits for.
type Loan interface {
	// Record is what another process needs to end the loan. It is written to a file,
	// and holds no part of a value.
	Record() LoanRecord
	// Keep renews what can be renewed until ctx is done. It calls lost for what has
	// ended, or can be renewed no more, with the names of the secrets.
	Keep(ctx context.Context, lost func(names []string, err error))
	// End gives everything back. It may be called while Keep is at work, and again
	// after an error.
	End(ctx context.Context) error
	// Close lets go of what the loan needs in this process, whether it has ended or not.
	Close()
}

// LoanRecord is what a loan is known by.
type LoanRecord struct {
	Provider string `json:"provider"`
	// Pinned: only a provider whose digest the operator names may be asked.
	Pinned bool          `json:"pinned,omitempty"`
	Leases []LeaseRecord `json:"leases"`
}

// LeaseRecord is one lease of a loan.
type LeaseRecord struct {
	Name string `json:"name"` // of the secret
	ID   string `json:"id"`   // what the provider calls it
	// Config is what the provider was told of the secret, as it travels, without what
	// is sensitive.
	Config []byte `json:"config,omitempty"`
}

// Lender is a Source that can end loans that another process took.
type Lender interface {
	Source
	EndLoan(ctx context.Context, sandbox string, r LoanRecord) error
}

// SourceFunc is a function that is a Source. It lends nothing.
type SourceFunc func(ctx context.Context, r Request) (map[string]*Value, error)

// Fetch calls the function.
func (f SourceFunc) Fetch(ctx context.Context, r Request) (Fetched, error) {
	values, err := f(ctx, r)
	return Fetched{Values: values}, err
}

// Error says which secret, or which provider, failed, so that the error of the
// start can name the line of the job. Of the two one is enough.
type Error struct {
	Name, Provider string
	Hint           string
	Err            error
}

func (e *Error) Error() string {
	if e.Name != "" {
		return fmt.Sprintf("secret %q: %v", e.Name, e.Err)
	}
	return fmt.Sprintf("secrets provider %q: %v", e.Provider, e.Err)
}

func (e *Error) Unwrap() error { return e.Err }
