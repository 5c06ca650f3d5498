package audit

import (
	"maps"
	"slices"
	"strconv"
	"unicode"
	"unicode/utf8"

	"github.com/nucleus-runtime/nucleus/internal/plainjson"
)

// append encodes an event. By hand, since every start of a sandbox writes a
// dozen of them, and encoding/json spends more on the first than all of these
// take together.
func (e Event) append(b []byte) ([]byte, error) {
	b = append(b, `{"v":`...)
	b = strconv.AppendInt(b, int64(e.Version), 10)
	b = append(b, `,"seq":`...)
	b = strconv.AppendInt(b, int64(e.Seq), 10)
	for _, f := range []struct {
		key, value string
		always     bool
	}{{"time", e.Time, true}, {"sandbox", e.Sandbox, false}, {"name", e.Name, false}, {"type", string(e.Type), true}, {"error", e.Error, false}} {
		if f.always || f.value != "" {
			b = append(b, `,"`...)
			b = append(b, f.key...)
			b = append(b, `":`...)
			b = appendString(b, f.value)
		}
	}
	if len(e.Detail) > 0 {
		b = append(b, `,"detail":`...)
		var err error
		if b, err = appendMap(b, e.Detail, appendAny); err != nil {
			return nil, err
		}
	}
	return append(b, '}', '\n'), nil
}

func appendMap[V any](b []byte, m map[string]V, value func([]byte, V) ([]byte, error)) ([]byte, error) {
	b = append(b, '{')
	var err error
	for i, k := range slices.Sorted(maps.Keys(m)) {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(appendString(b, k), ':')
		if b, err = value(b, m[k]); err != nil {
			return nil, err
		}
	}
	return append(b, '}'), nil
}

func appendAny(b []byte, v any) ([]byte, error) {
	switch v := v.(type) {
	case string:
		return appendString(b, v), nil
	case int:
		return strconv.AppendInt(b, int64(v), 10), nil
	case int64:
		return strconv.AppendInt(b, v, 10), nil
	case uint64:
		return strconv.AppendUint(b, v, 10), nil
	case bool:
		return strconv.AppendBool(b, v), nil
	case []string:
		b = append(b, '[')
		for i, s := range v {
			if i > 0 {
				b = append(b, ',')
			}
			b = appendString(b, s)
		}
		return append(b, ']'), nil
	case map[string]string:
		return appendMap(b, v, func(b []byte, s string) ([]byte, error) { return appendString(b, s), nil })
	}
	j, err := plainjson.Marshal(v)
	return append(b, j...), err
}

// appendString encodes a JSON string. Bytes that are no UTF-8 become U+FFFD, as
// encoding/json has it.
func appendString(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	for i := 0; i < len(s); {
		c := s[i]
		if c < utf8.RuneSelf {
			i++
			switch {
			case c == '"' || c == '\\':
				b = append(b, '\\', c)
			case c < 0x20 || c == 0x7f:
				b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&0xf])
			default:
				b = append(b, c)
			}
			continue
		}
		r, size := utf8.DecodeRuneInString(s[i:])
		if r < 0xa0 || unicode.Is(unicode.Bidi_Control, r) { // what drives some terminals, and what Clean says of
			b = append(b, '\\', 'u', hex[r>>12&0xf], hex[r>>8&0xf], hex[r>>4&0xf], hex[r&0xf])
		} else {
			b = utf8.AppendRune(b, r)
		}
		i += size
	}
	return append(b, '"')
}
