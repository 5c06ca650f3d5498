package resolver

import (
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"
	"github.com/nucleus-runtime/nucleus/sdk/dnsname"
	"github.com/nucleus-runtime/nucleus/sdk/network"
	"github.com/nucleus-runtime/nucleus/sdk/network/egress"
)

const (
	// maxTTL limits for how long a client keeps an answer, in seconds. The addresses do
	// not change, but whether the name exists may.
	maxTTL = 60
	// jobTTL is the same for a job, which may be started again at another address.
	jobTTL = 1
	// answerLimit is how long a question may take: a lookup, and Bind.
	answerLimit = lookupLimit + 2*time.Second

	headerSize = 12
)

// answer makes the answer to a message; nil for what must have none. size limits it,
// unless the question allows more; 0 is no limit, over TCP.
func (r *Resolver) answer(ctx context.Context, wire []byte, size int) []byte {
	// A response that were answered might go back and forth for ever.
	if len(wire) < headerSize || wire[2]&0x80 != 0 {
		return nil
	}
	q := new(dns.Msg)
	if rcode := accept(wire); rcode != dns.RcodeSuccess {
		return bare(wire, rcode)
	}
	// The library takes a header alone for a message, whatever it counts.
	if q.Unpack(wire) != nil || len(q.Question) != 1 || options(q) > 1 {
		return bare(wire, dns.RcodeFormatError)
	}
	m := new(dns.Msg).SetReply(q)
	m.RecursionAvailable = true
	if opt := q.IsEdns0(); opt != nil {
		m.SetEdns0(ednsSize, opt.Do())
		if opt.Version() != 0 {
			m.Rcode = dns.RcodeBadVers
		}
		if size != 0 {
			size = min(max(size, int(opt.UDPSize())), ednsSize)
		}
	}
	if m.Rcode == dns.RcodeSuccess {
		ctx, cancel := context.WithTimeout(ctx, answerLimit)
		defer cancel()
		r.fill(ctx, m, wire)
	}
	if size != 0 {
		m.Truncate(size)
	}
	out, err := m.Pack()
	if err != nil {
		return bare(wire, dns.RcodeServerFailure)
	}
	return out
}

// accept looks at a header, before a message that is made to be expensive is read.
func accept(wire []byte) int {
	count := func(i int) uint16 { return binary.BigEndian.Uint16(wire[i:]) }
	switch {
	case wire[2]>>3&0xf != dns.OpcodeQuery:
		return dns.RcodeNotImplemented
	case count(4) != 1 || count(6) != 0 || count(8) != 0 || count(10) > 2:
		return dns.RcodeFormatError
	}
	return dns.RcodeSuccess
}

// options counts the records of EDNS, of which there may be one (RFC 6891 section 6.1.1).
func options(q *dns.Msg) int {
	n := 0
	for _, rr := range q.Extra {
		if rr.Header().Rrtype == dns.TypeOPT {
			n++
		}
	}
	return n
}

// bare is an answer to what cannot be read: a header alone.
func bare(wire []byte, rcode int) []byte {
	out := make([]byte, headerSize)
	copy(out, wire[:2])
	out[2] = 0x80 | wire[2]&0x79 // a response, with opcode and RD as asked
	out[3] = 0x80 | byte(rcode)  // recursion is available
	return out
}

// labels reads the name of the question as it came. The library's text has escapes
// for what a label must not hold, which would have to be undone without a mistake.
func labels(wire []byte) ([][]byte, bool) {
	var out [][]byte
	for rest := wire[headerSize:]; len(rest) > 0; {
		n := int(rest[0])
		switch {
		case n == 0:
			return out, true
		case n > 63 || n >= len(rest): // a pointer has nothing to point to in a first name
			return nil, false
		}
		out = append(out, rest[1:1+n])
		rest = rest[1+n:]
	}
	return nil, false
}

// fill decides on a question.
func (r *Resolver) fill(ctx context.Context, m *dns.Msg, wire []byte) {
	q := m.Question[0]
	ls, ok := labels(wire)
	if !ok {
		m.Rcode = dns.RcodeFormatError
		return
	}
	n, err := dnsname.FromLabels(ls)
	switch {
	case err != nil:
		// No rule can have such a name, whatever the default is: how upstream would read
		// it is anybody's guess.
		r.refuse(m, strings.TrimSuffix(q.Name, "."), egress.Verdict{Rule: -1, Reason: network.ReasonDefault})
	case q.Qclass != dns.ClassINET:
		m.Rcode = dns.RcodeRefused
	case local(n):
		loopback(m)
	case strings.HasSuffix(string(n), ".arpa"):
		r.reverse(m, n)
	case r.job(ctx, m, n):
	default:
		r.forward(ctx, m, n)
	}
}

// job answers for a job of the stack. One that is not there is a name that does not
// exist.
func (r *Resolver) job(ctx context.Context, m *dns.Msg, n dnsname.Name) bool {
	if r.c.Job == nil {
		return false
	}
	at, is, err := r.c.Job(ctx, n)
	switch {
	case !is:
		return false
	case err != nil:
		m.Rcode = dns.RcodeServerFailure
	case at == (Own{}):
		m.Rcode = dns.RcodeNameError
	default:
		put(m, at, jobTTL)
	}
	return true
}

