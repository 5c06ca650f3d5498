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
	Fetch(ctx context.Context, r Request) (map[string]*Value, error)
}

// SourceFunc is a function that is a Source.
type SourceFunc func(ctx context.Context, r Request) (map[string]*Value, error)

// Fetch calls the function.
func (f SourceFunc) Fetch(ctx context.Context, r Request) (map[string]*Value, error) {
	return f(ctx, r)
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
