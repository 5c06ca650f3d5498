package logs

import (
	"bytes"
	"testing"
	"time"
)

func show(t *testing.T, p Printer, records ...Record) string {
	t.Helper()
	var out bytes.Buffer
	p.W = &out
	for _, r := range records {
		if err := p.Show(r); err != nil {
			t.Fatal(err)
		}
	}
	return out.String()
}

func rec(s Stream, text string, partial bool) Record {
	return Record{Time: epoch, Stream: s, Text: []byte(text), Partial: partial}
}

func TestShow(t *testing.T) {
	const at = "2026-01-02T03:04:05.000000000Z"
	hostile := rec(Out, "a\tb\x1b[2J\r\x00\x7f\x9b\xff\u009b\u202e\u2066\u200f\u061cä漢\\\r", false)
	for _, test := range []struct {
		what    string
		p       Printer
		records []Record
		want    string
	}{
		{"as it was", Printer{}, []Record{hostile}, string(hostile.Text) + "\n"},
		{"safe", Printer{Safe: true}, []Record{hostile}, `a` + "\t" + `b^[[2J\x0d\x00\x7f\x9b\xff\x9b\u202e\u2066\u200f\u061cä漢\` + "\n"},
		{"safe JSON", Printer{Safe: true, JSON: true}, []Record{rec(Out, "\x1b\u009b\u202e\u200e\u061c\x7f\t", false)}, `{"v":1,"t":"` + at + `","s":"out","m":"\u001b\u009b\u202e\u200e\u061c\u007f\t"}` + "\n"},
		{"a line in pieces", Printer{}, []Record{rec(Out, "a", true), rec(Out, "b", false)}, "ab\n"},
		{"the end of a terminal's line in two", Printer{Safe: true}, []Record{rec(Terminal, "a\r", true), rec(Terminal, "\r", false)}, "a\\x0d\n"},
		{"times", Printer{Timestamps: true}, []Record{rec(Out, "a", false), rec(Err, "b", false)}, at + " a\n" + at + " b\n"},
		{"a time for each line", Printer{Timestamps: true}, []Record{rec(Out, "a", true), rec(Out, "b", true), rec(Out, "c", false)}, at + " abc\n"},
		{"a time begins a line", Printer{Timestamps: true}, []Record{rec(Out, "a", true), rec(Err, "b", false), rec(Out, "c", false)}, at + " a\n" + at + " b\n" + at + " c\n"},
		{"loss is no text", Printer{Timestamps: true}, []Record{{Time: epoch, Lost: 3}}, ""},
		{"loss in JSON", Printer{JSON: true}, []Record{{Time: epoch, Lost: 3}}, `{"v":1,"t":"` + at + `","lost":3}` + "\n"},
		{"JSON of bytes", Printer{JSON: true, Timestamps: true}, []Record{rec(Err, "\xff", true)}, `{"v":1,"t":"` + at + `","s":"err","p":true,"b":"/w=="}` + "\n"},
		{"JSON in UTC", Printer{JSON: true}, []Record{{Time: epoch.In(time.FixedZone("", 3600)), Stream: Out}}, `{"v":1,"t":"` + at + `","s":"out","m":""}` + "\n"},
	} {
		if got := show(t, test.p, test.records...); got != test.want {
			t.Errorf("%s: got %q, want %q", test.what, got, test.want)
		}
	}
}

// Nothing that is shown safely drives a terminal.
func TestSafeIsSafe(t *testing.T) {
	everything := random(1 << 16)
	for r := rune(0); r < 0x3000; r++ {
		everything = append(everything, string(r)...)
	}
	for _, p := range []Printer{{Safe: true}, {Safe: true, Timestamps: true}, {JSON: true}} {
		for _, r := range show(t, p, rec(Out, string(everything), false)) {
			if r != '\n' && r != '\t' && inert(r) {
				t.Fatalf("%+v: %q is shown", p, r)
			}
		}
	}
}
