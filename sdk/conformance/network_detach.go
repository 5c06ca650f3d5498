package conformance

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nucleus-runtime/nucleus/sdk/errs"
	"github.com/nucleus-runtime/nucleus/sdk/network"
)

// detaches has been tried when it was learned.
func detaches(ctx context.Context, k *Checker) error {
	return k.inSite(ctx, func(*site) error { return k.known.detach })
}

// detachesAgain disconnects in each state that a core may find a sandbox in.
func detachesAgain(ctx context.Context, k *Checker) error {
	if err := k.takes("network/detach"); err != nil {
		return err
	}
	return k.inSite(ctx, func(s *site) error {
		never, err := s.link(ctx, onePort())
		if err != nil {
			return err
		}
		if err := never.detach(ctx); err != nil {
			return broken("Detach without Prepare and Attach: %s", refusal(err))
		}
		l, err := s.attached(ctx, onePort())
		if err != nil {
			return err
		}
		for _, again := range []string{"Detach", "Detach, again"} {
			if err := l.detach(ctx); err != nil {
				return broken("%s: %s", again, refusal(err))
			}
		}
		if err := s.clean("Detach, twice"); err != nil {
			return err
		}
		for _, c := range []struct {
			how string
			do  func(l *link, r *network.DetachRequest)
		}{
			{"Detach by a new process that is told the handle", func(_ *link, r *network.DetachRequest) { r.Prepared = network.Handle{} }},
			{"Detach by a new process that is told no handle", func(_ *link, r *network.DetachRequest) { r.Handle, r.Prepared = network.Handle{}, network.Handle{} }},
			{"Detach by a new process, of a sandbox that is gone", func(l *link, _ *network.DetachRequest) { l.gone() }},
		} {
			if err := s.detachedBy(ctx, c.how, c.do); err != nil {
				return err
			}
		}
		return nil
	})
}

// gone ends the sandbox, with its namespaces.
func (l *link) gone() {
	for _, f := range l.files {
		f.Close()
	}
	l.files = nil
	l.box.Close()
	l.box = nil
	time.Sleep(goneTime)
}

// goneTime is usually enough for the kernel to remove the links of a namespace that
// has ended.
const goneTime = 50 * time.Millisecond

func (s *site) detachedBy(ctx context.Context, how string, do func(*link, *network.DetachRequest)) error {
	l, err := s.attached(ctx, onePort())
	if err != nil {
		return err
	}
	r := l.detachRequest()
	l.p.close()
	do(l, r)
	if err := l.start(ctx); err != nil {
		return err
	}
	if err := l.detachBy(ctx, r); err != nil {
		return broken("%s: %s", how, refusal(err))
	}
	return s.clean(how)
}

func unknownHandle(ctx context.Context, k *Checker) error {
	return k.inSite(ctx, func(s *site) error {
		l, err := s.attached(ctx, onePort())
		if err != nil {
			return err
		}
		newer := network.Handle{Version: 4711, Opaque: []byte("of a version that nobody knows")}
		calls := map[string]func(context.Context) error{
			"Detach, as what Attach gave": func(ctx context.Context) error {
				r := l.detachRequest()
				r.Handle = newer
				_, err := l.n.Detach(ctx, r)
				return err
			},
			"Detach, as what Prepare gave": func(ctx context.Context) error {
				r := l.detachRequest()
				r.Prepared = newer
				_, err := l.n.Detach(ctx, r)
				return err
			},
		}
		if l.n.Checker != nil {
			calls["Status"] = func(ctx context.Context) error {
				_, err := l.n.Checker.Status(ctx, &network.StatusRequest{SandboxID: l.id, InstanceID: l.instance(), Handle: newer, IfName: ifName})
				return err
			}
		}
		var bad []error
		for what, call := range calls {
			if err := within(ctx, call); errs.CodeOf(err) != errs.Precondition {
				bad = append(bad, broken("%s: %s", what, refusal(err)))
			}
		}
		return errors.Join(bad...)
	})
}

// crashParts are the moments within a call at which it is killed.
const crashParts = 4

// networkCrash kills the process in and after each call, and has a new one undo what
// it finds, with what a core can know then.
func networkCrash(ctx context.Context, k *Checker) error {
	if err := k.takes("network/detach"); err != nil {
		return err
	}
	return k.inSite(ctx, func(s *site) error {
		prepareTook, attachTook, err := s.timed(ctx)
		if err != nil {
			return err
		}
		for part := range crashParts + 1 {
			for _, c := range []struct {
				verb string
				took time.Duration
				do   func(l *link, id string) error
			}{
				{"Prepare", prepareTook, func(l *link, id string) error { return l.prepare(ctx, id) }},
				{"Attach", attachTook, func(l *link, id string) error { return l.attach(ctx, id) }},
			} {
				if c.verb == "Prepare" && !k.feature(network.FeaturePrepare) {
					continue
				}
				l, err := s.link(ctx, onePort())
				if err == nil && c.verb == "Attach" {
					if err = l.prepare(ctx, k.id()); err == nil {
						err = l.open()
					}
				}
				if err != nil {
					return err
				}
				how := fmt.Sprintf("a SIGKILL %d/%d into %s and Detach", part, crashParts, c.verb)
				if part == crashParts {
					how = fmt.Sprintf("a SIGKILL after %s and Detach", c.verb)
					if err := c.do(l, k.id()); err != nil {
						return err
					}
				} else {
					l.killedIn(c.took*time.Duration(part)/crashParts, func() error { return c.do(l, k.id()) })
				}
				if err := l.restart(ctx); err != nil {
					return err
				}
				if err := l.detach(ctx); err != nil {
					return broken("%s: %s", how, refusal(err))
				}
				if err := s.clean(how); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// killedIn kills the process some time after a call has begun. Its answer is lost.
func (l *link) killedIn(after time.Duration, call func() error) {
	done := make(chan struct{})
	prep, got := l.prep, l.got
	go func() {
		defer close(done)
		_ = call() // its process is killed
	}()
	time.Sleep(after)
	l.p.kill()
	<-done
	l.prep, l.got = prep, got
}

// timed measures both calls.
func (s *site) timed(ctx context.Context) (prepare, attach time.Duration, err error) {
	l, err := s.link(ctx, onePort())
	if err != nil {
		return 0, 0, err
	}
	begin := time.Now()
	if err := l.prepare(ctx, s.k.id()); err != nil {
		return 0, 0, err
	}
	prepare = time.Since(begin)
	if err := l.open(); err != nil {
		return 0, 0, err
	}
	begin = time.Now()
	if err := l.attach(ctx, s.k.id()); err != nil {
		return 0, 0, err
	}
	attach = time.Since(begin)
	if err := l.detach(ctx); err != nil {
		return 0, 0, err
	}
	return prepare, attach, nil
}
