//go:build failpoint

// Package failpoint owns the places where a build for tests can die, as if by
// kill -9, between an effect and its record. In every other build it does nothing.
package failpoint

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Hit kills this process if NUCLEUS_FAIL_AT has this name.
func Hit(name string) {
	if os.Getenv("NUCLEUS_FAIL_AT") == name {
		die()
	}
}

// Record kills this process if NUCLEUS_FAIL_AFTER is the number of the journal
// record that was just written.
func Record(seq int) {
	if n, err := strconv.Atoi(os.Getenv("NUCLEUS_FAIL_AFTER")); err == nil && n == seq {
		die()
	}
}

func die() {
	_ = unix.Kill(unix.Getpid(), unix.SIGKILL)
	select {}
}
