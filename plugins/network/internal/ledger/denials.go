package ledger

import (
	"context"
	"errors"
	"time"

	"github.com/nucleus-runtime/nucleus/sdk/network"
)

// ErrReplaced is what a watcher gets when another comes.
var ErrReplaced = errors.New("another watches the denials now")

// Deny notes a denial. It does not wait for whoever watches.
func (l *Ledger) Deny(d network.Denial) {
	if d.At.IsZero() {
		d.At = time.Now()
	}
	d.Count = max(d.Count, 1)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.denied += d.Count
	l.keep(&denial{d, kind{d.Protocol, d.Dst, d.Name, d.Rule, d.Reason}}, false)
	l.wake()
}

func (l *Ledger) wake() {
	select {
	case l.arrived <- struct{}{}:
	default:
	}
}

// keep lets a denial wait, at the front if it was there before.
func (l *Ledger) keep(d *denial, front bool) {
	if same, ok := l.byKind[d.kind]; ok {
		same.Count += d.Count
		if front {
			same.At = d.At
		}
		return
	}
	if len(l.waiting) >= kinds {
		// The oldest is lost, but for the total: what happens now matters more.
		if front {
			return
		}
		delete(l.byKind, l.waiting[0].kind)
		l.waiting = l.waiting[1:]
	}
	l.byKind[d.kind] = d
	if front {
		l.waiting = append([]*denial{d}, l.waiting...)
	} else {
		l.waiting = append(l.waiting, d)
	}
}

// Denied counts all denials, those too that nobody was told of.
func (l *Ledger) Denied() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.denied
}

// Close is called when there will be no more denials. Those that wait are told at once
// (kinds bounds them), and then the watch ends.
func (l *Ledger) Close() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.wake()
}

// Watch tells of denials until ctx ends, or the ledger is closed and there is nothing
// left to tell. It begins with what waits. Whoever watched before is let go with
// ErrReplaced: a host that has lost its stream comes again before the old one is known
// to be dead.
func (l *Ledger) Watch(ctx context.Context, tell func(network.Denial) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer l.wake() // whoever replaces this one: the last wake may have come here
	l.mu.Lock()
	if l.watcher != nil {
		l.watcher(ErrReplaced)
	}
	l.watcher = cancel
	l.mu.Unlock()
	for {
		d, wait := l.next(ctx, time.Now())
		if d == nil {
			if wait < 0 || !l.pause(ctx, wait) {
				return replaced(ctx)
			}
			continue
		}
		if err := tell(d.Denial); err != nil {
			l.mu.Lock()
			l.keep(d, true)
			l.mu.Unlock()
			return err
		}
	}
}

func replaced(ctx context.Context) error {
	if err := context.Cause(ctx); errors.Is(err, ErrReplaced) {
		return err
	}
	return nil
}

// pause waits for a denial, or until one that is there may be told if wait is not
// zero. It reports whether the watch goes on.
func (l *Ledger) pause(ctx context.Context, wait time.Duration) bool {
	var due <-chan time.Time
	if wait > 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		due = t.C
	}
	select {
	case <-ctx.Done():
		return false
	case <-l.arrived:
	case <-due:
	}
	return true
}

// next takes the first denial that may be told now. If there is none, wait says when
// there will be one; zero if nothing waits, and less than that if nothing will.
func (l *Ledger) next(ctx context.Context, now time.Time) (d *denial, wait time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case ctx.Err() != nil || l.closed && len(l.waiting) == 0:
		return nil, -1
	case len(l.waiting) == 0:
		return nil, 0
	case l.closed:
		d = l.waiting[0]
		l.waiting = l.waiting[1:]
		delete(l.byKind, d.kind)
		return d, 0
	}
	const each = time.Second / rate
	if l.paid.Before(now) {
		l.paid = now
	}
	for k, at := range l.told {
		if now.Sub(at) >= alike {
			delete(l.told, k)
		}
	}
	if ahead := l.paid.Sub(now) - (rate-1)*each; ahead > 0 {
		return nil, ahead
	}
	wait = alike
	for i, d := range l.waiting {
		if at, held := l.told[d.kind]; held {
			wait = min(wait, alike-now.Sub(at))
			continue
		}
		l.waiting = append(l.waiting[:i], l.waiting[i+1:]...)
		delete(l.byKind, d.kind)
		l.told[d.kind] = now
		l.paid = l.paid.Add(each)
		return d, 0
	}
	return nil, wait
}
