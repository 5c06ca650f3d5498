// Package exit owns how a flow leaves the sandbox: it asks the policy, finds out where
// the flow goes, and opens the host's side. Each path by which flows come here gets the
// same answers. It never opens what the policy has not allowed, and nothing of the host
// itself, whatever the policy says.
package exit

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/ledger"
	"github.com/nucleus-runtime/nucleus/plugins/network/internal/resolver"
	"github.com/nucleus-runtime/nucleus/sdk/dnsname"
	"github.com/nucleus-runtime/nucleus/sdk/network"
	"github.com/nucleus-runtime/nucleus/sdk/network/egress"
	"github.com/nucleus-runtime/nucleus/sdk/network/member"
)

// The protocols, as policies call them.
const (
	TCP  = "tcp"
	UDP  = "udp"
	ICMP = "icmp"
)

// ErrRefused is the error for a flow that the policy refuses. That it was refused is
// in the ledger already.
var ErrRefused = errors.New("the policy refuses the flow")

// DialTimeout is how long a connection may take.
const DialTimeout = 10 * time.Second

// Exit is that of one sandbox.
type Exit struct {
	policy *egress.Policy
	names  *resolver.Resolver
	ledger *ledger.Ledger
	// members reaches the jobs that rules have, nil if none does.
	members *member.Dialer
	host    hostAddrs
}

// New makes one.
func New(p *egress.Policy, r *resolver.Resolver, l *ledger.Ledger, m *member.Dialer) *Exit {
	return &Exit{policy: p, names: r, ledger: l, members: m}
}

// Target is where an allowed flow goes.
type Target struct {
	Name  dnsname.Name     // "" if it is known by its address alone
	Addrs []netip.AddrPort // the first is the best, all are allowed; none of a job
	job   *job
}

// Quick tells what can be told of a flow without asking anybody: whether it is
// refused. Then it is in the ledger.
func (e *Exit) Quick(proto string, dst netip.AddrPort) error {
	if resolver.Synthetic(dst.Addr()) {
		return nil
	}
	if v := e.policy.Addr(proto, dst); !v.Allow {
		return e.deny(proto, dst, "", v)
	}
	return nil
}

// Find asks the policy about a flow, and the name's zone where the address stands for
// a name.
func (e *Exit) Find(ctx context.Context, proto string, dst netip.AddrPort) (Target, error) {
	return e.find(proto, dst, func(n dnsname.Name) ([]netip.Addr, error) { return e.names.Lookup(ctx, n) })
}

// errAsk is the error for a name that somebody must be asked for.
var errAsk = errors.New("the name is not known yet")

// Ready is Find where nobody has to be waited for. Where somebody has, ok is false.
func (e *Exit) Ready(proto string, dst netip.AddrPort) (t Target, ok bool, err error) {
	t, err = e.find(proto, dst, func(n dnsname.Name) ([]netip.Addr, error) {
		if addrs, ok := e.names.Known(n); ok {
			return addrs, nil
		}
		return nil, errAsk
	})
	if errors.Is(err, errAsk) {
		return Target{}, false, nil
	}
	return t, true, err
}

type lookup func(dnsname.Name) ([]netip.Addr, error)

func (e *Exit) find(proto string, dst netip.AddrPort, look lookup) (Target, error) {
	if resolver.Synthetic(dst.Addr()) {
		return e.findName(proto, dst, look)
	}
	if v := e.policy.Addr(proto, dst); !v.Allow {
		return Target{}, e.deny(proto, dst, "", v)
	}
	if own, err := e.own(dst.Addr()); err != nil {
		return Target{}, err
	} else if own {
		return Target{}, e.deny(proto, dst, "", ofHost)
	}
	return Target{Addrs: []netip.AddrPort{plain(dst)}}, nil
}

