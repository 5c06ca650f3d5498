package resolver

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"
	"github.com/nucleus-runtime/nucleus/sdk/dnsname"
)

// reverse answers for names' own addresses. Others are not asked for: what the owner
// of an address calls it is no concern of a policy, and a way out for data.
func (r *Resolver) reverse(m *dns.Msg, n dnsname.Name) {
	q := m.Question[0]
	a, ok := reversed(n)
	if !ok || !Synthetic(a) {
		m.Rcode = dns.RcodeRefused
		if v := r.c.Policy.Resolve(n); !v.Allow {
			r.refuse(m, string(n), v)
		}
		return
	}
	name, ok := r.NameOf(a)
	if !ok {
		m.Rcode = dns.RcodeNameError
		return
	}
	if q.Qtype == dns.TypePTR {
		m.Answer = append(m.Answer, &dns.PTR{
			Hdr: dns.RR_Header{Name: q.Name, Rrtype: q.Qtype, Class: dns.ClassINET, Ttl: maxTTL}, Ptr: string(name) + ".",
		})
	}
}

// reversed reads the address that a name below arpa is about.
func reversed(n dnsname.Name) (netip.Addr, bool) {
	var text string
	if rest, ok := strings.CutSuffix(string(n), ".in-addr.arpa"); ok {
		parts := strings.Split(rest, ".")
		slices.Reverse(parts)
		text = strings.Join(parts, ".")
	} else if rest, ok := strings.CutSuffix(string(n), ".ip6.arpa"); ok && len(rest) == 63 {
		var b strings.Builder
		for i := 62; i >= 0; i -= 2 {
			b.WriteByte(rest[i])
			if i > 0 && i%8 == 0 {
				b.WriteByte(':')
			}
		}
		text = b.String()
	}
	a, err := netip.ParseAddr(text)
	return a, err == nil
}
