package job

import (
	"bytes"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/hashicorp/hcl/v2"
)

// WriteDiagnostics writes diagnostics with the lines of source that they
// point to. A width of zero does not wrap.
func WriteDiagnostics(w io.Writer, sources map[string][]byte, diags hcl.Diagnostics, width uint, color bool) error {
	files := make(map[string]*hcl.File, len(sources))
	for name, src := range sources {
		if longestLine(src) > maxExcerpt {
			continue // minified, or no text at all: file, line and column must do
		}
		files[name] = &hcl.File{Bytes: printable(src)}
	}
	safe := make(hcl.Diagnostics, 0, len(diags))
	for _, d := range diags {
		c := *d
		c.Summary, c.Detail = plain(d.Summary), plain(d.Detail)
		safe = append(safe, &c)
	}
	return hcl.NewDiagnosticTextWriter(w, files, width, color).WriteDiagnostics(safe)
}

// maxExcerpt is the longest line of source, in bytes, that is shown.
const maxExcerpt = 1000

func longestLine(src []byte) int {
	longest := 0
	for line := range bytes.Lines(src) {
		longest = max(longest, len(line))
	}
	return longest
}

// printable replaces control characters, which a terminal might obey, by as
// many question marks: positions stay true.
func printable(src []byte) []byte {
	out := make([]byte, 0, len(src))
	for len(src) > 0 {
		r, n := utf8.DecodeRune(src)
		switch {
		case r == '\n' || r == '\t' || !unsafeRune(r) && (r != utf8.RuneError || n > 1):
			out = append(out, src[:n]...)
		default:
			out = append(out, strings.Repeat("?", n)...)
		}
		src = src[n:]
	}
	return out
}

func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if r != '\n' && r != '\t' && unsafeRune(r) {
			return '?'
		}
		return r
	}, s)
}

// unsafeRune tells characters that change how a line is shown: control
// characters and those that turn the direction of text (CVE-2021-42574).
func unsafeRune(r rune) bool {
	return unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r)
}
