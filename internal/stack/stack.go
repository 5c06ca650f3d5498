// Package stack spares goroutines that are known to call deeply the growing of
// their stacks. A stack begins with two kibibytes, and each doubling of it has the
// runtime unwind and move what is on it: some twenty microseconds in a process that
// has just begun, of which a start of a sandbox had nineteen. One growth at the
// beginning moves next to nothing.
package stack

// Deep makes room for calls of 24 KiB, which is what the job file and the plan take.
func Deep()

// Middling makes room for 8 KiB, which is what most other goroutines of a start take.
func Middling()