func (r *Resolver) refuse(m *dns.Msg, name string, v egress.Verdict) {
	m.Rcode = dns.RcodeRefused
	if r.c.Denied != nil {
		r.c.Denied(network.Denial{At: time.Now(), Protocol: "dns", Name: name, Rule: v.Rule, Reason: v.Reason, Count: 1})
	}
}

// local names are the sandbox's own loopback (RFC 6761 section 6.3), never the host's.
func local(n dnsname.Name) bool {
	return n == "localhost" || strings.HasSuffix(string(n), ".localhost")
}

func loopback(m *dns.Msg) {
	put(m, Own{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}, maxTTL)
}

// put answers with the address of the family that was asked for.
func put(m *dns.Msg, own Own, ttl uint32) {
	q := m.Question[0]
	h := dns.RR_Header{Name: q.Name, Rrtype: q.Qtype, Class: dns.ClassINET, Ttl: ttl}
	switch {
	case q.Qtype == dns.TypeA && own.V4.IsValid():
		m.Answer = append(m.Answer, &dns.A{Hdr: h, A: own.V4.AsSlice()})
	case q.Qtype == dns.TypeAAAA && own.V6.IsValid():
		m.Answer = append(m.Answer, &dns.AAAA{Hdr: h, AAAA: own.V6.AsSlice()})
	}
}

// forward answers for names that may have addresses elsewhere.
func (r *Resolver) forward(ctx context.Context, m *dns.Msg, n dnsname.Name) {
	v := r.c.Policy.Resolve(n)
	if !v.Allow {
		r.refuse(m, string(n), v)
		return
	}
	qtype := m.Question[0].Qtype
	if qtype != dns.TypeA && qtype != dns.TypeAAAA {
		// There is nothing else, and upstream is not asked: TXT and the like are how data
		// is carried through the DNS, HTTPS and SVCB hold addresses that go around the
		// name, and SRV and MX other names.
		return
	}
	f, err := r.find(ctx, n)
	if err != nil {
		m.Rcode = dns.RcodeServerFailure
		return
	}
	real, v4, v6 := r.reachable(n, f)
	switch {
	case len(f.v4)+len(f.v6) == 0:
		negative(m, f)
		return
	case len(real) == 0:
		r.refuse(m, string(n), egress.Verdict{Rule: v.Rule, Reason: network.ReasonPrivate})
		return
	case r.c.SameFamily && qtype == dns.TypeA && !v4:
		missing(m, f, f.err4)
		return
	case r.c.SameFamily && qtype == dns.TypeAAAA && !v6:
		missing(m, f, f.err6)
		return
	}
	own, err := r.own(ctx, n, f, real)
	if err != nil {
		if errors.Is(err, errFull) {
			r.full(n, v.Rule)
		}
		m.Rcode = dns.RcodeServerFailure
		return
	}
	put(m, own, ttl(f, maxTTL))
}

// reachable are the real addresses to which any flow may be allowed.
func (r *Resolver) reachable(n dnsname.Name, f *found) (real []netip.Addr, v4, v6 bool) {
	for _, a := range f.all() {
		if hosts(a) || !r.c.Policy.Reach(n, a).Allow {
			continue
		}
		real = append(real, a)
		v4, v6 = v4 || a.Is4(), v6 || a.Is6()
	}
	return real, v4, v6
}

// hosts are addresses that mean something else on the host than in the sandbox, or
// are ours. No rule is about them: what a name stands for is reached from the host,
// where they would be its own services.
func hosts(a netip.Addr) bool {
	a = a.Unmap()
	return a.IsLoopback() || a.IsUnspecified() || a.IsMulticast() || a.IsLinkLocalUnicast() && a.Is6() || Synthetic(a)
}

// missing answers for a family that the name does not have, or that is not known.
func missing(m *dns.Msg, f *found, err error) {
	if err != nil {
		m.Rcode = dns.RcodeServerFailure
		return
	}
	negative(m, f)
}

// negative says that there is nothing, and for how long, as far as upstream did.
func negative(m *dns.Msg, f *found) {
	if !f.exists {
		m.Rcode = dns.RcodeNameError
	}
	if f.soa != nil {
		soa := *f.soa
		soa.Hdr.Ttl = ttl(f, soa.Hdr.Ttl)
		m.Ns = append(m.Ns, &soa)
	}
}

// ttl is the rest of what was found, in seconds, at least one.
func ttl(f *found, limit uint32) uint32 {
	rest := time.Until(f.expires).Seconds()
	return max(1, min(limit, uint32(max(0, rest)+0.5)))
}

// full tells that there is no room for another name: seldom, for a workload can ask
// as fast as it likes.
func (r *Resolver) full(n dnsname.Name, rule int) {
	now := time.Now().UnixNano()
	last := r.toldFull.Load()
	if r.c.Denied == nil || now-last < int64(10*time.Second) || !r.toldFull.CompareAndSwap(last, now) {
		return
	}
	r.c.Denied(network.Denial{At: time.Now(), Protocol: "dns", Name: string(n), Rule: rule, Reason: network.ReasonUnresolved, Count: 1})
}
