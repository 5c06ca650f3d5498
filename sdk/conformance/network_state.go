package conformance

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/nucleus-runtime/nucleus/sdk/conformance/internal/lab"
	"github.com/nucleus-runtime/nucleus/sdk/errs"
	"github.com/nucleus-runtime/nucleus/sdk/network"
)

func (l *link) status(ctx context.Context) (st *network.Status, err error) {
	err = within(ctx, func(ctx context.Context) error {
		st, err = l.n.Checker.Status(ctx, &network.StatusRequest{
			SandboxID: l.id, InstanceID: l.instance(), Handle: l.got.Handle, NetNS: &l.netns, IfName: ifName,
		})
		return err
	})
	return st, err
}

func sees(ctx context.Context, k *Checker) error {
	if !k.feature(network.FeatureStatus) {
		return skip("it has no feature %s", network.FeatureStatus)
	}
	return k.inSite(ctx, func(s *site) error {
		l, err := s.attached(ctx, onePort())
		if err != nil {
			return err
		}
		st, err := l.status(ctx)
		if err != nil {
			return broken("after Attach: %s", refusal(err))
		}
		if !st.OK || len(st.Drift) > 0 {
			return broken("after Attach: ok %v, drift %q", st.OK, st.Drift)
		}
		// What connects it is a link of the host, or else one of the sandbox.
		cut, err := s.cut(l)
		if err != nil {
			return err
		}
		if cut == "" {
			return skip("there is no link of its own, in the host or in the sandbox, that could be removed")
		}
		st, err = l.status(ctx)
		if err == nil && st.OK && len(st.Drift) == 0 {
			return broken("after the removal of the link %s: ok, and no drift", cut)
		}
		return nil
	})
}

// cut removes a link that came with the sandbox, and tells which.
func (s *site) cut(l *link) (name string, err error) {
	if err = s.Host.Do(func() error {
		for _, i := range l.got.Interfaces {
			if index, err := lab.Here.Index(i.HostName); i.HostName != "" && err == nil && index != 0 {
				name = i.HostName
				return lab.DelLink(name)
			}
		}
		return nil
	}); err != nil || name != "" {
		return name, err
	}
	err = l.box.Do(func() error {
		links, err := lab.Links()
		if err != nil || len(links) == 0 {
			return err
		}
		name = links[0]
		return lab.DelLink(name)
	})
	return name, err
}

// collects attaches two, and says that one of them is not there any more. A third is of
// another state root, of which it says nothing.
func collects(ctx context.Context, k *Checker) error {
	if !k.feature(network.FeatureGC) {
		return skip("it has no feature %s", network.FeatureGC)
	}
	if err := k.takes("network/detach", "network/allowed", "network/denied"); err != nil {
		return err
	}
	return k.inSite(ctx, func(s *site) error {
		stays, err := s.attached(ctx, onePort())
		if err != nil {
			return err
		}
		other, err := s.elsewhere(ctx, nil, onePort())
		if err != nil {
			return err
		}
		one, err := s.Host.Census()
		if err != nil {
			return err
		}
		goes, err := s.attached(ctx, onePort())
		if err != nil {
			return err
		}
		// As after the death of its core: its process is gone, and then the sandbox.
		goes.p.close()
		goes.gone()
		left, err := s.settled()
		if err != nil {
			return err
		}
		by, err := s.link(ctx, onePort())
		if err != nil {
			return err
		}
		valid := []network.Attachment{{SandboxID: stays.id, InstanceID: stays.instance(), IfName: ifName, Handle: stays.got.Handle}}
		for _, dry := range []bool{true, false} {
			err := within(ctx, func(ctx context.Context) error {
				_, err := by.n.Collector.GC(ctx, &network.GCRequest{Call: by.call(k.id()), Valid: valid, DryRun: dry})
				return err
			})
			want, how := one, "GC"
			if dry {
				want, how = left, "GC that was only to say what it would remove"
			}
			if err == nil {
				err = s.changed(want, how)
			}
			if err != nil {
				return fmt.Errorf("%s, of two sandboxes and one of another state root: %w", how, err)
			}
		}
		if err := stays.reaches(); err != nil {
			return fmt.Errorf("the sandbox that is valid, after GC: %w", err)
		}
		if err := other.reaches(); err != nil {
			return fmt.Errorf("the sandbox of another state root, after GC: %w", err)
		}
		if err := stays.tries(); err != nil {
			return err
		}
		return s.nothingDenied(stays.egress, "after GC")
	})
}

