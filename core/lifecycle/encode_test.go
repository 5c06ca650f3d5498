package lifecycle

import (
	"encoding/json"
	"testing"

	"github.com/nucleus-runtime/nucleus/core/boundary"
	"github.com/nucleus-runtime/nucleus/core/cgroups"
	"github.com/nucleus-runtime/nucleus/core/exec"
	"github.com/nucleus-runtime/nucleus/core/network"
	"github.com/nucleus-runtime/nucleus/core/secret"
	"github.com/nucleus-runtime/nucleus/internal/plainjson"
	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

// TestJournalIsAsEncodingJSONHasIt: an undo, perhaps another version's, reads the data of an
// intent with encoding/json. The peaks are in an event.
func TestJournalIsAsEncodingJSONHasIt(t *testing.T) {
	for _, v := range []any{new(cgroups.Record), new(process), new([]secret.LoanRecord), new(network.Record), new([]boundary.Record), new(stopHooks), new(exec.Peaks)} {
		testutil.Fill(v)
		if h, ok := v.(*stopHooks); ok {
			h.State = json.RawMessage(`{"pid":1}`)
		}
		want, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := plainjson.Marshal(v); err != nil || string(got) != string(want) {
			t.Errorf("%T:\n got %s (%v)\nwant %s", v, got, err, want)
		}
	}
}
