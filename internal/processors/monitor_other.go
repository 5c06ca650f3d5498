//go:build !amd64

package processors

// LateMonitor does nothing: the handler is written for amd64 alone.
func LateMonitor() {}

// Slack is zero: nothing has to be said.
func Slack() uint64 { return 0 }

// Punctual has nothing to do.
func Punctual() {}
