package netlab

import (
	"maps"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/miekg/dns"
)

// Reply is an answer of the name server. The zero Reply says that the name has nothing
// of the type that was asked for.
type Reply struct {
	// Addresses are those of both families; the ones of the other family are left out.
	Addresses []netip.Addr
	// CNAME names another name of the laboratory, whose answer is added.
	CNAME string
	TTL   uint32
	RCode int
	// Drop has the question not answered.
	Drop bool
}

// Query is a question. N counts those of the same name and type from 0.
type Query struct {
	Name string // lower case, without the last dot
	Type uint16 // dns.TypeA and its like
	N    int
}

// DNS is the authoritative name server of everything. What no test has named does not
// exist.
type DNS struct {
	mu      sync.Mutex
	answers map[string]func(Query) Reply
	asked   map[string]int
	each    map[Query]int
}

func newDNS(t testing.TB, n *Namespace) *DNS {
	t.Helper()
	d := &DNS{answers: map[string]func(Query) Reply{}, asked: map[string]int{}, each: map[Query]int{}}
	for _, at := range []string{"0.0.0.0:53", "[::]:53"} {
		family := "4"
		if strings.HasPrefix(at, "[") {
			family = "6"
		}
		stream, err := n.Listen("tcp"+family, at)
		if err != nil {
			t.Fatalf("name server: %v", err)
		}
		packet, err := n.ListenPacket("udp"+family, at)
		if err != nil {
			t.Fatalf("name server: %v", err)
		}
		d.serve(t, &dns.Server{Listener: stream})
		d.serve(t, &dns.Server{PacketConn: packet})
	}
	return d
}

func (d *DNS) serve(t testing.TB, s *dns.Server) {
	started := make(chan struct{})
	s.Handler = dns.HandlerFunc(d.handle)
	s.NotifyStartedFunc = func() { close(started) }
	done := make(chan error, 1)
	go func() { done <- s.ActivateAndServe() }()
	select {
	case <-started:
	case err := <-done:
		t.Fatalf("name server: %v", err)
	}
	t.Cleanup(func() {
		_ = s.Shutdown()
		if err := <-done; err != nil {
			t.Logf("name server: %v", err)
		}
	})
}

// Handle has f answer for a name, or for all below it that have no answer of their own
// if it begins with "*.".
func (d *DNS) Handle(name string, f func(Query) Reply) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.answers[canonical(name)] = f
}

// Set gives a name addresses, with a TTL of a minute.
func (d *DNS) Set(name string, addresses ...string) {
	parsed := parse(addresses)
	d.Handle(name, func(Query) Reply { return Reply{Addresses: parsed, TTL: 60} })
}

// Rotate gives a name one of the addresses of each family at a time, the next at each
// query, with a TTL of zero.
func (d *DNS) Rotate(name string, addresses ...string) {
	byType := map[uint16][]netip.Addr{}
	for _, a := range parse(addresses) {
		byType[addressType(a)] = append(byType[addressType(a)], a)
	}
	d.Handle(name, func(q Query) Reply {
		pool := byType[q.Type]
		if len(pool) == 0 {
			return Reply{}
		}
		return Reply{Addresses: pool[q.N%len(pool):][:1]}
	})
}

// Alias gives a name another as its canonical name.
func (d *DNS) Alias(name, target string) {
	d.Handle(name, func(Query) Reply { return Reply{CNAME: canonical(target), TTL: 60} })
}

// Queries returns how often a name was asked for, with any type, over any protocol and
// by whomever.
func (d *DNS) Queries(name string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.asked[canonical(name)]
}

// Asked returns all names that were asked for, and how often.
func (d *DNS) Asked() map[string]int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return maps.Clone(d.asked)
}

// Forget starts counting anew.
func (d *DNS) Forget() {
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.asked)
	clear(d.each)
}

// reply answers a question, which counts if it came from outside.
func (d *DNS) reply(name string, qtype uint16, outside bool) (Reply, bool) {
	d.mu.Lock()
	q := Query{Name: name, Type: qtype}
	if outside {
		d.asked[name]++
	}
	n := d.each[q]
	d.each[q]++
	q.N = n
	f := d.find(name)
	d.mu.Unlock()
	if f == nil {
		return Reply{}, false
	}
	return f(q), true
}

func (d *DNS) find(name string) func(Query) Reply {
	if f := d.answers[name]; f != nil {
		return f
	}
	for rest := name; ; {
		_, parent, more := strings.Cut(rest, ".")
		if !more {
			return nil
		}
		if f := d.answers["*."+parent]; f != nil {
			return f
		}
		rest = parent
	}
}

func (d *DNS) handle(w dns.ResponseWriter, question *dns.Msg) {
	m := new(dns.Msg)
	m.SetReply(question)
	m.Authoritative = true
	if len(question.Question) != 1 {
		m.Rcode = dns.RcodeFormatError
		_ = w.WriteMsg(m)
		return
	}
	q := question.Question[0]
	owner := q.Name
	for hop := 0; hop < 8; hop++ {
		r, known := d.reply(canonical(owner), q.Qtype, hop == 0)
		switch {
		case r.Drop:
			return
		case !known:
			m.Rcode = dns.RcodeNameError
		default:
			m.Rcode = r.RCode
		}
		for _, a := range r.Addresses {
			if addressType(a) == q.Qtype {
				m.Answer = append(m.Answer, record(owner, a, r.TTL))
			}
		}
		if r.CNAME == "" {
			break
		}
		target := dns.Fqdn(r.CNAME)
		m.Answer = append(m.Answer, &dns.CNAME{
			Hdr:    dns.RR_Header{Name: owner, Rrtype: dns.TypeCNAME, Class: dns.ClassINET, Ttl: r.TTL},
			Target: target,
		})
		owner = target
	}
	if _, datagram := w.RemoteAddr().(*net.UDPAddr); datagram {
		size := dns.MinMsgSize
		if opt := question.IsEdns0(); opt != nil {
			size = int(opt.UDPSize())
		}
		m.Truncate(size)
	}
	_ = w.WriteMsg(m)
}

func record(owner string, a netip.Addr, ttl uint32) dns.RR {
	header := dns.RR_Header{Name: owner, Rrtype: addressType(a), Class: dns.ClassINET, Ttl: ttl}
	if a.Is4() {
		return &dns.A{Hdr: header, A: a.AsSlice()}
	}
	return &dns.AAAA{Hdr: header, AAAA: a.AsSlice()}
}

// addressType: an IPv4 address in IPv6 clothes is an AAAA record, as an attacker's.
func addressType(a netip.Addr) uint16 {
	if a.Is4() {
		return dns.TypeA
	}
	return dns.TypeAAAA
}

func canonical(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }

func parse(addresses []string) []netip.Addr {
	var all []netip.Addr
	for _, a := range addresses {
		all = append(all, netip.MustParseAddr(a))
	}
	return all
}
