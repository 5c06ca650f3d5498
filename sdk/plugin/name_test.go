package plugin

import (
	"strings"
	"testing"
)

func TestNamesOfPlugins(t *testing.T) {
	for name, want := range map[string]bool{
		"a": true, "file": true, "s3-v2": true, "a-": true, strings.Repeat("a", 63): true,
		"": false, "-a": false, "2a": false, "A": false, "aB": false, "a_b": false, "a.b": false, "a\n": false, "a\nb": false, "aäb": false,
		strings.Repeat("a", 64): false,
	} {
		if validName(name) != want {
			t.Errorf("%q: valid %t, want %t", name, !want, want)
		}
	}
}
