package hclread

import (
	"math"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestParseSize(t *testing.T) {
	for in, want := range map[string]int64{
		"0": 0, "1": 1, "1B": 1, "1KiB": 1024, "1KB": 1000, "512MiB": 512 << 20, "1.5GiB": 3 << 29, "0.5KB": 500,
		"1 GiB": 1 << 30, " 2MB ": 2e6, "9223372036854775807": math.MaxInt64, "8388607TiB": 8388607 << 40, "007B": 7,
	} {
		if got, err := ParseSize(in); err != nil || got != want {
			t.Errorf("ParseSize(%q) = %d, %v; want %d", in, got, err, want)
		}
	}
	for in, want := range map[string]string{ // within the error
		"": "is no size", "MiB": "write a number", "-1": "negative", "-0": "negative", "+1": "is no size", "1M": `"1MiB", or "1MB"`, "1mi": `"1MiB"`,
		"1mb": `"1MB"`, "1e3": "is no size", "0x10": "is no size", "1/2": "is no size", "1..2": "is no size", ".5KB": "is no size",
		"1.B": "is no size", "0.5": "smaller unit", "9223372036854775808": "more than", "8388608TiB": "more than", "1PiB": "use KiB",
		strings.Repeat("9", 100): "is no size", "1 2MB": "is no size", "1_000": "is no size",
	} {
		if got, err := ParseSize(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ParseSize(%q) = %d, %v; want an error with %q", in, got, err, want)
		}
	}
}

func TestSizesRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Int64Range(0, math.MaxInt64).Draw(t, "n")
		if rapid.Bool().Draw(t, "round") {
			n = n >> 40 << 20
		}
		s := FormatSize(n)
		if got, err := ParseSize(s); err != nil || got != n {
			t.Fatalf("%d is written %q and read %d, %v", n, s, got, err)
		}
	})
}

func FuzzParseSize(f *testing.F) {
	f.Add("1.5GiB")
	f.Fuzz(func(t *testing.T, s string) {
		if n, err := ParseSize(s); err == nil && n < 0 {
			t.Fatalf("ParseSize(%q) = %d", s, n)
		}
	})
}
