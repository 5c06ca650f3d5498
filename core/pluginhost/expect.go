package pluginhost

import (
	"context"

	"github.com/nucleus-runtime/nucleus/sdk/manifest"
)

// expectation is a start that was begun before anybody asked for it.
type expectation struct {
	done   chan struct{}
	cancel context.CancelFunc
	p      *Plugin
	err    error
}

type expectedAs struct {
	name string
	as   manifest.Service
}

// Expect begins to start a plugin that is going to be asked for: what comes before
// that need not wait. Whoever expects something forgets it in the end.
func (h *Host) Expect(name string, as manifest.Service) {
	ctx, cancel := context.WithCancel(context.Background())
	e := &expectation{done: make(chan struct{}), cancel: cancel}
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, ok := h.expected[expectedAs{name, as}]; ok {
		cancel()
		return
	}
	if h.expected == nil {
		h.expected = map[expectedAs]*expectation{}
	}
	h.expected[expectedAs{name, as}] = e
	go func() {
		defer close(e.done)
		e.p, e.err = h.begin(ctx, name, as)
	}()
}

// take gives what was expected to the first who asks for it, nil to others.
func (h *Host) take(name string, as manifest.Service) *expectation {
	h.mu.Lock()
	defer h.mu.Unlock()
	e := h.expected[expectedAs{name, as}]
	delete(h.expected, expectedAs{name, as})
	return e
}

// wait gives the plugin, which is the caller's.
func (e *expectation) wait(ctx context.Context) (*Plugin, error) {
	select {
	case <-e.done:
		return e.p, e.err
	case <-ctx.Done():
		e.drop()
		return nil, ctx.Err()
	}
}

// drop ends what nobody wants.
func (e *expectation) drop() {
	e.cancel()
	<-e.done
	if e.p != nil {
		e.p.Close()
	}
}

// Forget ends all that was expected and that nobody has asked for, and waits for what
// is being ended.
func (h *Host) Forget() {
	h.mu.Lock()
	left := h.expected
	h.expected = nil
	h.mu.Unlock()
	for _, e := range left {
		e.drop()
	}
	h.retiring.Wait()
}
