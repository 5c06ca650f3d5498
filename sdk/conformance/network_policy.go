package conformance

import (
	"context"
	"errors"
	"time"

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
