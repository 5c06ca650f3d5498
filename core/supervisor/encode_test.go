package supervisor

import (
	"encoding/json"
	"testing"

	"github.com/nucleus-runtime/nucleus/core/plan"
	"github.com/nucleus-runtime/nucleus/internal/plainjson"
	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

// TestFilesAreAsEncodingJSONHasThem: what is written with plainjson is read with encoding/json,
// by this version and by others.
func TestFilesAreAsEncodingJSONHasThem(t *testing.T) {
	for _, v := range []any{new(Record), new(plan.Plan), new(Stack)} {
		for _, what := range []string{"empty", "full"} {
			if what == "full" {
				testutil.Fill(v)
			}
			want, err := json.Marshal(v)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := plainjson.Marshal(v); err != nil || string(got) != string(want) {
				t.Errorf("%T, %s:\n got %s (%v)\nwant %s", v, what, got, err, want)
			}
		}
	}
}
