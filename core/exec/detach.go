package exec

import (
	"bytes"
	"fmt"
	"strings"
)

// DetachKeys reads a sequence of keys as Docker's users write it: single characters and
// ctrl-X, where X is a letter or one of @ [ \ ] ^ _, with commas between. "" is none.
func DetachKeys(s string) ([]byte, error) {
	if s == "" {
		return nil, nil
	}
	var out []byte
	for key := range strings.SplitSeq(s, ",") {
		c, ctrl := strings.CutPrefix(key, "ctrl-")
		switch {
		case len(c) != 1:
			return nil, fmt.Errorf("%q is no key", key)
		case !ctrl && c[0] > ' ' && c[0] <= '~':
			out = append(out, c[0])
		case ctrl && (c[0] >= 'a' && c[0] <= 'z' || c[0] >= '@' && c[0] <= '_'):
			out = append(out, c[0]&0x1f)
		default:
			return nil, fmt.Errorf("%q is no key", key)
		}
	}
	return out, nil
}

// keySequence finds a sequence in keys as they come. What could be its beginning is held
// back until the next key tells.
type keySequence struct {
	want []byte
	had  int
}

// pass gives the keys that are not part of the sequence, and whether all of it came.
func (k *keySequence) pass(in []byte) (out []byte, found bool) {
	if len(k.want) == 0 {
		return in, false
	}
	for _, c := range in {
		held := append(k.want[:k.had:k.had], c)
		// The longest end of what is held that the sequence begins with.
		k.had = min(len(held), len(k.want))
		for !bytes.HasSuffix(held, k.want[:k.had]) {
			k.had--
		}
		if k.had == len(k.want) {
			return out, true
		}
		out = append(out, held[:len(held)-k.had]...)
	}
	return out, false
}
