// Package provider makes plugins of the providers of this module: it gives their
// configuration a schema, and their errors the form in which they travel.
package provider

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/nucleus-runtime/nucleus/plugins/secrets/fault"
	"github.com/nucleus-runtime/nucleus/sdk/config"
	"github.com/nucleus-runtime/nucleus/sdk/errs"
	"github.com/nucleus-runtime/nucleus/sdk/plugin"
	"github.com/nucleus-runtime/nucleus/sdk/secrets"
)

// provider is what a package of this directory gives.
type provider[I any] interface {
	secrets.Provider
	Configure(id string, i I) error
}

// configured is a provider that is made once its operator's configuration is there.
type configured[C, I any, P provider[I]] struct {
	make func(C) (P, error)

	mu    sync.Mutex
	p     P
	ready bool
}

func (c *configured[C, I, P]) get() (P, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.ready {
		return c.p, errs.Preconditionf("the provider was not configured")
	}
	return c.p, nil
}

func (c *configured[C, I, P]) sections() (all, one config.Section) {
	all = config.To(config.Func[C](func(_ context.Context, _ config.Instance, conf C) error {
		p, err := c.make(conf)
		if err != nil {
			return wire(err)
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.p, c.ready = p, true
		return nil
	}))
	one = config.To(config.Func[I](func(_ context.Context, in config.Instance, conf I) error {
		p, err := c.get()
		if err != nil {
			return err
		}
		return wire(p.Configure(in.ID, conf))
	}))
	return all, one
}

// Fetch asks the provider.
func (c *configured[C, I, P]) Fetch(ctx context.Context, call secrets.Call, refs []secrets.Ref) ([]secrets.Secret, error) {
	p, err := c.get()
	if err != nil {
		return nil, err
	}
	got, err := p.Fetch(ctx, call, refs)
	return got, wire(err)
}

// Of is the plugin of a provider.
func Of[C, I any, P provider[I]](name, version, what string, make func(C) (P, error)) plugin.Plugin {
	c := &configured[C, I, P]{make: make}
	all, one := c.sections()
	return plugin.Plugin{Name: name, Version: version, Description: what, DocsURL: "https://github.com/nucleus-runtime/nucleus/tree/main/plugins/secrets", Secrets: c, Config: all, SecretsConfig: one}
}

// lessor is a provider whose values are lent.
type lessor[I any] interface {
	provider[I]
	secrets.Renewer
	secrets.Revoker
	Close(ctx context.Context) error
}

type leased[C, I any, P lessor[I]] struct{ *configured[C, I, P] }

// Renew prolongs a lease.
func (l leased[C, I, P]) Renew(ctx context.Context, call secrets.Call, id string, increment time.Duration) (secrets.Lease, error) {
	p, err := l.get()
	if err != nil {
		return secrets.Lease{}, err
	}
	lease, err := p.Renew(ctx, call, id, increment)
	return lease, wire(err)
}

// Revoke ends a lease.
func (l leased[C, I, P]) Revoke(ctx context.Context, call secrets.Call, id string) error {
	p, err := l.get()
	if err != nil {
		return err
	}
	return wire(p.Revoke(ctx, call, id))
}

// close is for a provider that was configured: another has taken nothing.
func (l leased[C, I, P]) close(ctx context.Context) error {
	p, err := l.get()
	if err != nil {
		return nil
	}
	return wire(p.Close(ctx))
}

// Leasing is the plugin of a provider whose values are lent.
func Leasing[C, I any, P lessor[I]](name, version, what string, make func(C) (P, error)) plugin.Plugin {
	p := Of(name, version, what, make)
	l := leased[C, I, P]{p.Secrets.(*configured[C, I, P])}
	p.Secrets, p.Close = l, l.close
	return p
}

// place leads to the part of the configuration that an error is about.
func place(f *fault.Error) errs.Steps {
	var steps []any
	for _, s := range f.Path() {
		if k, ok := s.(fault.Key); ok {
			s = errs.MapKey(string(k))
		}
		steps = append(steps, s)
	}
	return errs.Path(steps...)
}

var codes = map[fault.Code]errs.Code{
	fault.InvalidArgument: errs.Config, fault.NotFound: errs.NotFound, fault.PermissionDenied: errs.Denied,
	fault.FailedPrecondition: errs.Precondition, fault.ResourceExhausted: errs.Exhausted, fault.Unavailable: errs.Unavailable,
	fault.DeadlineExceeded: errs.Deadline, fault.Internal: errs.Internal,
}

// wire gives an error of a provider the form in which it travels.
func wire(err error) error {
	if err == nil {
		return nil
	}
	var f *fault.Error
	if !errors.As(err, &f) {
		return err
	}
	if f.Code == fault.InvalidArgument && f.Attr != "" {
		plain := *f
		plain.Attr, plain.Secret = "", ""
		return errs.ConfigErrorf(place(f), "%s", plain.Error())
	}
	return &errs.Error{Code: codes[f.Code], Err: err, RetryAfter: f.RetryAfter}
}
