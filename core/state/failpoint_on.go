//go:build failpoint

package state

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// failpoint kills this process right after journal record N is written, where
// N is the value of NUCLEUS_FAIL_AFTER: the crash that gc must clean up after.
func failpoint(seq int) {
	if n, err := strconv.Atoi(os.Getenv("NUCLEUS_FAIL_AFTER")); err == nil && n == seq {
		_ = unix.Kill(unix.Getpid(), unix.SIGKILL)
		select {}
	}
}