func (e *Exit) findName(proto string, dst netip.AddrPort, look lookup) (Target, error) {
	name, ok := e.names.NameOf(dst.Addr())
	if !ok {
		return Target{}, e.deny(proto, dst, "", egress.Verdict{Rule: -1, Reason: network.ReasonUnbound})
	}
	if e.isJob(name) {
		return e.findJob(proto, dst, name)
	}
	v := e.policy.Name(name, proto, dst.Port())
	if !v.Allow {
		return Target{}, e.deny(proto, dst, name, v)
	}
	addrs, err := look(name)
	if errors.Is(err, errAsk) {
		return Target{}, err
	}
	if err != nil || len(addrs) == 0 {
		v.Reason = network.ReasonUnresolved
		return Target{}, e.deny(proto, dst, name, v)
	}
	var refused egress.Verdict
	t := Target{Name: name}
	for _, a := range addrs {
		real := plain(netip.AddrPortFrom(a, dst.Port()))
		own, err := e.own(a)
		if err != nil {
			return Target{}, err
		}
		switch bound := e.policy.Bound(name, proto, real); {
		case own:
			refused = egress.Verdict{Rule: v.Rule, Reason: network.ReasonHost}
		case bound.Allow:
			t.Addrs = append(t.Addrs, real)
		default:
			refused = bound
		}
	}
	if len(t.Addrs) == 0 {
		return Target{}, e.deny(proto, dst, name, refused)
	}
	t.Addrs = interleave(t.Addrs, dst.Addr().Is4())
	return t, nil
}

func (e *Exit) deny(proto string, dst netip.AddrPort, name dnsname.Name, v egress.Verdict) error {
	e.ledger.Deny(network.Denial{At: time.Now(), Protocol: proto, Dst: dst, Name: string(name), Rule: v.Rule, Reason: v.Reason, Count: 1})
	return ErrRefused
}

// Refuse notes a flow that no path carries.
func (e *Exit) Refuse(proto string, dst netip.AddrPort) error {
	return e.deny(proto, dst, "", egress.Verdict{Rule: -1, Reason: network.ReasonProtocol})
}

// own reports whether an address is the host's, or what its kernel would take for
// that: whatever listens there often trusts whoever reaches it, and a block that has the
// address was written for what is behind the host. In a job 127.0.0.1 is the sandbox.
func (e *Exit) own(a netip.Addr) (bool, error) {
	a = a.Unmap()
	switch {
	case a.IsLoopback() || a.IsUnspecified() || a.IsMulticast() || a.Zone() != "":
		return true, nil
	case a.Is6() && a.IsLinkLocalUnicast(): // it means nothing without the name of a link
		return true, nil
	}
	for _, x := range translated(a) {
		if own, err := e.own(x); own || err != nil {
			return own, err
		}
	}
	own, err := e.host.has(a)
	if err != nil {
		return true, fmt.Errorf("finding out whether %s is the host's: %w", a, err)
	}
	return own, nil
}

// ofHost is in no rule's power.
var ofHost = egress.Verdict{Rule: -1, Reason: network.ReasonHost}

func plain(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

// interleave alternates families, as RFC 8305 wants it.
func interleave(all []netip.AddrPort, v4First bool) []netip.AddrPort {
	var by [2][]netip.AddrPort
	for _, a := range all {
		i := 0
		if a.Addr().Is4() != v4First {
			i = 1
		}
		by[i] = append(by[i], a)
	}
	out := make([]netip.AddrPort, 0, len(all))
	for i := range max(len(by[0]), len(by[1])) {
		for _, b := range by {
			if i < len(b) {
				out = append(out, b[i])
			}
		}
	}
	return out
}

// DialUDP opens a socket that speaks to the best address.
func (e *Exit) DialUDP(ctx context.Context, dst netip.AddrPort) (*net.UDPConn, *ledger.Flow, error) {
	t, err := e.Find(ctx, UDP, dst)
	if err != nil {
		return nil, nil, err
	}
	if t.job != nil {
		c, err := e.dialJobUDP(ctx, t)
		if err != nil {
			return nil, nil, err
		}
		return c, e.ledger.Open(t.Name), nil
	}
	var failed error
	for _, a := range t.Addrs {
		c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(a))
		if err == nil {
			return c, e.ledger.Open(t.Name), nil
		}
		failed = errors.Join(failed, err) // no route in this family
	}
	return nil, nil, failed
}

// Errno is what a program is to get for an error of Dial.
func Errno(err error) syscall.Errno {
	var errno syscall.Errno
	switch {
	case errors.Is(err, syscall.ECONNREFUSED): // of several, one was there
		return syscall.ECONNREFUSED
	case errors.As(err, &errno):
		return errno
	default:
		return syscall.ETIMEDOUT
	}
}
