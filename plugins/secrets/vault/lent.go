package vault

import (
	"sync"
	"time"
)

// lent are the leases that this process has taken and that may be in use: by id, with
// their ends. One without an end ends with its token.
type lent struct {
	mu   sync.Mutex
	ends map[string]time.Time
}

func (l *lent) put(id string, ends time.Time) {
	if id == "" {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ends == nil {
		l.ends = make(map[string]time.Time)
	}
	l.ends[id] = ends
}

// prolong leaves alone what another process has taken, with a token of its own.
func (l *lent) prolong(id string, ends time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ours := l.ends[id]; ours {
		l.ends[id] = ends
	}
}

func (l *lent) drop(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.ends, id)
}

func (l *lent) any() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, ends := range l.ends {
		if ends.IsZero() || time.Now().Before(ends) {
			return true
		}
	}
	return false
}
