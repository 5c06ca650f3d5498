package pluginhost

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/nucleus-runtime/nucleus/core/secret"
	"github.com/nucleus-runtime/nucleus/sdk/errs"
	"github.com/nucleus-runtime/nucleus/sdk/manifest"
	"github.com/nucleus-runtime/nucleus/sdk/plugin/client"
	"github.com/nucleus-runtime/nucleus/sdk/secrets"
)

// loan is what one provider has lent one sandbox. Its plugin stays: what it lent may
// hang on a login of its own, which only it renews.
type loan struct {
	host     *Host
	sandbox  string
	provider string
	features []string
	now      func() time.Time

	mu     sync.Mutex // one call at a time
	p      *Plugin    // nil once it has ended
	leases []*lease
	closed bool

	// retired is closed when the plugin has ended, if nothing was lent and all that is
	// left is to undo what it took for itself.
	retired chan struct{}
}

func (l *loan) retire() {
	defer close(l.retired)
	l.p.Retire()
}

// lease is the right to one value.
type lease struct {
	secret.LeaseRecord
	granted   time.Time
	length    time.Duration // from granted to its end
	asked     time.Duration // what a renewal asks for
	renewable bool
	lost      bool
	ended     bool // given back
}

// renewTime and revokeTime bound one call.
const (
	renewTime  = 10 * time.Second
	revokeTime = 10 * time.Second
)

// Record is what another process needs to end the loan.
func (l *loan) Record() secret.LoanRecord {
	r := secret.LoanRecord{Provider: l.provider, Pinned: l.host.o.Finder.PinnedOnly}
	for _, x := range l.leases {
		r.Leases = append(r.Leases, x.LeaseRecord)
	}
	return r
}

// running gives the plugin, which is started anew if it has ended: for its
// configuration the record's is good enough.
func (l *loan) running(ctx context.Context) (*Plugin, error) {
	if l.closed {
		return nil, context.Canceled
	}
	if l.p != nil {
		if !l.p.proc.ended() {
			return l.p, nil
		}
		l.p.Close()
		l.p = nil
	}
	p, features, err := l.host.reopen(ctx, l.sandbox, l.Record())
	l.p = p
	l.features = features
	return p, err
}

