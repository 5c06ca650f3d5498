package main

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
)

var keyForm = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// parse reads lines KEY=VALUE. Lines that are empty or begin with # are left out,
// and so is the word export before a key. A value in quotes, double or single, is
// what is between them; nothing is expanded. The values are parts of text. An error
// names a line, and nothing of what is on it.
func parse(text []byte) (map[string][]byte, error) {
	values := map[string][]byte{}
	var bad []error
	n := 0
	for line := range bytes.Lines(text) {
		n++
		line = bytes.TrimSpace(line)
		if len(line) == 0 || line[0] == '#' {
			continue
		}
		key, value, ok := bytes.Cut(bytes.TrimPrefix(line, []byte("export ")), []byte("="))
		key, value = bytes.TrimSpace(key), bytes.TrimSpace(value)
		_, twice := values[string(key)]
		value, closed := unquote(value)
		switch {
		case !ok || !keyForm.Match(key):
			bad = append(bad, fmt.Errorf("line %d is not KEY=VALUE", n))
		case twice:
			bad = append(bad, fmt.Errorf("line %d has a key that was there before", n))
		case !closed:
			bad = append(bad, fmt.Errorf("line %d has a quote that nothing closes", n))
		default:
			values[string(key)] = value
		}
	}
	return values, errors.Join(bad...)
}

func unquote(v []byte) (value []byte, closed bool) {
	if len(v) == 0 || v[0] != '"' && v[0] != '\'' {
		return v, true
	}
	if len(v) < 2 || v[len(v)-1] != v[0] {
		return nil, false
	}
	return v[1 : len(v)-1], true
}
