// Package runtimes is what the core knows of runtime plugins: what it asks one for
// a sandbox, and what it gets. Who fetches the answer is the business of a Source.
package runtimes

import (
	"context"
	"fmt"
	"os"

	"github.com/hashicorp/hcl/v2"

	"github.com/nucleus-runtime/nucleus/sdk/runtime"
)

// Want is a sandbox that is to be run by a plugin.
type Want struct {
	Plugin string
	// Config is the block for the plugin, and Eval what it may refer to.
	Config   hcl.Body
	Eval     *hcl.EvalContext
	Spec     []byte // config.json, as sdk/runtime has it
	Network  runtime.Network
	Rootless bool
	// Checkpoint: its state is to be saved and restored.
	Checkpoint bool
}

// Answer is how it is run.
type Answer struct {
	runtime.Prepared
	// File is the program, opened for reading: what was checked, and what is executed.
	// It is the caller's to close.
	File *os.File
}

// Source asks plugins.
type Source interface {
	// Prepare asks for one sandbox. Errors are of type *Error.
	Prepare(ctx context.Context, sandbox string, w Want) (*Answer, error)
}

// Error is a plugin that cannot, or may not, run the sandbox.
type Error struct {
	Plugin string
	Err    error
	Hint   string
}

func (e *Error) Error() string { return fmt.Sprintf("runtime plugin %q: %v", e.Plugin, e.Err) }
func (e *Error) Unwrap() error { return e.Err }
