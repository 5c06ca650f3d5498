package logs

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// FuzzRead looks for files that crash or hang a reader, for records that do not
// come back as they were, and for tails that are no end of the whole.
func FuzzRead(f *testing.F) {
	stamp := appendTime(nil, epoch)
	var some []byte
	for _, r := range []Record{
		rec(Out, "a", true), rec(Err, "äb", false), rec(Err, "\xff\x00", false), rec(Out, "", false), rec(Terminal, "$ \u202e\"\\\r", true), {Time: epoch, Lost: 3},
	} {
		some = appendRecord(some, stamp, r)
	}
	f.Add(some, uint8(2))
	f.Add(bytes.ReplaceAll(some, []byte("out"), []byte("ou")), uint8(1))
	f.Add([]byte("{\"t\":\"0001-01-01T00:00:00+01:00\",\"s\":\"out\",\"m\":\"\\ud800\"}\n[[[\n\n{"), uint8(0))
	f.Fuzz(func(t *testing.T, file []byte, n uint8) {
		dir := t.TempDir()
		path := filepath.Join(dir, folder, current)
		if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, file, 0o600); err != nil {
			t.Fatal(err)
		}
		for line := range bytes.Lines(file) {
			line = bytes.TrimSuffix(line, []byte{'\n'})
			r, ok := parseOurs(line)
			if same, okJSON := parseJSON(line); ok && (!okJSON || !alike(r, same)) {
				t.Fatalf("%q is %+v, and by JSON %v, %+v", line, r, okJSON, same)
			}
		}
		get := func(q Query) []Record {
			var out []Record
			err := Read(context.Background(), dir, q, func(r Record) error {
				out = append(out, r)
				return nil
			})
			var damaged *DamagedError
			if err != nil && !errors.As(err, &damaged) {
				t.Fatal(err)
			}
			return out
		}
		whole, tail := get(all), get(Query{Tail: int(n)})
		for _, r := range whole {
			line := appendRecord(nil, appendTime(nil, r.Time), r)
			back, ok := parse(line)
			if !ok || !alike(back, r) {
				t.Fatalf("%+v became %s and then %+v", r, line, back)
			}
		}
		lines := 0
		for _, s := range []Stream{"", Out, Err, Terminal} {
			want, got := of(whole, s), of(tail, s)
			for i := range got {
				r, w := got[i], want[len(want)-len(got)+i]
				if !alike(r, w) {
					t.Fatalf("tail %d of %q is not its end: %+v in place of %+v", n, s, r, w)
				}
				if !r.Partial || i == len(got)-1 {
					lines++
				}
			}
		}
		if lines > int(n) {
			t.Fatalf("tail %d gave %d lines", n, lines)
		}
	})
}

func alike(a, b Record) bool {
	return a.Time.Equal(b.Time) && a.Stream == b.Stream && a.Partial == b.Partial && a.Lost == b.Lost && bytes.Equal(a.Text, b.Text)
}

func of(records []Record, s Stream) []Record {
	var out []Record
	for _, r := range records {
		if r.Stream == s {
			out = append(out, r)
		}
	}
	return out
}
