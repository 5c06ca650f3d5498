package lifecycle

import (
	"strings"
	"testing"

	"github.com/nucleus-runtime/nucleus/core/state"
)

// Whatever a plugin does to the time that there is, what is undone here comes first.
func TestUndoOrder(t *testing.T) {
	var records []state.Record
	for _, step := range []string{stepHooks, stepPlugins, stepCgroup, stepInit, stepLoans, "of the future"} {
		records = append(records, state.Record{Step: step})
	}
	var got []string
	for _, r := range undoOrder(records) {
		got = append(got, r.Step)
	}
	if want := "of the future,init,cgroup,secret_leases,plugin_hooks,hooks"; strings.Join(got, ",") != want {
		t.Errorf("order %s, want %s", strings.Join(got, ","), want)
	}
}
