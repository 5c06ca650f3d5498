package dnsname

import (
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestParse(t *testing.T) {
	long := strings.Repeat("a", 63)
	for _, tc := range []struct {
		name, in, want string // want "" means refused
	}{
		{"plain", "api.example.com", "api.example.com"},
		{"case is folded", "API.Example.COM", "api.example.com"},
		{"one trailing dot", "example.com.", "example.com"},
		{"two trailing dots", "example.com..", ""},
		{"other scripts become A-labels", "Bücher.example", "xn--bcher-kva.example"},
		{"sharp s is kept, not mapped to ss", "straße.example", "xn--strae-oqa.example"},
		{"ideographic full stop separates", "a。example", "a.example"},
		{"A-label", "xn--bcher-kva.example", "xn--bcher-kva.example"},
		{"A-label in capitals", "XN--BCHER-KVA.example", "xn--bcher-kva.example"},
		{"A-label that decodes to nothing", "xn--.example", ""},
		{"A-label that is no punycode", "xn--a-\u00e4.example", ""},
		{"A-label of plain ASCII", "xn--abc-.example", ""},
		{"hyphens in third and fourth place", "r3---sn-4g5e.googlevideo.com", "r3---sn-4g5e.googlevideo.com"},
		{"leading hyphen", "-a.example", ""},
		{"trailing hyphen", "a-.example", ""},
		{"underscore", "_dmarc.example.com", ""},
		{"space", "a b.example", ""},
		{"NUL", "a\x00.example", ""},
		{"not UTF-8", "a\xff.example", ""},
		{"wildcard is no name", "*.example.com", ""},
		{"empty", "", ""},
		{"root", ".", ""},
		{"empty label", "a..b", ""},
		{"label of 63", long + ".example", long + ".example"},
		{"label of 64", long + "a.example", ""},
		{"name of 253", long + "." + long + "." + long + "." + long[:61], long + "." + long + "." + long + "." + long[:61]},
		{"name of 254", long + "." + long + "." + long + "." + long[:62], ""},
		{"IPv4 address", "127.0.0.1", ""},
		{"short IPv4 address", "127.1", ""},
		{"hexadecimal IPv4 address", "0x7f000001", ""},
		{"full-width digits are digits", "１２７.1", ""},
		{"number in another place", "1.2.3.example", "1.2.3.example"},
		{"IPv6 address", "::1", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := Parse(tc.in)
			if (err != nil) != (tc.want == "") || string(got) != tc.want {
				t.Errorf("Parse(%q) = %q, %v; want %q", tc.in, got, err, tc.want)
			}
		})
	}
}

func TestFromLabelsNeverJoinsWhatALabelHides(t *testing.T) {
	for _, labels := range [][]string{
		{"a.evil", "example", "com"},
		{"a\x00", "example", "com"},
		{"a_b", "example", "com"},
		{"", "com"},
		{"\xc3\xa4", "com"},
		{},
	} {
		var raw [][]byte
		for _, l := range labels {
			raw = append(raw, []byte(l))
		}
		if n, err := FromLabels(raw); err == nil {
			t.Errorf("FromLabels(%q) = %q, want an error", labels, n)
		}
	}
	n, err := FromLabels([][]byte{[]byte("API"), []byte("example"), []byte("com")})
	if err != nil || n != "api.example.com" {
		t.Errorf("FromLabels = %q, %v", n, err)
	}
}

func TestPattern(t *testing.T) {
	for _, tc := range []struct {
		pattern, name string
		want          bool
	}{
		{"example.com", "example.com", true},
		{"example.com", "a.example.com", false},
		{"*.Example.com.", "a.example.com", true},
		{"*.example.com", "b.a.example.com", true},
		{"*.example.com", "example.com", false},
		{"*.example.com", "badexample.com", false},
		{"*.example.com", "example.com.evil.net", false},
	} {
		p, err := ParsePattern(tc.pattern)
		if err != nil {
			t.Fatal(err)
		}
		if got := p.Match(Name(tc.name)); got != tc.want {
			t.Errorf("%q matches %q: %v, want %v", tc.pattern, tc.name, got, tc.want)
		}
	}
	for _, bad := range []string{"*", "*.", "a.*.com", "*a.com", "**.com", "*.*.com", "*.10.0.0.1"} {
		if p, err := ParsePattern(bad); err == nil {
			t.Errorf("ParsePattern(%q) = %v, want an error", bad, p)
		}
	}
	if (Pattern{}).Match("") {
		t.Error("the zero pattern matches")
	}
}

func TestParseIsIdempotent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.StringOfN(rapid.RuneFrom([]rune("aZ0-.xnäß日。١ \u200d*_")), 1, 30, -1).Draw(t, "name")
		n, err := Parse(s)
		if err != nil {
			return
		}
		for i := range len(n) {
			if c := n[i]; c != '.' && !ldh(c) {
				t.Fatalf("Parse(%q) = %q is not LDH", s, n)
			}
		}
		again, err := Parse(string(n))
		if err != nil || again != n {
			t.Fatalf("Parse(%q) = %q, but Parse of that = %q, %v", s, n, again, err)
		}
	})
}

func FuzzParse(f *testing.F) {
	f.Add("Bücher.example")
	f.Add("xn--bcher-kva.example.")
	f.Fuzz(func(t *testing.T, s string) {
		n, err := Parse(s)
		if err != nil {
			return
		}
		if again, err := Parse(string(n)); err != nil || again != n {
			t.Fatalf("Parse(%q) = %q, but Parse of that = %q, %v", s, n, again, err)
		}
	})
}
