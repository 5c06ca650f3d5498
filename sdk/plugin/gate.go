package plugin

import (
	"context"
	"sync"
)

// gate lets many through together, or one alone. Who wants to be alone comes before
// those who come later, or would never be. The zero gate is open.
type gate struct {
	mu      sync.Mutex
	inside  int
	alone   bool
	waiting int           // to be alone
	changed chan struct{} // closed when somebody leaves
}

// enter waits no longer than the context. The function that it gives leaves again.
func (g *gate) enter(ctx context.Context, alone bool) (leave func(), err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if alone {
		g.waiting++
		defer func() { g.waiting-- }()
	}
	for g.alone || alone && g.inside > 0 || !alone && g.waiting > 0 {
		if g.changed == nil {
			g.changed = make(chan struct{})
		}
		changed := g.changed
		g.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			err = ctx.Err()
		}
		g.mu.Lock()
		if err != nil {
			g.tell() // those who waited for us
			return nil, err
		}
	}
	g.inside++
	g.alone = alone
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.inside--
		g.alone = false
		g.tell()
	}, nil
}

// tell is called with the lock held.
func (g *gate) tell() {
	if g.changed != nil {
		close(g.changed)
		g.changed = nil
	}
}

// turns lets one at a time through for each key.
type turns struct {
	mu   sync.Mutex
	held map[string]chan struct{} // closed when its holder leaves
}

func (t *turns) enter(ctx context.Context, key string) (leave func(), err error) {
	for {
		t.mu.Lock()
		held, busy := t.held[key]
		if !busy {
			if t.held == nil {
				t.held = map[string]chan struct{}{}
			}
			mine := make(chan struct{})
			t.held[key] = mine
			t.mu.Unlock()
			return func() {
				t.mu.Lock()
				defer t.mu.Unlock()
				delete(t.held, key)
				close(mine)
			}, nil
		}
		t.mu.Unlock()
		select {
		case <-held:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
