package logs

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"strconv"
	"time"
	"unicode"
	"unicode/utf8"
)

// appendTime encodes a time, always as long, so that texts sort as times do.
func appendTime(b []byte, t time.Time) []byte {
	return t.UTC().AppendFormat(b, "2006-01-02T15:04:05.000000000Z07:00")
}

// appendRecord encodes a record. By hand, since it is done for each line of
// output; and the time of a batch is encoded once.
func appendRecord(b, stamp []byte, r Record) []byte {
	b = append(b, `{"t":"`...)
	b = append(b, stamp...)
	b = append(b, '"')
	if r.Lost != 0 {
		b = append(b, `,"lost":`...)
		b = strconv.AppendInt(b, r.Lost, 10)
		return append(b, '}', '\n')
	}
	b = append(b, `,"s":"`...)
	b = append(b, r.Stream...)
	if r.Partial {
		b = append(b, `","p":true`...)
	} else {
		b = append(b, '"')
	}
	if utf8.Valid(r.Text) {
		b = append(b, `,"m":"`...)
		b = appendText(b, r.Text)
	} else {
		b = append(b, `,"b":"`...)
		b = base64.StdEncoding.AppendEncode(b, r.Text)
	}
	return append(b, '"', '}', '\n')
}

// appendText encodes valid UTF-8 in a JSON string.
func appendText(b, s []byte) []byte {
	const hex = "0123456789abcdef"
	for len(s) > 0 {
		n := plain(s)
		b = append(b, s[:n]...)
		if s = s[n:]; len(s) == 0 {
			break
		}
		r, size := utf8.DecodeRune(s)
		switch {
		case r == '"' || r == '\\':
			b = append(b, '\\', s[0])
		case r == '\t':
			b = append(b, '\\', 't')
		case r == '\r':
			b = append(b, '\\', 'r')
		case inert(r):
			b = append(b, '\\', 'u', hex[r>>12&0xf], hex[r>>8&0xf], hex[r>>4&0xf], hex[r&0xf])
		default:
			b = append(b, s[:size]...)
		}
		s = s[size:]
	}
	return b
}

// plain gives how many bytes from the first on are encoded as they are. Eight at
// a time, which makes encoding several times as fast: most output is ASCII. The
// tests of a word find each byte they look for, and may find one too many behind
// it (https://graphics.stanford.edu/~seander/bithacks.html#ZeroInWord).
func plain(s []byte) int {
	const ones, tops = 0x0101010101010101, 0x8080808080808080
	i := 0
	for i+8 <= len(s) {
		w := binary.LittleEndian.Uint64(s[i:])
		quote, slash, del := w^'"'*ones, w^'\\'*ones, w^0x7f*ones
		if (w|(w-' '*ones)|(quote-ones)|(slash-ones)|(del-ones))&tops == 0 {
			i += 8
			continue
		}
		for range 8 {
			if special[s[i]] {
				return i
			}
			i++
		}
	}
	for i < len(s) && !special[s[i]] {
		i++
	}
	return i
}

// special are the bytes at which appendText stops: what JSON escapes, what
// a terminal obeys, and the first bytes of what is inert.
var special = func() (t [256]bool) {
	for c := range t {
		t[c] = c < 0x20 || c == '"' || c == '\\' || c == 0x7f || c == 0xc2 || c == 0xd8 || c == 0xe2
	}
	return t
}()

// inert reports whether a character must be shown as text about it: the control
// characters, which drive a terminal, and those that turn the direction of
// writing, by which text can look like another (CVE-2021-42574).
func inert(r rune) bool {
	return unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r)
}

// parse decodes a line of a file. What is no record has been written by
// somebody else, or by a broken disk.
func parse(line []byte) (Record, bool) {
	if r, ok := parseOurs(line); ok {
		return r, true
	}
	return parseJSON(line)
}

// parseOurs decodes a line that is just as we write it, with nothing escaped.
// Most are, and encoding/json takes ten times as long. About any other line it
// says nothing.
func parseOurs(line []byte) (Record, bool) {
	rest, ok := bytes.CutPrefix(line, []byte(`{"t":"`))
	stamp, rest, ok2 := bytes.Cut(rest, []byte(`","s":"`))
	stream, rest, ok3 := bytes.Cut(rest, []byte{'"'})
	rest, partial := bytes.CutPrefix(rest, []byte(`,"p":true`))
	rest, ok4 := bytes.CutPrefix(rest, []byte(`,"m":"`))
	text, ok5 := bytes.CutSuffix(rest, []byte(`"}`))
	if !ok || !ok2 || !ok3 || !ok4 || !ok5 || plain(text) < len(text) || !utf8.Valid(text) {
		return Record{}, false
	}
	t, ok := parseTime(string(stamp))
	s, ok2 := parseStream(stream)
	return Record{Time: t, Stream: s, Partial: partial, Text: bytes.Clone(text)}, ok && ok2
}

func parseTime(s string) (time.Time, bool) {
	t, err := time.Parse(time.RFC3339Nano, s)
	t = t.UTC()
	return t, err == nil && t.Year() >= 1 && t.Year() <= 9999 // what can be encoded again
}

func parseStream(name []byte) (Stream, bool) {
	for _, s := range []Stream{Out, Err, Terminal} {
		if string(name) == string(s) {
			return s, true
		}
	}
	return "", false
}

func parseJSON(line []byte) (Record, bool) {
	var w struct {
		T    string  `json:"t"`
		S    string  `json:"s"`
		P    bool    `json:"p"`
		Lost int64   `json:"lost"`
		M    *string `json:"m"`
		B    []byte  `json:"b"`
	}
	if err := json.Unmarshal(line, &w); err != nil {
		return Record{}, false
	}
	t, ok := parseTime(w.T)
	if !ok {
		return Record{}, false
	}
	if w.Lost > 0 {
		return Record{Time: t, Lost: w.Lost}, w.M == nil && w.B == nil && w.S == "" && !w.P
	}
	s, ok := parseStream([]byte(w.S))
	r := Record{Time: t, Stream: s, Partial: w.P}
	switch {
	case !ok, w.Lost < 0, (w.M == nil) == (w.B == nil):
		return r, false
	case w.M != nil:
		r.Text = []byte(*w.M)
	default:
		r.Text = w.B
	}
	return r, true
}
