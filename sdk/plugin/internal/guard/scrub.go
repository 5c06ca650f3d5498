package guard

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/nucleus-runtime/nucleus/sdk/errs"
)

// Removed stands where a secret was.
const Removed = "[secret]"

const (
	// Taking a value this short out of the middle of words would tell where it
	// stood, and so what it is: only whole words are taken.
	shortValue = 4
	keepValues = 4096
)

// Scrubber takes secret values out of texts.
type Scrubber struct {
	mu     sync.Mutex
	seen   map[string]bool
	values []string // oldest first
}

// NewScrubber makes one that knows nothing yet.
func NewScrubber() *Scrubber { return &Scrubber{seen: map[string]bool{}} }

// Add makes a value known.
func (s *Scrubber) Add(value []byte) {
	if len(bytes.TrimSpace(value)) == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	v := string(value)
	if s.seen[v] {
		return
	}
	if len(s.values) >= keepValues {
		delete(s.seen, s.values[0])
		s.values = s.values[1:]
	}
	s.seen[v] = true
	s.values = append(s.values, v)
}

// forms are the ways in which a value commonly gets into a text.
func forms(v string) []string {
	var out []string
	for _, raw := range []string{v, strings.TrimSpace(v)} {
		b := []byte(raw)
		quoted := strconv.Quote(raw)
		js, _ := json.Marshal(raw) // a string always has a form
		out = append(
			out, raw, quoted[1:len(quoted)-1], string(js[1:len(js)-1]),
			base64.StdEncoding.EncodeToString(b), base64.RawStdEncoding.EncodeToString(b),
			base64.URLEncoding.EncodeToString(b), base64.RawURLEncoding.EncodeToString(b),
			hex.EncodeToString(b), strings.ToUpper(hex.EncodeToString(b)),
			url.QueryEscape(raw), url.PathEscape(raw),
		)
	}
	return out
}

// cleaner is made when it is needed: errors are rare, values are not.
func (s *Scrubber) cleaner() func(string) string {
	s.mu.Lock()
	values := slices.Clone(s.values)
	s.mu.Unlock()
	var all, short []string
	for _, v := range values {
		for _, f := range forms(v) {
			if len(f) < shortValue {
				short = append(short, f)
			} else {
				all = append(all, f)
			}
		}
	}
	// The longest first, or the rest of a long form stays behind a short one.
	longest := func(a, b string) int { return cmp.Or(cmp.Compare(len(b), len(a)), cmp.Compare(a, b)) }
	slices.SortFunc(all, longest)
	var pairs []string
	for _, f := range slices.Compact(all) {
		pairs = append(pairs, f, Removed)
	}
	replace := strings.NewReplacer(pairs...)
	var words []*regexp.Regexp
	slices.SortFunc(short, longest)
	for _, f := range slices.Compact(short) {
		words = append(words, regexp.MustCompile(`(^|[^\pL\pN])`+regexp.QuoteMeta(strings.ToValidUTF8(f, "\uFFFD"))+`($|[^\pL\pN])`))
	}
	return func(t string) string {
		t = replace.Replace(t)
		for _, w := range words {
			t = w.ReplaceAllString(t, "${1}"+Removed+"${2}")
		}
		return t
	}
}

// Error cleans all texts of an error.
func (s *Scrubber) Error(err error) error {
	e := errs.Of(err)
	s.mu.Lock()
	none := len(s.values) == 0
	s.mu.Unlock()
	if none {
		return e
	}
	c := s.cleaner()
	out := &errs.Error{
		Code: e.Code, Text: c(e.Error()), Reason: c(e.Reason), Domain: e.Domain, RetryAfter: e.RetryAfter,
		Leaked: cleanAll(e.Leaked, c),
	}
	if e.Metadata != nil {
		out.Metadata = map[string]string{}
		for k, v := range e.Metadata {
			out.Metadata[c(k)] = c(v)
		}
	}
	for _, d := range e.Diagnostics {
		p := slices.Clone(d.Path)
		for i := range p {
			p[i].Name = c(p[i].Name)
		}
		out.Diagnostics = append(out.Diagnostics, errs.Diagnostic{Severity: d.Severity, Summary: c(d.Summary), Detail: c(d.Detail), Path: p})
	}
	if e.Panic != nil {
		out.Panic = &errs.Panic{Message: c(e.Panic.Message), Stack: c(e.Panic.Stack)}
	}
	return out
}

func cleanAll(in []string, clean func(string) string) []string {
	var out []string
	for _, s := range in {
		out = append(out, clean(s))
	}
	return out
}
