package logs

import (
	"bytes"
	"encoding/json"
	"testing"

	"pgregory.net/rapid"
)

// Words are looked at as a whole, and must hide no byte at any place in them.
func TestPlainMissesNothing(t *testing.T) {
	for _, filler := range []byte{' ', 'x', '!', '~', '"' + 1, '\\' - 1, 0x80} {
		for c := range 256 {
			for at := range 20 {
				s := bytes.Repeat([]byte{filler}, 20)
				s[at] = byte(c)
				want := len(s)
				if special[c] {
					want = at
				}
				if got := plain(s); got != want {
					t.Fatalf("%q: %d, want %d", s, got, want)
				}
			}
		}
	}
}

// Whatever a record holds, a JSON reader gets it back, and so do we.
func TestEncodingIsJSON(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := Record{Time: epoch, Stream: Out, Text: []byte(rapid.String().Draw(t, "text")), Partial: rapid.Bool().Draw(t, "partial")}
		line := appendRecord(nil, appendTime(nil, r.Time), r)
		var any struct{ M string }
		if err := json.Unmarshal(line, &any); err != nil || any.M != string(r.Text) {
			t.Fatalf("%s: %q, %v", line, any.M, err)
		}
		back, ok := parse(line)
		if !ok || !bytes.Equal(back.Text, r.Text) || back.Partial != r.Partial {
			t.Fatalf("%s: %+v", line, back)
		}
	})
}
