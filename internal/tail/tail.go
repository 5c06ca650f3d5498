// Package tail keeps the end of a stream, for the message of a process that failed.
package tail

import (
	"strings"
	"sync"
)

// Size is how much is kept, in bytes.
const Size = 2048

// Tail is an io.Writer that keeps the end of what is written to it. The zero value
// is ready.
type Tail struct {
	mu sync.Mutex
	b  []byte
}

func (t *Tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p[max(0, len(p)-Size):]...)
	if n := len(t.b) - Size; n > 0 {
		t.b = append(t.b[:0], t.b[n:]...)
	}
	return len(p), nil
}

func (t *Tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(string(t.b))
}
