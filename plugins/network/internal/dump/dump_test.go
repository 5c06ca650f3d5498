package dump_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/dump"
)

func TestAListThatWasChangedIsAskedForAgain(t *testing.T) {
	broken := errors.New("broken")
	for name, tc := range map[string]struct {
		interrupted int
		end         error
		want        int // calls
	}{
		"whole": {0, nil, 1}, "changed": {3, nil, 4}, "changed, then broken": {2, broken, 3}, "never whole": {1 << 20, nil, 50},
	} {
		calls := 0
		all, err := dump.Whole(func() ([]int, error) {
			calls++
			if calls <= tc.interrupted {
				return nil, fmt.Errorf("listing: %w", netlink.ErrDumpInterrupted)
			}
			return []int{calls}, tc.end
		})
		if calls != tc.want {
			t.Errorf("%s: %d calls, want %d", name, calls, tc.want)
		}
		switch {
		case name == "never whole":
			if !errors.Is(err, netlink.ErrDumpInterrupted) {
				t.Errorf("%s: %v", name, err)
			}
		case !errors.Is(err, tc.end) || len(all) != 1:
			t.Errorf("%s: %v, %v", name, all, err)
		}
	}
}
