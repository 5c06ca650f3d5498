// Package plainjson encodes values as encoding/json does, and walks a value for that once.
// encoding/json first makes a table of every type that a value could have in it, which pays
// off with the second value: a process that writes a few records, each of another type, spends
// twenty times as long on the tables as on the records.
package plainjson

import (
	"encoding"
	"encoding/base64"
	"encoding/json"
	"errors"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

var (
	marshaler     = reflect.TypeFor[json.Marshaler]()
	textMarshaler = reflect.TypeFor[encoding.TextMarshaler]()
	timeType      = reflect.TypeFor[time.Time]()
)

// Marshal gives what json.Marshal gives for the types that records are made of, which the
// tests of their packages compare. Types for encoding/json alone are those whose pointer
// only is a json.Marshaler, an encoding.TextMarshaler or has IsZero; json.Number; embedded
// structs with a field of a name that is also elsewhere, or unexported ones with a name in
// their tag; names in tags that it would refuse; and pointers that come back to themselves.
func Marshal(v any) ([]byte, error) {
	if v == nil {
		return []byte("null"), nil
	}
	return appendValue(make([]byte, 0, 1024), reflect.ValueOf(v))
}

func appendValue(b []byte, v reflect.Value) ([]byte, error) {
	t := v.Type()
	if t == timeType && v.CanInterface() {
		j, err := v.Interface().(time.Time).MarshalJSON()
		return append(b, j...), err
	}
	if t.Kind() != reflect.Interface && t.NumMethod() > 0 && (t.Implements(marshaler) || t.Implements(textMarshaler)) {
		return appendOther(b, v)
	}
	switch t.Kind() {
	case reflect.Bool:
		return strconv.AppendBool(b, v.Bool()), nil
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return strconv.AppendInt(b, v.Int(), 10), nil
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr:
		return strconv.AppendUint(b, v.Uint(), 10), nil
	case reflect.String:
		return appendString(b, v.String()), nil
	case reflect.Pointer, reflect.Interface:
		if v.IsNil() {
			return append(b, "null"...), nil
		}
		return appendValue(b, v.Elem())
	case reflect.Slice:
		if v.IsNil() {
			return append(b, "null"...), nil
		}
		if e := t.Elem(); e.Kind() == reflect.Uint8 {
			if e.NumMethod() > 0 {
				return appendOther(b, v)
			}
			b = base64.StdEncoding.AppendEncode(append(b, '"'), v.Bytes())
			return append(b, '"'), nil
		}
		return appendList(b, v)
	case reflect.Array:
		return appendList(b, v)
	case reflect.Map:
		return appendMap(b, v)
	case reflect.Struct:
		fields, _, err := appendFields(append(b, '{'), v, true)
		if errors.Is(err, errOther) {
			return appendOther(b, v)
		}
		return append(fields, '}'), err
	default:
		return appendOther(b, v)
	}
}

// appendOther leaves a value to encoding/json.
func appendOther(b []byte, v reflect.Value) ([]byte, error) {
	j, err := json.Marshal(v.Interface())
	return append(b, j...), err
}

func appendList(b []byte, v reflect.Value) (_ []byte, err error) {
	b = append(b, '[')
	for i := range v.Len() {
		if i > 0 {
			b = append(b, ',')
		}
		if b, err = appendValue(b, v.Index(i)); err != nil {
			return nil, err
		}
	}
	return append(b, ']'), nil
}

func appendMap(b []byte, v reflect.Value) (_ []byte, err error) {
	if v.IsNil() {
		return append(b, "null"...), nil
	}
	if k := v.Type().Key(); k.Kind() != reflect.String || k.NumMethod() > 0 {
		return appendOther(b, v)
	}
	keys := v.MapKeys()
	slices.SortFunc(keys, func(x, y reflect.Value) int { return strings.Compare(x.String(), y.String()) })
	b = append(b, '{')
	for i, k := range keys {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(appendString(b, k.String()), ':')
		if b, err = appendValue(b, v.MapIndex(k)); err != nil {
			return nil, err
		}
	}
	return append(b, '}'), nil
}

// appendFields encodes the fields of a struct, and tells whether the next one would be the
// first.
func appendFields(b []byte, v reflect.Value, first bool) (_ []byte, _ bool, err error) {
	t := v.Type()
	for i := range t.NumField() {
		f := t.Field(i)
		tag := f.Tag.Get("json")
		name, options, _ := strings.Cut(tag, ",")
		switch {
		case tag == "-":
			continue
		case f.Anonymous && name == "" && f.Type.Kind() == reflect.Struct:
			if b, first, err = appendFields(b, v.Field(i), first); err != nil {
				return nil, false, err
			}
			continue
		case f.Anonymous && name == "" && f.Type.Kind() == reflect.Pointer:
			return nil, false, errOther
		case !f.IsExported():
			continue
		}
		x := v.Field(i)
		if options != "" {
			quoted, left := option(options, x)
			if quoted {
				return nil, false, errOther
			}
			if left {
				continue
			}
		}
		if !first {
			b = append(b, ',')
		}
		first = false
		if name == "" {
			name = f.Name
		}
		b = append(appendString(b, name), ':')
		if b, err = appendValue(b, x); err != nil {
			return nil, false, err
		}
	}
	return b, first, nil
}

// errOther is a struct that is left to encoding/json.
var errOther = errors.New("for encoding/json")

// option tells what follows from the words after a field's name: whether it is to be in
// quotes, and whether it is left out.
func option(words string, v reflect.Value) (quoted, left bool) {
	for w := range strings.SplitSeq(words, ",") {
		switch w {
		case "string":
			quoted = true
		case "omitempty":
			left = left || empty(v)
		case "omitzero":
			left = left || zero(v)
		}
	}
	return quoted, left
}

func empty(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.Array, reflect.Map, reflect.Slice, reflect.String:
		return v.Len() == 0
	case reflect.Struct:
		return false
	default:
		return v.IsZero()
	}
}

func zero(v reflect.Value) bool {
	if v.NumMethod() > 0 && v.CanInterface() {
		if z, ok := v.Interface().(interface{ IsZero() bool }); ok && (v.Kind() != reflect.Pointer || !v.IsNil()) {
			return z.IsZero()
		}
	}
	return v.IsZero()
}

// appendString encodes a string, as encoding/json does for what may get into a page of HTML.
func appendString(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c >= 0x20 && c < utf8.RuneSelf && c != '"' && c != '\\' && c != '<' && c != '>' && c != '&' {
			i++
			continue
		}
		size := 1
		esc := ""
		switch c {
		case '"', '\\':
			esc = `\` + string(rune(c))
		case '\b':
			esc = `\b`
		case '\f':
			esc = `\f`
		case '\n':
			esc = `\n`
		case '\r':
			esc = `\r`
		case '\t':
			esc = `\t`
		default:
			if c < utf8.RuneSelf {
				esc = `\u00` + hex[c>>4:c>>4+1] + hex[c&0xf:c&0xf+1]
				break
			}
			var r rune
			r, size = utf8.DecodeRuneInString(s[i:])
			switch {
			case r == utf8.RuneError && size == 1:
				esc = `\ufffd`
			case r == '\u2028' || r == '\u2029':
				esc = `\u202` + hex[r&0xf:r&0xf+1]
			}
		}
		if esc != "" {
			b = append(append(b, s[start:i]...), esc...)
			start = i + size
		}
		i += size
	}
	return append(append(b, s[start:]...), '"')
}
