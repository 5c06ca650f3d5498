// Package dnsname owns the one canonical form of DNS names. Policy, matching
// and dialling use it alike, so that no spelling of a name passes one of them
// and means something else to another.
package dnsname

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

const (
	maxName  = 253 // in text, without the trailing dot
	maxLabel = 63
)

// Name is a canonical name: lower-case letters, digits and hyphens in labels
// (A-labels for other scripts), at least one label, no trailing dot.
type Name string

// Parse reads a name as a user writes it: in any case, with or without a
// trailing dot, in any script.
func Parse(s string) (Name, error) {
	s, _ = strings.CutSuffix(s, ".")
	ascii, alabel := true, false
	for i := range len(s) {
		ascii = ascii && s[i] < 0x80
	}
	lower := strings.ToLower(s)
	for _, l := range strings.Split(lower, ".") {
		alabel = alabel || strings.HasPrefix(l, "xn--")
	}
	if ascii && !alabel {
		return canonical(lower)
	}
	// Other scripts, and A-labels that may decode to something else or nothing.
	if !utf8.ValidString(s) || alabel && !ascii {
		return "", errors.New("the name mixes encodings: write it as UTF-8 text or with xn-- labels")
	}
	a, err := profile().ToASCII(s)
	if err != nil {
		return "", fmt.Errorf("not an internationalised name: %w", err)
	}
	a = strings.TrimSuffix(a, ".")
	if alabel && a != lower {
		return "", fmt.Errorf("an xn-- label is not canonical: write %q", a)
	}
	return canonical(a)
}

// FromLabels builds a name of the labels of a DNS message. A label may hold
// any byte there; one that holds a dot, a NUL or anything else outside of
// letters, digits and hyphens is an error and must neither match nor leave.
func FromLabels(labels [][]byte) (Name, error) {
	var b strings.Builder
	for i, l := range labels {
		for _, c := range l {
			if !ldh(lowerByte(c)) {
				return "", fmt.Errorf("label %d holds the byte %#02x", i+1, c)
			}
		}
		if i > 0 {
			b.WriteByte('.')
		}
		b.Write(l)
	}
	return Parse(b.String())
}

// profile is not kept: a variable would be built at every start.
func profile() *idna.Profile {
	return idna.New(idna.MapForLookup(), idna.BidiRule(), idna.CheckJoiners(true),
		idna.StrictDomainName(true), idna.Transitional(false), idna.VerifyDNSLength(true))
}

func canonical(s string) (Name, error) {
	if s == "" {
		return "", errors.New("the name is empty")
	}
	if len(s) > maxName {
		return "", fmt.Errorf("the name has %d characters, at most %d are allowed", len(s), maxName)
	}
	last := ""
	for l := range strings.SplitSeq(s, ".") {
		if err := checkLabel(l); err != nil {
			return "", err
		}
		last = l
	}
	if numeric(last) {
		// inet_aton(3) and URL parsers take "127.1" and "0x7f000001" for addresses.
		return "", fmt.Errorf("the last label %q is a number: it would be read as an address", last)
	}
	return Name(s), nil
}

func checkLabel(l string) error {
	switch {
	case l == "":
		return errors.New("a label is empty")
	case len(l) > maxLabel:
		return fmt.Errorf("a label has %d characters, at most %d are allowed", len(l), maxLabel)
	case l[0] == '-' || l[len(l)-1] == '-':
		return fmt.Errorf("the label %q begins or ends with a hyphen", l)
	}
	for i := range len(l) {
		if !ldh(l[i]) {
			return fmt.Errorf("the label %q holds %q: letters, digits and hyphens are allowed", l, l[i])
		}
	}
	return nil
}

func ldh(c byte) bool {
	return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-'
}

func lowerByte(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}

func numeric(l string) bool {
	if hex, ok := strings.CutPrefix(l, "0x"); ok {
		return strings.Trim(hex, "0123456789abcdef") == ""
	}
	return strings.Trim(l, "0123456789") == ""
}

// Pattern is a name, or every name below one.
type Pattern struct {
	name     Name
	wildcard bool
}

// ParsePattern reads "api.example.com" or "*.example.com".
func ParsePattern(s string) (Pattern, error) {
	rest, wildcard := strings.CutPrefix(s, "*.")
	if strings.Contains(rest, "*") {
		return Pattern{}, errors.New("a * stands only for whole labels at the beginning, as in \"*.example.com\"")
	}
	n, err := Parse(rest)
	if err != nil {
		return Pattern{}, err
	}
	if wildcard && len(n)+2 > maxName {
		return Pattern{}, fmt.Errorf("no name below %q is short enough", n)
	}
	return Pattern{name: n, wildcard: wildcard}, nil
}

// Match reports whether the pattern allows n. A wildcard matches at any depth
// below its suffix and never the suffix itself.
func (p Pattern) Match(n Name) bool {
	if p.name == "" {
		return false
	}
	if !p.wildcard {
		return n == p.name
	}
	below, ok := strings.CutSuffix(string(n), "."+string(p.name))
	return ok && below != ""
}

// String returns the canonical pattern.
func (p Pattern) String() string {
	if p.wildcard {
		return "*." + string(p.name)
	}
	return string(p.name)
}
