package exit

import (
	"fmt"
	"net/netip"
	"testing"
)

// The addresses are those of the table in RFC 6052, 2.4, with RFC 8215's block.
func TestTranslated(t *testing.T) {
	for addr, want := range map[string]string{
		"2001:db8::192.0.2.33":      "[]",
		"64:ff9b::192.0.2.33":       "[192.0.2.33]",
		"64:ff9b::0.0.0.0":          "[0.0.0.0]",
		"64:ff9b::1:c000:221":       "[]", // not in the block of 96 bits
		"64:ff9b:1::192.0.2.33":     "[192.0.2.33 0.0.0.192]",
		"64:ff9b:1:0:c0:2:2100:0":   "[33.0.0.0 192.0.2.33 0.192.0.2 0.0.192.0]",
		"64:ff9b:1:c0:0:221::":      "[0.2.33.0 192.0.2.33 0.192.0.2]",
		"64:ff9b:1:c000:2:2100::":   "[2.33.0.0 0.2.33.0 192.0.2.33]",
		"64:ff9b:1:c000:2:2100:0:1": "[0.0.0.1 2.33.0.0 0.2.33.0 192.0.2.33]", // suffixes count for nothing
		"64:ff9b:1:e1::192.0.2.33":  "[192.0.2.33 0.0.0.192 0.225.0.0]",
		"64:ff9b:2::192.0.2.33":     "[]",
		"64:ff9b:1:7f00:0:100::":    "[0.1.0.0 0.0.1.0 127.0.0.1]",
	} {
		if got := fmt.Sprint(translated(netip.MustParseAddr(addr))); got != want {
			t.Errorf("%s: %s, want %s", addr, got, want)
		}
	}
}
