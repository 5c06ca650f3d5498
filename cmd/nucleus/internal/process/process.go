// Package process makes this process one for short work, before anything else of it is
// initialised: a sandbox starts in some milliseconds, of which Go's usual ways with
// many processors and long work would take a tenth.
package process

import (
	"github.com/nucleus-runtime/nucleus/internal/processors"
	"github.com/nucleus-runtime/nucleus/internal/stack"
)

func init() {
	processors.One()
	processors.LateMonitor()
	stack.Deep() // for this goroutine, which initialises the packages and runs the command
}
