package exec

import (
	"testing"
)

func TestDetachKeys(t *testing.T) {
	for in, want := range map[string]string{
		"": "", "ctrl-p,ctrl-q": "\x10\x11", "a": "a", "ctrl-@": "\x00", "ctrl-[": "\x1b", "ctrl-\\,q": "\x1cq", "ctrl-Z": "\x1a", "~,.": "~.",
	} {
		if got, err := DetachKeys(in); err != nil || string(got) != want {
			t.Errorf("%q is %q, %v; want %q", in, got, err, want)
		}
	}
	for _, in := range []string{"ctrl-", "ctrl-pq", "ctrl-1", "ab", "a,", " ", "é", "ctrl-~", ",", "\x01"} {
		if got, err := DetachKeys(in); err == nil {
			t.Errorf("%q is taken, as %q", in, got)
		}
	}
}

func TestKeySequence(t *testing.T) {
	for name, c := range map[string]struct {
		want  string
		in    []string
		out   string
		found bool
	}{
		"none":                         {"", []string{"ab"}, "ab", false},
		"at once":                      {"pq", []string{"xpqy"}, "x", true},
		"key by key":                   {"pq", []string{"p", "q"}, "", true},
		"the beginning, then another":  {"pq", []string{"p", "x"}, "px", false},
		"the beginning twice":          {"pq", []string{"p", "p", "q"}, "p", true},
		"held at the end":              {"pq", []string{"ap"}, "a", false},
		"an end that begins it anew":   {"aab", []string{"a", "a", "a", "b"}, "a", true},
		"an end that begins it, later": {"abac", []string{"ab", "ab", "ac"}, "ab", true},
		"one key":                      {"q", []string{"xx", "q"}, "xx", true},
	} {
		k := keySequence{want: []byte(c.want)}
		var out string
		found := false
		for _, in := range c.in {
			b, f := k.pass([]byte(in))
			out += string(b)
			if found = f; f {
				break
			}
		}
		if out != c.out || found != c.found {
			t.Errorf("%s: passed %q, found %t; want %q, %t", name, out, found, c.out, c.found)
		}
		if string(k.want) != c.want {
			t.Errorf("%s: the sequence has become %q", name, k.want)
		}
	}
}
