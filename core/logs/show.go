package logs

import (
	"io"
	"unicode/utf8"
)

// Printer shows records, one after the other, on one writer. It has nothing to
// say in text of what is lost: a caller tells of that beside the data.
type Printer struct {
	W          io.Writer
	Timestamps bool // before each line
	JSON       bool // as on disk, and a version; a line each, whatever else is set
	// Safe is for a terminal: what would drive it is shown as text about it. Otherwise
	// text is given as it was.
	Safe bool

	open Stream // that has an unfinished line, with timestamps
	buf  []byte
}

// Show shows a record, in one write.
func (p *Printer) Show(r Record) error {
	b := p.buf[:0]
	switch {
	case p.JSON:
		b = append(b, `{"v":1`...)
		n := len(b)
		b = appendRecord(b, appendTime(nil, r.Time), r)
		b[n] = ',' // its brace
	case r.Lost != 0:
		return nil
	default:
		b = p.text(b, r)
	}
	p.buf = b
	_, err := p.W.Write(b)
	return err
}

func (p *Printer) text(b []byte, r Record) []byte {
	if p.Timestamps {
		if p.open != "" && p.open != r.Stream {
			b = append(b, '\n') // a time in the middle of a line could not be told from text
			p.open = ""
		}
		if p.open == "" {
			b = append(appendTime(b, r.Time), ' ')
		}
		p.open = ""
		if r.Partial {
			p.open = r.Stream
		}
	}
	text := r.Text
	if p.Safe {
		// A terminal's lines end with it, and there it does no harm.
		if n := len(text); !r.Partial && n > 0 && text[n-1] == '\r' {
			text = text[:n-1]
		}
		b = appendSafe(b, text)
	} else {
		b = append(b, text...)
	}
	if !r.Partial {
		b = append(b, '\n')
	}
	return b
}

// appendSafe appends text with nothing in it that a terminal obeys.
func appendSafe(b, s []byte) []byte {
	const hex = "0123456789abcdef"
	for len(s) > 0 {
		r, size := utf8.DecodeRune(s)
		switch {
		case r == '\n' || r == '\t':
			b = append(b, s[0])
		case r == 0x1b:
			b = append(b, '^', '[')
		case r == utf8.RuneError && size == 1:
			b = append(b, '\\', 'x', hex[s[0]>>4], hex[s[0]&0xf])
		case !inert(r):
			b = append(b, s[:size]...)
		case r < 0x100:
			b = append(b, '\\', 'x', hex[r>>4], hex[r&0xf])
		default:
			b = append(b, '\\', 'u', hex[r>>12&0xf], hex[r>>8&0xf], hex[r>>4&0xf], hex[r&0xf])
		}
		s = s[size:]
	}
	return b
}
