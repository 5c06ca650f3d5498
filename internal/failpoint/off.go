//go:build !failpoint

// Package failpoint owns the places where a build for tests can die, as if by
// kill -9, between an effect and its record. In every other build it does nothing.
package failpoint

// Hit is the place with this name; see on.go.
func Hit(string) {}

// Record is the place behind journal record seq; see on.go.
func Record(int) {}
