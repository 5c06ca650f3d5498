// Package dump asks the kernel again for what it has listed while somebody changed it:
// such a list may lack what was there all the time (NLM_F_DUMP_INTR, netlink(7)).
package dump

import (
	"errors"

	"github.com/vishvananda/netlink"
)

// tries are more than changes come one upon the other, except on a host where they
// never stop.
const tries = 50

// Whole gives a list that nobody has changed meanwhile.
func Whole[T any](list func() ([]T, error)) (all []T, err error) {
	for range tries {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return all, err
		}
	}
	return all, err
}