// separates has one sandbox ask for another's servers: of no stack, and where the network
// knows stacks of two that have jobs of the same names.
func separates(ctx context.Context, k *Checker) error {
	if err := k.takes("network/denied"); err != nil {
		return err
	}
	return k.inSite(ctx, func(s *site) error {
		if err := s.apart(ctx, nil, nil, onePort(), s.attachedAs); err != nil || !k.feature(network.FeatureStack) {
			return err
		}
		jobs := oneJob()
		if err := s.apart(ctx, &network.Member{Stack: "one", Job: "web"}, &network.Member{Stack: "two", Job: "db"}, jobs, s.attachedAs); err != nil {
			return fmt.Errorf("a job of another stack: %w", err)
		}
		if err := s.apart(ctx, &network.Member{Stack: "three", Job: "web"}, nil, jobs, s.attachedAs); err != nil {
			return fmt.Errorf("a sandbox of no stack: %w", err)
		}
		if err := s.apart(ctx, &network.Member{Stack: "four", Job: "web"}, &network.Member{Stack: "four", Job: "db"}, jobs, s.elsewhere); err != nil {
			return fmt.Errorf("a job of another state root's stack of the same name: %w", err)
		}
		return nil
	})
}

// apart attaches two sandboxes, the first with a policy, the second in some other way.
func (s *site) apart(ctx context.Context, first, second *network.Member, policy network.Egress, attach func(context.Context, *network.Member, network.Egress) (*link, error)) error {
	a, err := s.attachedAs(ctx, first, policy)
	if err != nil {
		return err
	}
	b, err := attach(ctx, second, onePort())
	if err != nil {
		return err
	}
	tried := 0
	for _, c := range b.got.IPs {
		ip := c.Address.Addr()
		if !ip.IsValid() || ip.IsLoopback() {
			continue
		}
		server, err := b.box.Serve(ip.String(), lab.Port, b.id)
		if err != nil {
			return broken("the answer tells of the address %s, at which nothing can listen: %v", ip, err)
		}
		defer server.Close()
		tried++
		got, err := a.box.Ask(netip.AddrPortFrom(ip, lab.Port), isolationTime)
		if err == nil && got == b.id {
			return broken("a sandbox reaches another at %s", ip)
		}
	}
	if tried == 0 {
		return skip("its answer tells of no address")
	}
	return nil
}

// isolationTime is long enough for two that are on one host.
const isolationTime = 300 * time.Millisecond

// watchTime is within what a denial is told.
const watchTime = 2 * time.Second

func watches(ctx context.Context, k *Checker) error {
	if !k.feature(network.FeatureWatch) {
		return skip("it has no feature %s", network.FeatureWatch)
	}
	if err := k.takes("network/allowed"); err != nil {
		return err
	}
	return k.inSite(ctx, func(s *site) error {
		l, err := s.attached(ctx, onePort())
		if err != nil {
			return err
		}
		missing := map[netip.AddrPort]bool{}
		for _, a := range l.families() {
			missing[netip.AddrPortFrom(a, lab.OtherPort)] = true
		}
		seen := make(chan network.Denial, 1024)
		watching, stop := context.WithCancel(ctx)
		defer stop()
		ended := make(chan error, 1)
		go func() {
			ended <- l.n.Watcher.Watch(watching, &network.WatchRequest{SandboxID: l.id, InstanceID: l.instance(), Handle: l.got.Handle}, func(d network.Denial) error {
				select {
				case seen <- d:
				case <-watching.Done():
				}
				return nil
			})
		}()
		if err := l.tries(); err != nil {
			return err
		}
		limit := time.After(watchTime)
		for len(missing) > 0 {
			select {
			case d := <-seen:
				if d.Protocol == "tcp" {
					delete(missing, d.Dst)
				}
			case err := <-ended:
				return broken("Watch ended: %s", refusal(err))
			case <-limit:
				for to := range missing {
					return broken("a connection to %s was refused, and nothing told within %s", to, watchTime)
				}
			}
		}
		stop()
		select {
		case err := <-ended:
			if err != nil && errs.CodeOf(err) != errs.Canceled {
				return broken("Watch, given up: %s", refusal(err))
			}
			return nil
		case <-time.After(endLimit):
			return broken("Watch goes on when nobody listens any more")
		}
	})
}

// holds ends the process while a sandbox tries everything.
func holds(ctx context.Context, k *Checker) error {
	if err := k.takes("network/denied"); err != nil {
		return err
	}
	return k.inSite(ctx, func(s *site) error {
		l, err := s.attached(ctx, onePort())
		if err != nil {
			return err
		}
		stop := l.box.Hammer()
		l.p.close()
		time.Sleep(travelTime)
		if err := stop(); err != nil {
			return err
		}
		return s.nothingDenied(l.egress, "after the end of its process")
	})
}
