//go:build !amd64

package attacker

// legacyModeCalls are those that newer architectures have no more.
var legacyModeCalls map[string]uintptr
