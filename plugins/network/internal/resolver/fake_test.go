package resolver

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/miekg/dns"

	"github.com/nucleus-runtime/nucleus/sdk/dnsname"
	"github.com/nucleus-runtime/nucleus/sdk/network"
	"github.com/nucleus-runtime/nucleus/sdk/network/egress"
)

// fake is an upstream. Its connections are pipes, so that it works in a bubble of
// synctest, too.
type fake struct {
	wg     sync.WaitGroup // connections
	mu     sync.Mutex
	answer answering
	asked  []string // "udp name type"
}

// answering gives the messages that go back, none for silence.
type answering func(q *dns.Msg, network, server string) [][]byte

func (f *fake) set(a answering) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answer = a
}

func (f *fake) dial(_ context.Context, network, server string) (net.Conn, error) {
	here, there := net.Pipe()
	f.wg.Go(func() {
		defer there.Close()
		wire := make([]byte, 4096)
		n, err := there.Read(wire)
		if err != nil {
			return
		}
		wire = wire[:n]
		if network == "tcp" {
			wire = wire[2:]
		}
		q := new(dns.Msg)
		if q.Unpack(wire) != nil {
			return
		}
		f.mu.Lock()
		f.asked = append(f.asked, strings.Join([]string{network, q.Question[0].Name, dns.TypeToString[q.Question[0].Qtype]}, " "))
		answer := f.answer
		f.mu.Unlock()
		for _, out := range answer(q, network, server) {
			if network == "tcp" {
				out = append(binary.BigEndian.AppendUint16(nil, uint16(len(out))), out...)
			}
			if _, err := there.Write(out); err != nil {
				return
			}
		}
		_, _ = io.Copy(io.Discard, there)
	})
	return here, nil
}

// questions are those that were asked, sorted.
func (f *fake) questions() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := slices.Clone(f.asked)
	slices.Sort(out)
	return out
}

// zone answers from records in the form of zone files. A name without any does not
// exist.
func zone(t testing.TB, records ...string) answering {
	t.Helper()
	var rrs []dns.RR
	for _, s := range records {
		rr, err := dns.NewRR(s)
		if err != nil {
			t.Fatal(err)
		}
		rrs = append(rrs, rr)
	}
	soa, err := dns.NewRR("example. 30 IN SOA ns.example. admin.example. 1 2 3 4 20")
	if err != nil {
		t.Fatal(err)
	}
	return func(q *dns.Msg, _, _ string) [][]byte {
		m := new(dns.Msg).SetReply(q)
		at, exists := q.Question[0].Name, false
		for range 20 {
			next := ""
			for _, rr := range rrs {
				h := rr.Header()
				if h.Name != at {
					continue
				}
				exists = true
				c, alias := rr.(*dns.CNAME)
				if alias {
					next = c.Target
				}
				if alias || h.Rrtype == q.Question[0].Qtype {
					m.Answer = append(m.Answer, rr)
				}
			}
			if at = next; at == "" {
				break
			}
		}
		if !exists {
			m.Rcode = dns.RcodeNameError
		}
		if len(m.Answer) == 0 {
			m.Ns = append(m.Ns, soa)
		}
		return [][]byte{pack(t, m)}
	}
}

func pack(t testing.TB, m *dns.Msg) []byte {
	t.Helper()
	wire, err := m.Pack()
	if err != nil {
		t.Error(err)
	}
	return wire
}

// bench is a resolver with all that it touches.
type bench struct {
	*Resolver
	up *fake

	mu     sync.Mutex
	denied []network.Denial
	bound  []string // "name 1.2.3.4 ..."
}

func names2rules(names ...string) network.Egress {
	return network.Egress{Allow: []network.Rule{{Names: names}}}
}

// newBench has one upstream that answers from records; change may change the rest.
func newBench(t testing.TB, e network.Egress, records []string, change func(*Config, *bench)) *bench {
	t.Helper()
	p, err := egress.New(e)
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{up: &fake{answer: zone(t, records...)}}
	c := Config{
		Policy:   p,
		Upstream: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:53")},
		Dial:     b.up.dial,
		Denied: func(d network.Denial) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.denied = append(b.denied, d)
		},
		Bind: func(_ context.Context, n dnsname.Name, own Own, real []netip.Addr) error {
			b.mu.Lock()
			defer b.mu.Unlock()
			if got, ok := b.NameOf(own.V4); ok && got != n {
				t.Errorf("%s is bound at an address of %s", n, got)
			}
			s := string(n)
			for _, a := range real {
				s += " " + a.String()
			}
			b.bound = append(b.bound, s)
			return nil
		},
	}
	if change != nil {
		change(&c, b)
	}
	b.Resolver, err = New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		b.Close()
		b.up.wg.Wait()
	})
	return b
}

// ask sends a question through the resolver.
func (b *bench) ask(t testing.TB, name string, qtype uint16) *dns.Msg {
	t.Helper()
	return b.send(t, new(dns.Msg).SetQuestion(name, qtype), 512)
}

func (b *bench) send(t testing.TB, q *dns.Msg, size int) *dns.Msg {
	t.Helper()
	wire := b.answer(t.Context(), pack(t, q), size)
	m := new(dns.Msg)
	if err := m.Unpack(wire); err != nil {
		t.Fatalf("%v of %x", err, wire)
	}
	if m.Id != q.Id || !m.Response {
		t.Fatalf("not an answer to %v: %v", q, m)
	}
	return m
}

// brief is an answer in short: its code, and its records without owner and class.
func brief(m *dns.Msg) string {
	out := []string{dns.RcodeToString[m.Rcode]}
	for _, rr := range m.Answer {
		switch rr := rr.(type) {
		case *dns.A:
			out = append(out, rr.A.String())
		case *dns.AAAA:
			out = append(out, rr.AAAA.String())
		case *dns.PTR:
			out = append(out, rr.Ptr)
		default:
			out = append(out, rr.String())
		}
	}
	return strings.Join(out, " ")
}

func (b *bench) denials() []network.Denial {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.denied)
}

func (b *bench) bindings() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.bound)
}
