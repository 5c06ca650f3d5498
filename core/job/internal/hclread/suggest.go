package hclread

import (
	"strings"

	"github.com/agext/levenshtein"

	"github.com/nucleus-runtime/nucleus/core/job/internal/grammar"
)

// Suggest returns the candidate that a misspelt name is nearest to, "" if none is near.
func Suggest(name string, candidates []string) string {
	lower := strings.ToLower(name)
	if len(lower) > 64 {
		return ""
	}
	best, bestDist := "", 3
	if len(lower) < 4 {
		bestDist = 2
	}
	for _, c := range candidates {
		lc := strings.ToLower(c)
		d := levenshtein.Distance(lower, lc, nil)
		if d == 2 && transposed(lower, lc) {
			d = 1
		}
		if d >= len(lc) {
			continue
		}
		if d < bestDist {
			best, bestDist = c, d
		}
	}
	if best == "" && len(lower) >= 3 {
		for _, c := range candidates {
			if lc := strings.ToLower(c); strings.HasPrefix(lc, lower) || strings.HasPrefix(lower, lc) && len(lc) >= 3 {
				return c
			}
		}
	}
	return best
}

// transposed reports whether two neighbours changed places, which Levenshtein
// counts twice although it is one slip.
func transposed(a, b string) bool {
	if len(a) != len(b) {
		return false
	}
	i := 0
	for i < len(a) && a[i] == b[i] {
		i++
	}
	return i+1 < len(a) && a[i] == b[i+1] && a[i+1] == b[i] && a[i+2:] == b[i+2:]
}

// SuggestOr returns a sentence: the nearest candidate, or all of them if there
// are few, with a leading space.
func SuggestOr(name string, candidates []string) string {
	if s := Suggest(name, candidates); s != "" {
		return " Did you mean " + Quote(s) + "?"
	}
	switch {
	case len(candidates) == 0:
		return ""
	case len(candidates) > 12:
		return " Known are " + List(candidates[:12]) + " and others."
	default:
		return " Known are " + List(candidates) + "."
	}
}

// List writes names as a user reads them: "a", "b" and "c".
func List(names []string) string {
	var b strings.Builder
	for i, n := range names {
		switch {
		case i == 0:
		case i == len(names)-1:
			b.WriteString(" and ")
		default:
			b.WriteString(", ")
		}
		b.WriteString(Quote(n))
	}
	return b.String()
}

// Quote shows text from outside: cut if long, control characters escaped.
func Quote(s string) string { return grammar.Quote(s) }
