//go:build !amd64

package signals

import (
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

// catch does with os/signal what catch_amd64.go, which says why, does without.
func catch(nums []unix.Signal) (<-chan unix.Signal, func(), error) {
	in := make(chan os.Signal, backlog)
	for _, n := range nums {
		if !signal.Ignored(n) {
			signal.Notify(in, n)
		}
	}
	out := make(chan unix.Signal, backlog)
	go func() {
		for s := range in {
			if n, ok := s.(unix.Signal); ok {
				out <- n
			}
		}
	}()
	return out, func() { signal.Stop(in) }, nil
}