// reopen starts a provider for what its record tells.
func (h *Host) reopen(ctx context.Context, sandbox string, r secret.LoanRecord) (_ *Plugin, features []string, err error) {
	p, d, err := h.open(ctx, r.Provider, manifest.Secrets, func(p *Plugin, schema *Schema) error {
		for _, x := range r.Leases {
			if err := h.remind(ctx, p, schema, x.Config, instance(sandbox, x.Name)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	return p, d.Info.Features, nil
}

// Keep renews what can be renewed.
func (l *loan) Keep(ctx context.Context, lost func([]string, error)) {
	wait := l.next()
	for {
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		for _, x := range l.due() {
			if err := l.renew(ctx, x); err != nil && ctx.Err() == nil {
				lost([]string{x.Name}, err)
			}
		}
		wait = l.next()
	}
}

// A lease is renewed when a third of its time is left, and then, if that fails for
// now, each time a third of the rest is over.
const (
	minWait = 500 * time.Millisecond
	idle    = time.Hour // nothing to renew
)

func (x *lease) ends() time.Time { return x.granted.Add(x.length) }

// when tells when something has to be done about a lease.
func (x *lease) when() time.Time {
	if x.renewable {
		return x.granted.Add(x.length - x.length/3)
	}
	return x.ends()
}

func (l *loan) next() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	wait := idle
	for _, x := range l.leases {
		if !x.lost && !x.ended && x.length > 0 {
			wait = min(wait, x.when().Sub(l.now()))
		}
	}
	return max(wait, minWait)
}

func (l *loan) due() []*lease {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []*lease
	for _, x := range l.leases {
		if !x.lost && !x.ended && x.length > 0 && !l.now().Before(x.when()) {
			out = append(out, x)
		}
	}
	return out
}

// renew prolongs one lease. Its error means that it is lost.
func (l *loan) renew(ctx context.Context, x *lease) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if x.ended {
		return nil
	}
	if !x.renewable {
		x.lost = true
		return fmt.Errorf("the lease of secret %q has ended: it cannot be renewed", x.Name)
	}
	got, err := l.askRenewal(ctx, x)
	now := l.now()
	switch {
	case err == nil && got.Duration > 0:
		x.granted, x.length, x.renewable = now, got.Duration, got.Renewable
		return nil
	case err == nil:
		err = errors.New("the provider gives it no more time")
	case errs.Of(err).Code.Retryable() && now.Before(x.ends()):
		x.granted, x.length = now, x.ends().Sub(now)
		return nil
	}
	x.lost = true
	return fmt.Errorf("renewing the lease of secret %q: %w", x.Name, err)
}

func (l *loan) askRenewal(ctx context.Context, x *lease) (secrets.Lease, error) {
	p, err := l.running(ctx)
	if err != nil {
		return secrets.Lease{}, err
	}
	r, ok := client.New(p.Conn()).Secrets(l.features).(secrets.Renewer)
	if !ok {
		return secrets.Lease{}, errors.New("the provider does not renew leases")
	}
	ctx, cancel := context.WithTimeout(ctx, renewTime)
	defer cancel()
	call := secrets.Call{RequestID: fmt.Sprintf("%s-%s-renew-%d", l.sandbox, x.Name, l.now().UnixNano()), SandboxID: l.sandbox, InstanceID: instance(l.sandbox, x.Name), Attempt: 1}
	got, err := r.Renew(ctx, call, x.ID, x.asked)
	if err != nil {
		return got, p.failed("renewing a lease", err)
	}
	return got, nil
}

// End gives back what is not given back yet.
func (l *loan) End(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	left := slices.DeleteFunc(slices.Clone(l.leases), func(x *lease) bool { return x.ended })
	if len(left) == 0 {
		return nil
	}
	p, err := l.running(ctx)
	if err != nil {
		return providerError(l.provider, err)
	}
	return revoke(ctx, p, l.features, l.sandbox, l.provider, left)
}

func revoke(ctx context.Context, p *Plugin, features []string, sandbox, provider string, leases []*lease) error {
	r, ok := client.New(p.Conn()).Secrets(features).(secrets.Revoker)
	if !ok {
		return nil // its leases end by themselves
	}
	ctx, cancel := context.WithTimeout(ctx, revokeTime)
	defer cancel()
	// Beside each other: one that hangs must not keep the others from being tried.
	failures := make([]error, len(leases))
	var all sync.WaitGroup
	for i, x := range leases {
		all.Go(func() {
			err := r.Revoke(ctx, secrets.Call{RequestID: sandbox + "-" + x.Name + "-revoke", SandboxID: sandbox, InstanceID: instance(sandbox, x.Name), Attempt: 1}, x.ID)
			if x.ended = err == nil; !x.ended {
				failures[i] = err
			}
		})
	}
	all.Wait()
	for i, err := range failures {
		if err != nil {
			failures[i] = providerError(provider, p.failed("giving back the lease of secret "+leases[i].Name, err))
		}
	}
	return errors.Join(failures...)
}

// Close ends the plugin.
func (l *loan) Close() {
	if len(l.leases) == 0 {
		<-l.retired
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	if l.p != nil {
		l.p.Retire()
		l.p = nil
	}
}

// EndLoan gives back what the sandbox of a supervisor that is gone was lent.
func (s *Secrets) EndLoan(ctx context.Context, sandbox string, r secret.LoanRecord) error {
	if err := s.Host.o.Finder.pinned(r.Provider, r.Pinned); err != nil {
		return providerError(r.Provider, err)
	}
	p, features, err := s.Host.reopen(ctx, sandbox, r)
	if err != nil {
		return providerError(r.Provider, err)
	}
	defer p.Retire()
	leases := make([]*lease, len(r.Leases))
	for i := range r.Leases {
		leases[i] = &lease{LeaseRecord: r.Leases[i]}
	}
	return revoke(ctx, p, features, sandbox, r.Provider, leases)
}
