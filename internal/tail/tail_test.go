package tail

import (
	"bytes"
	"strings"
	"testing"
)

func TestTail(t *testing.T) {
	var tail Tail
	if tail.String() != "" {
		t.Errorf("nothing was written: %q", tail.String())
	}
	for _, p := range [][]byte{[]byte("first\n"), bytes.Repeat([]byte("x"), 3*Size), []byte("\nlast\n")} {
		if n, err := tail.Write(p); n != len(p) || err != nil {
			t.Errorf("wrote %d of %d bytes, %v", n, len(p), err)
		}
	}
	if s := tail.String(); len(s) > Size || !strings.HasSuffix(s, "x\nlast") || strings.Contains(s, "first") {
		t.Errorf("kept %d bytes: %.20q", len(s), s)
	}
}
