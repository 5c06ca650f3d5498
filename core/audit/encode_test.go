package audit

import (
	"encoding/json"
	"reflect"
	"testing"

	"pgregory.net/rapid"
)

// TestEncodingIsJSON: whatever an event holds, a JSON reader gets it back.
func TestEncodingIsJSON(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.String()
		e := Event{
			Version: SchemaVersion, Seq: rapid.IntRange(1, 1<<40).Draw(t, "seq"), Time: "2026-01-02T03:04:05.000006Z",
			Sandbox: text.Draw(t, "sandbox"), Name: text.Draw(t, "name"), Type: Type(text.Draw(t, "type")), Error: text.Draw(t, "error"),
			Detail: map[string]any{
				text.Draw(t, "key"): text.Draw(t, "value"), "int": rapid.Int().Draw(t, "int"), "big": rapid.Uint64().Draw(t, "big"), "yes": true,
				"list": rapid.SliceOf(text).Draw(t, "list"), "map": rapid.MapOf(text, text).Draw(t, "map"),
				"other": struct {
					A *int `json:"a,omitempty"`
				}{},
			},
		}
		line, err := e.append(nil)
		if err != nil {
			t.Fatal(err)
		}
		want, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		var got, as any
		if err := json.Unmarshal(line, &got); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		if err := json.Unmarshal(want, &as); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, as) {
			t.Fatalf("%s\nwant\n%s", line, want)
		}
	})
}
