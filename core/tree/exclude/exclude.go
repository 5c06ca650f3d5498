// Package exclude owns the patterns that leave files out of a copied tree. They
// are a subset of gitignore(5), and nothing is ever left out but by a pattern.
// The package works on names only and never touches a file.
package exclude

import (
	"errors"
	"fmt"
	"path"
	"strings"
)

// maxPattern is PATH_MAX: no longer pattern can match a path.
const maxPattern = 4096

// ErrPattern is wrapped by every error about the form of a pattern.
var ErrPattern = errors.New("bad exclude pattern")

// Pattern is one parsed pattern.
type Pattern struct {
	elems   []string // of path.Match, or "**"
	dirOnly bool
}

// Parse reads a pattern:
//
//	*.pem          this name in any directory
//	dir/           this name in any directory, if it is a directory
//	/a/b, a/b      this path, from the root of the tree
//	a/**/b         "**" stands for any number of directories, also none
//	a/**           everything in a, but a itself
//	* ? [a-z] [!a] \*   within one element, as in a shell
func Parse(pattern string) (Pattern, error) {
	bad := func(why string) (Pattern, error) {
		return Pattern{}, fmt.Errorf("%w %q: %s", ErrPattern, pattern, why)
	}
	switch {
	case len(pattern) > maxPattern:
		return Pattern{}, fmt.Errorf("%w: longer than %d bytes", ErrPattern, maxPattern)
	case strings.ContainsRune(pattern, 0):
		return bad("no file name has a NUL byte")
	case strings.HasPrefix(pattern, "!"):
		return bad(`a pattern can't re-include files; write \! for a name that starts with "!"`)
	}
	rest, dirOnly := strings.CutSuffix(pattern, "/")
	rest, anchored := strings.CutPrefix(rest, "/")
	if rest == "" {
		return bad("it is empty")
	}
	elems := strings.Split(rest, "/")
	for i, e := range elems {
		switch {
		case e == "":
			return bad(`"//" matches nothing`)
		case e == "." || e == "..":
			return bad(`paths are relative to the source, without "." and ".."`)
		case e == "**":
			continue
		case strings.Contains(e, "**"):
			return bad(`"**" must stand alone between slashes`)
		}
		elems[i] = negation(e)
		if _, err := path.Match(elems[i], ""); err != nil {
			return bad(`unfinished "[...]" or "\"`)
		}
	}
	if !anchored && len(elems) == 1 && elems[0] != "**" {
		elems = []string{"**", elems[0]}
	}
	return Pattern{elems, dirOnly}, nil
}

// negation writes the "[!...]" of shells as the "[^...]" of path.Match.
func negation(elem string) string {
	b := []byte(elem)
	inClass := false
	for i := 0; i < len(b); i++ {
		switch {
		case b[i] == '\\':
			i++
		case inClass:
			inClass = b[i] != ']'
		case b[i] == '[':
			inClass = true
			if i+1 < len(b) && b[i+1] == '!' {
				b[i+1] = '^'
			}
		}
	}
	return string(b)
}

// Match reports whether the pattern names this path, which is relative to the
// root of the tree. A match of a directory leaves out all that is in it; the
// caller asks for the directory first and doesn't look into one that matches.
func (p Pattern) Match(name string, dir bool) bool {
	if p.dirOnly && !dir {
		return false
	}
	return match(p.elems, strings.Split(name, "/"))
}

// match keeps the set of pattern positions that the names so far can have
// reached, so that several "**" cost no exponential search.
func match(elems, names []string) bool {
	n := len(elems)
	at := make([]bool, n+1)
	next := make([]bool, n+1)
	at[0] = true
	for _, name := range names {
		clear(next)
		for i, e := range elems {
			switch {
			case !at[i]:
			case e != "**":
				if ok, _ := path.Match(e, name); ok {
					next[i+1] = true
				}
			case i == n-1:
				// At the end it stands for one element or more: "a/**" is not "a".
				next[i], next[n] = true, true
			default:
				next[i] = true
				at[i+1] = true
			}
		}
		at, next = next, at
	}
	return at[n]
}

// Matcher is a list of patterns.
type Matcher []Pattern

// New parses a list of patterns.
func New(patterns []string) (Matcher, error) {
	m := make(Matcher, 0, len(patterns))
	for _, s := range patterns {
		p, err := Parse(s)
		if err != nil {
			return nil, err
		}
		m = append(m, p)
	}
	return m, nil
}

// Match reports whether any pattern matches.
func (m Matcher) Match(name string, dir bool) bool {
	for _, p := range m {
		if p.Match(name, dir) {
			return true
		}
	}
	return false
}
