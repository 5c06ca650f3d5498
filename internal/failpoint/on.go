//go:build failpoint

// Package failpoint owns the places where a build for tests can die, as if by
// kill -9, between an effect and its record. In every other build it does nothing.
package failpoint

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Hit kills this process if NUCLEUS_FAIL_AT has this name. If that is "?" the
// name is written to standard error, so that a test need not know the names.
func Hit(name string) {
	switch os.Getenv("NUCLEUS_FAIL_AT") {
	case name:
		die()
	case "?":
		_, _ = os.Stderr.WriteString("failpoint: " + name + "\n")
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
