package resolver

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/miekg/dns"
	"github.com/nucleus-runtime/nucleus/sdk/dnsname"
)

const (
	// grace is how long a family is waited for once the other has addresses: some
	// servers never answer questions for AAAA.
	grace = 2 * time.Second
	// perFamily is how many addresses of a name are kept.
	perFamily = 32
	// chain is how many aliases are followed.
	chain = 16

	maxKept     = time.Hour // whatever a TTL says
	maxNegative = time.Minute
	noSOA       = 5 * time.Second // a negative answer that does not say for how long
	half        = 5 * time.Second // an answer of one family, while the other failed
	failed      = time.Second     // RFC 9520: a failure must be kept for at least that
)

// family is what upstream says of a name's addresses of one family.
type family struct {
	exists bool
	addrs  []netip.Addr
	ttl    uint32
	soa    *dns.SOA
	err    error
}

// resolve asks upstream for both families.
func (r *Resolver) resolve(ctx context.Context, n dnsname.Name) *found {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var fs [2]family
	var wg sync.WaitGroup
	for i, t := range []uint16{dns.TypeA, dns.TypeAAAA} {
		wg.Go(func() {
			fs[i] = r.family(ctx, n, t)
			if len(fs[i].addrs) > 0 {
				late := time.AfterFunc(grace, cancel)
				context.AfterFunc(ctx, func() { late.Stop() })
			}
		})
	}
	wg.Wait()
	return combine(fs[0], fs[1], time.Now())
}

func (r *Resolver) family(ctx context.Context, n dnsname.Name, qtype uint16) family {
	m, err := r.exchange(ctx, n, qtype)
	if err != nil {
		return family{err: err}
	}
	return read(m)
}

// combine makes one of what is known of both families.
func combine(v4, v6 family, now time.Time) *found {
	f := &found{exists: true, v4: v4.addrs, v6: v6.addrs, err4: v4.err, err6: v6.err}
	var keep time.Duration
	switch {
	case len(v4.addrs)+len(v6.addrs) > 0:
		keep = maxKept
		for _, one := range []family{v4, v6} {
			if len(one.addrs) > 0 {
				keep = min(keep, time.Duration(one.ttl)*time.Second)
			}
			if one.err != nil {
				keep = min(keep, half)
			}
		}
	case v4.err != nil:
		f.err, keep = v4.err, failed
	case v6.err != nil:
		f.err, keep = v6.err, failed
	default:
		f.exists = v4.exists || v6.exists
		f.soa, keep = v4.soa, noSOA
		if f.soa == nil {
			f.soa = v6.soa
		}
		if f.soa != nil {
			keep = min(maxNegative, time.Duration(min(f.soa.Hdr.Ttl, f.soa.Minttl))*time.Second)
		}
	}
	f.expires = now.Add(max(keep, time.Second))
	return f
}

// read takes of an answer the addresses that belong to the question: its own, or
// those at the end of its aliases. Which names those are does not matter to the policy: the user
// has allowed the name that was asked for, and its zone says where it leads.
func read(m *dns.Msg) family {
	q := m.Question[0]
	f := family{exists: m.Rcode == dns.RcodeSuccess}
	if !f.exists {
		f.soa = authority(m)
		return f
	}
	at := dns.CanonicalName(q.Name)
	f.ttl = uint32(maxKept / time.Second)
	leads := aliases(m)
	for range chain {
		alias, ok := leads[at]
		if !ok {
			break
		}
		f.ttl = min(f.ttl, alias.Hdr.Ttl)
		at = dns.CanonicalName(alias.Target)
	}
	for _, rr := range m.Answer {
		h := rr.Header()
		if h.Class != dns.ClassINET || h.Rrtype != q.Qtype || dns.CanonicalName(h.Name) != at || len(f.addrs) == perFamily {
			continue
		}
		if a, ok := address(rr); ok && !slices.Contains(f.addrs, a) {
			f.addrs = append(f.addrs, a)
			f.ttl = min(f.ttl, h.Ttl)
		}
	}
	if len(f.addrs) == 0 {
		f.soa = authority(m)
	}
	return f
}

// aliases are those of an answer by their names, the first of each. An answer has up to
// 4000 records, in the order that its zone likes.
func aliases(m *dns.Msg) map[string]*dns.CNAME {
	var out map[string]*dns.CNAME
	for _, rr := range m.Answer {
		c, ok := rr.(*dns.CNAME)
		if !ok || c.Hdr.Class != dns.ClassINET {
			continue
		}
		if out == nil {
			out = map[string]*dns.CNAME{}
		}
		if at := dns.CanonicalName(c.Hdr.Name); out[at] == nil {
			out[at] = c
		}
	}
	return out
}

func address(rr dns.RR) (netip.Addr, bool) {
	switch rr := rr.(type) {
	case *dns.A:
		return netip.AddrFromSlice(rr.A.To4())
	case *dns.AAAA:
		a, ok := netip.AddrFromSlice(rr.AAAA.To16())
		return a, ok && !a.Is4In6() // an IPv4 address has no business here
	}
	return netip.Addr{}, false
}

func authority(m *dns.Msg) *dns.SOA {
	for _, rr := range m.Ns {
		if soa, ok := rr.(*dns.SOA); ok && soa.Hdr.Class == dns.ClassINET {
			return soa
		}
	}
	return nil
}

func sameAddrs(a, b []netip.Addr) bool {
	if len(a) != len(b) {
		return false
	}
	a, b = slices.Clone(a), slices.Clone(b)
	slices.SortFunc(a, netip.Addr.Compare)
	slices.SortFunc(b, netip.Addr.Compare)
	return slices.Equal(a, b)
}
