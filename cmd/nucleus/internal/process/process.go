// Package process makes this process one for short work, before anything else of it is
// initialised: a sandbox starts in some milliseconds, of which Go's usual ways with
// many processors and long work would take a tenth.
//
// It is early by what it imports, which must not import more: Go initialises what waits for
// nothing else first. Half of all starts are on another processor than the first one by then,
// whose memory is begun for nothing (a page for each size that was needed).
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
