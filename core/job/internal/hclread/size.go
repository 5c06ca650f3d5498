package hclread

import (
	"errors"
	"fmt"
	"math"
	"math/big"
	"strings"
)

// Units of sizes. The order is the one in which a size is printed: the
// largest that divides it, binary before decimal.
var units = [...]struct {
	name  string
	bytes int64
}{
	{"TiB", 1 << 40},
	{"GiB", 1 << 30},
	{"MiB", 1 << 20},
	{"KiB", 1 << 10},
	{"TB", 1e12},
	{"GB", 1e9},
	{"MB", 1e6},
	{"KB", 1e3},
	{"B", 1},
}

// ParseSize reads a number of bytes with a unit: "512MiB", "1.5GiB", "10 KB".
// A bare number is bytes. A fraction must come out as whole bytes.
func ParseSize(s string) (int64, error) {
	trimmed := strings.TrimSpace(s)
	digits := strings.TrimRight(trimmed, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
	unit, number := trimmed[len(digits):], strings.TrimRight(digits, " ")
	factor := int64(1)
	if unit != "" {
		factor = 0
		for _, u := range units {
			if u.name == unit {
				factor = u.bytes
			}
		}
	}
	if factor == 0 {
		return 0, fmt.Errorf("%s has no known unit: %s", Quote(s), unitHint(number, unit))
	}
	if strings.HasPrefix(number, "-") {
		return 0, fmt.Errorf("%s is negative: a size is a number of bytes, for instance \"512MiB\"", Quote(s))
	}
	if !isDecimal(number) {
		return 0, fmt.Errorf("%s is no size: write a number and a unit, for instance \"512MiB\" or \"1.5GB\"", Quote(s))
	}
	r, ok := new(big.Rat).SetString(number)
	if !ok {
		return 0, fmt.Errorf("%s is no size: write a number and a unit, for instance \"512MiB\" or \"1.5GB\"", Quote(s))
	}
	r.Mul(r, new(big.Rat).SetInt64(factor))
	if !r.IsInt() {
		return 0, fmt.Errorf("%s is no whole number of bytes: use a smaller unit", Quote(s))
	}
	if !r.Num().IsInt64() {
		return 0, fmt.Errorf("%s is more than %d bytes, the most that can be counted", Quote(s), int64(math.MaxInt64))
	}
	return r.Num().Int64(), nil
}

// isDecimal keeps out what big.Rat would read too: exponents, fractions, hex.
func isDecimal(s string) bool {
	if len(s) > 40 {
		return false
	}
	whole, frac, dot := strings.Cut(s, ".")
	return allDigits(whole) && (!dot || allDigits(frac))
}

func allDigits(s string) bool {
	for _, c := range s {
		if c < '0' || c > '9' {
			return false
		}
	}
	return s != ""
}

func unitHint(number, unit string) string {
	known := "KiB, MiB, GiB, TiB, KB, MB, GB, TB or B"
	if !isDecimal(number) {
		return "write a number and one of " + known
	}
	for _, u := range units {
		if strings.EqualFold(u.name, unit) {
			return fmt.Sprintf("write %q", number+u.name)
		}
	}
	if len(unit) == 1 || len(unit) == 2 && strings.EqualFold(unit[1:], "i") {
		for _, u := range units[:4] {
			if strings.EqualFold(u.name[:1], unit[:1]) {
				return fmt.Sprintf("write %q, or %q for powers of 1000", number+u.name, number+u.name[:1]+"B")
			}
		}
	}
	return "use " + known
}

func sizeOfNumber(f *big.Float) (int64, error) {
	n, acc := f.Int64()
	switch {
	case f.Sign() < 0:
		return 0, errors.New("a size is not negative: write a number of bytes, or for instance \"512MiB\"")
	case !f.IsInt():
		return 0, errors.New("a bare number is bytes, which are whole: write a unit for fractions, for instance \"1.5GiB\"")
	case acc != big.Exact:
		return 0, fmt.Errorf("the number is more than %d bytes, the most that can be counted", int64(math.MaxInt64))
	}
	return n, nil
}

// FormatSize writes a size so that ParseSize reads the same number.
func FormatSize(n int64) string {
	for _, u := range units {
		if n >= u.bytes && n%u.bytes == 0 {
			return fmt.Sprintf("%d%s", n/u.bytes, u.name)
		}
	}
	return fmt.Sprintf("%dB", n)
}
