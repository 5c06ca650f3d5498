package exclude

import (
	"errors"
	"path"
	"strings"
	"testing"
)

func TestMatch(t *testing.T) {
	tests := []struct {
		pattern, path string
		dir, want     bool
	}{
		// A name without a slash is looked for in every directory.
		{"*.pem", "key.pem", false, true},
		{"*.pem", "a/b/key.pem", false, true},
		{"*.pem", "a/key.pem", true, true},
		{"*.pem", "key.pem.txt", false, false},
		{"*.pem", ".pem", false, true},
		{"secret", "secret_sauce.go", false, false},
		{"secret", "a/secret", false, true},
		{"secret", "secret/a", false, false}, // its directory matched before
		{".env", ".ENV", false, false},

		// A trailing slash means directories only.
		{"build/", "build", true, true},
		{"build/", "a/build", true, true},
		{"build/", "build", false, false},
		{"/build/", "a/build", true, false},

		// Any other slash anchors to the root.
		{"/key", "key", false, true},
		{"/key", "a/key", false, false},
		{"a/key", "a/key", false, true},
		{"a/key", "b/a/key", false, false},
		{"a/*.o", "a/x.o", false, true},
		{"a/*.o", "a/b/x.o", false, false},
		{"/*", "a", true, true},
		{"/*", "a/b", true, false},

		// "**".
		{"**/key", "key", false, true},
		{"**/key", "a/b/key", false, true},
		{"a/**/key", "a/key", false, true},
		{"a/**/key", "a/b/c/key", false, true},
		{"a/**/key", "b/key", false, false},
		{"a/**", "a", true, false},
		{"a/**", "a/b", true, true},
		{"a/**", "a/b/c", false, true},
		{"**/a/**", "x/a/b", false, true},
		{"**/a/**", "x/a", true, false},
		{"**", "a", false, true},
		{"**/", "a", false, false},
		{"**/", "a/b", true, true},
		{"**/**/a", "a", false, true},
		{"a/**/**", "a", true, false},
		{"a/**/**", "a/b", true, true},
		{"**/a/**/b/**/c", "x/a/b/y/c", false, true},
		{"**/a/**/b/**/c", "x/a/y/c", false, false},

		// Within one element.
		{"?.c", "a.c", false, true},
		{"?.c", "ab.c", false, false},
		{"?", "é", false, true},
		{"*", "a", false, true},
		{"[ab].c", "b.c", false, true},
		{"[!ab].c", "b.c", false, false},
		{"[!ab].c", "c.c", false, true},
		{"[^ab].c", "b.c", false, false},
		{"[a!].c", "!.c", false, true},
		{`\*`, "*", false, true},
		{`\*`, "a", false, false},
		{`\!a`, "!a", false, true},
		{`\[!a`, "[!a", false, true},
		{"#a", "#a", false, true},
		{" a ", " a ", false, true},
		{"a\nb", "a\nb", false, true},
		{"*.key", "\xff\xfe.key", false, true},
	}
	for _, tt := range tests {
		p, err := Parse(tt.pattern)
		if err != nil {
			t.Errorf("Parse(%q): %v", tt.pattern, err)
			continue
		}
		if got := p.Match(tt.path, tt.dir); got != tt.want {
			t.Errorf("%q matches %q (directory %v): %v, want %v", tt.pattern, tt.path, tt.dir, got, tt.want)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for _, pattern := range []string{
		"", "/", "//", "a//b", "a//", "//a", ".", "..", "./a", "../a", "a/../b", "a/.", "!a",
		"a**", "**a", "a/**b/c", "***", "[", "[a", "[]", "a[", `a\`, "[a/b]", "a\x00b",
		strings.Repeat("a", maxPattern+1),
	} {
		if _, err := Parse(pattern); !errors.Is(err, ErrPattern) {
			t.Errorf("Parse(%.40q) = %v, want ErrPattern", pattern, err)
		}
	}
}

func TestNewNamesTheBadPattern(t *testing.T) {
	_, err := New([]string{"*.pem", "a//b"})
	if err == nil || !strings.Contains(err.Error(), `"a//b"`) {
		t.Errorf("New = %v, want an error that names a//b", err)
	}
}

// FuzzPattern: whatever Parse accepts never fails to match later, where an
// error could only mean that a file slips through.
func FuzzPattern(f *testing.F) {
	f.Add("*.pem", "a/b.pem")
	f.Add("a/**/b", "a/x/b")
	f.Add(`[!a-z]\*`, "A*")
	f.Add("**/**/**/a", strings.Repeat("a/", 50)+"b")
	f.Fuzz(func(t *testing.T, pattern, name string) {
		p, err := Parse(pattern)
		if err != nil {
			if !errors.Is(err, ErrPattern) {
				t.Fatalf("Parse(%q) = %v, want ErrPattern", pattern, err)
			}
			return
		}
		for _, e := range p.elems {
			for _, n := range strings.Split(name, "/") {
				if _, err := path.Match(e, n); e != "**" && err != nil {
					t.Fatalf("element %q of %q: %v", e, pattern, err)
				}
			}
		}
		file, dir := p.Match(name, false), p.Match(name, true)
		if file && !dir {
			t.Fatalf("%q matches %q as a file only", pattern, name)
		}
		if file != (dir && !p.dirOnly) {
			t.Fatalf("%q, %q: file %v, directory %v", pattern, name, file, dir)
		}
		if !strings.ContainsAny(pattern, `*?[\`) && !strings.Contains(strings.Trim(pattern, "/"), "/") {
			plain := strings.Trim(pattern, "/")
			if !p.Match(plain, true) {
				t.Fatalf("%q does not match the directory %q", pattern, plain)
			}
		}
	})
}
