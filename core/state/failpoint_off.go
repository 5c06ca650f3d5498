//go:build !failpoint

package state

// failpoint is where a build for tests dies; see failpoint_on.go.
func failpoint(int) {}
