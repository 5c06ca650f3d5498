package conformance

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nucleus-runtime/nucleus/sdk/errs"
	"github.com/nucleus-runtime/nucleus/sdk/network"
)

// carries has been tried when it was learned.
func carries(ctx context.Context, k *Checker) error {
	return k.inSite(ctx, func(*site) error { return k.known.carries })
}

// tries sends all attempts a few times.
func (l *link) tries() error { return l.box.Try(3, 5*time.Millisecond) }

func denies(ctx context.Context, k *Checker) error {
	if k.known.denies != nil {
		return k.known.denies
	}
	return k.inSite(ctx, func(s *site) error {
		l, err := s.attached(ctx, network.Egress{})
		if err == nil {
			err = l.tries()
		}
		if err == nil {
			err = s.nothingDenied(l.egress, "with a policy that denies all")
		}
		return err
	})
}

func policyFirst(ctx context.Context, k *Checker) error {
	if err := k.takes("network/denied"); err != nil {
		return err
	}
	return k.inSite(ctx, func(s *site) error {
		l, err := s.opened(ctx, onePort())
		if err != nil {
			return err
		}
		stop := l.box.Hammer()
		err = l.attach(ctx, k.id())
		if err := errors.Join(err, stop()); err != nil {
			return err
		}
		return s.nothingDenied(l.egress, "while Attach was at work")
	})
}

// demands are policies and kernels of which a network may be unable to do something.
// All of them deny what Attempts has; nothing resolves the names.
func (l *link) demands() []demand {
	cidrs := onePort().Allow[0].CIDRs[:1]
	out := []demand{
		{"a name", network.Rule{Names: []string{"a.example"}, Ports: onePort().Allow[0].Ports}, nil},
		{"all names below one", network.Rule{Names: []string{"*.example"}}, nil},
		{"a job, in a sandbox of no stack", network.Rule{Jobs: []string{"db"}, Ports: onePort().Allow[0].Ports}, nil},
		{"a protocol that nobody has heard of", network.Rule{CIDRs: cidrs, Protocols: []string{"no-such-protocol"}}, nil},
		{"a port of a protocol that nobody has heard of", network.Rule{CIDRs: cidrs, Ports: []network.Ports{{Protocol: "no-such-protocol", First: 53, Last: 53}}}, nil},
	}
	for _, o := range l.prep.Openings {
		if o.Optional {
			out = append(out, demand{fmt.Sprintf("a kernel without what opening %q is", o.Name), onePort().Allow[0], []string{o.Name}})
		}
	}
	for _, x := range l.prep.Setups {
		if x.Optional {
			out = append(out, demand{fmt.Sprintf("a kernel without what setup %q is", x.Name), onePort().Allow[0], []string{x.Name}})
		}
	}
	return out
}

type demand struct {
	what    string
	rule    network.Rule
	without []string
}

// refusesDemands asks for what may not be had: each is enforced, or refused in a way that
// says so.
func refusesDemands(ctx context.Context, k *Checker) error {
	if err := k.takes("network/denied"); err != nil {
		return err
	}
	return k.inSite(ctx, func(s *site) error {
		first, err := s.attached(ctx, onePort())
		if err != nil {
			return err
		}
		for _, d := range first.demands() {
			if err := s.meets(ctx, d); err != nil {
				return fmt.Errorf("%s: %w", d.what, err)
			}
		}
		return nil
	})
}

func (s *site) meets(ctx context.Context, d demand) error {
	l, err := s.link(ctx, network.Egress{Allow: []network.Rule{d.rule}})
	if err != nil {
		return err
	}
	err = l.prepare(ctx, s.k.id())
	if err == nil {
		if err := l.open(d.without...); err != nil {
			return err
		}
		err = l.attach(ctx, s.k.id())
	}
	if err != nil {
		if code := errs.CodeOf(err); code != errs.Precondition && code != errs.Config {
			return broken("%s", refusal(err))
		}
	}
	if l.box == nil {
		return nil
	}
	if err := l.tries(); err != nil {
		return err
	}
	// What is allowed of the one port is not what is asked about.
	return s.nothingDenied(onePort(), "of a policy that was not enforced")
}
