package resolver

import (
	"encoding/hex"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/nucleus-runtime/nucleus/sdk/network"
)

func TestWhatIsNoQuestion(t *testing.T) {
	question := func(change func(*dns.Msg)) string {
		m := new(dns.Msg).SetQuestion("a.example.", dns.TypeA)
		m.Id = 0x1234
		change(m)
		return hex.EncodeToString(pack(t, m))
	}
	opt := func(m *dns.Msg) { m.SetEdns0(1232, true) }
	const name = "0161076578616d706c6500"
	for what, c := range map[string]struct{ wire, want string }{
		"nothing":                {"", ""},
		"less than a header":     {"1234010000010000000000", ""},
		"a response":             {question(func(m *dns.Msg) { m.Response = true }), ""},
		"a header alone":         {"123401000001000000000000", "FORMERR"},
		"no question":            {question(func(m *dns.Msg) { m.Question = nil }), "FORMERR"},
		"two questions":          {question(func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }), "FORMERR"},
		"an answer":              {question(func(m *dns.Msg) { m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: "a.example."}}} }), "FORMERR"},
		"an authority":           {question(func(m *dns.Msg) { m.Ns = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: "a.example."}}} }), "FORMERR"},
		"an update":              {question(func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate }), "NOTIMP"},
		"a notification":         {question(func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify }), "NOTIMP"},
		"cut off":                {question(func(*dns.Msg) {})[:40], "FORMERR"},
		"a pointer":              {"123401000001000000000000" + "c00c" + "00010001", "FORMERR"},
		"a pointer after labels": {"123401000001000000000000" + name[:4] + "c00c" + "00010001", "FORMERR"},
		"a reserved label type":  {"123401000001000000000000" + "41" + strings.Repeat("61", 65) + "00" + "00010001", "FORMERR"},
		"two of EDNS":            {question(func(m *dns.Msg) { opt(m); opt(m) }), "FORMERR"},
		"three additional":       {question(func(m *dns.Msg) { opt(m); m.Extra = append(m.Extra, m.Extra[0], m.Extra[0]) }), "FORMERR"},
		"a later EDNS":           {question(func(m *dns.Msg) { opt(m); m.IsEdns0().SetVersion(1) }), "BADVERS"},
		"bytes behind":           {question(func(*dns.Msg) {}) + "00ff", "NOERROR"},
		"EDNS":                   {question(opt), "NOERROR"},
	} {
		b := newBench(t, names2rules("a.example"), []string{"a.example. 300 A 8.8.8.8"}, nil)
		wire, err := hex.DecodeString(c.wire)
		if err != nil {
			t.Fatal(err)
		}
		out := b.answer(t.Context(), wire, 512)
		if c.want == "" {
			if out != nil {
				t.Errorf("%s: an answer", what)
			}
			continue
		}
		m := new(dns.Msg)
		if err := m.Unpack(out); err != nil || !m.Response || m.Id != 0x1234 || strings.ReplaceAll(dns.RcodeToString[m.Rcode], "BADSIG", "BADVERS") != c.want {
			t.Errorf("%s: %v, %v; want %s", what, m, err, c.want)
		}
		if asked := b.up.questions(); c.want != "NOERROR" && len(asked) > 0 {
			t.Errorf("%s: asked %q", what, asked)
		}
	}
}

func TestEDNSIsAnsweredInKind(t *testing.T) {
	b := newBench(t, names2rules("a.example"), []string{"a.example. 300 A 8.8.8.8"}, nil)
	q := new(dns.Msg).SetQuestion("a.example.", dns.TypeA)
	q.SetEdns0(4096, true)
	q.IsEdns0().Option = append(q.IsEdns0().Option, &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0011223344556677"})
	m := b.send(t, q, 512)
	if opt := m.IsEdns0(); brief(m) != "NOERROR 198.18.1.0" || opt == nil || opt.UDPSize() != ednsSize || !opt.Do() || len(opt.Option) > 0 || !m.RecursionAvailable || !m.RecursionDesired || m.Authoritative {
		t.Errorf("%v", m)
	}
	if m := b.ask(t, "a.example.", dns.TypeA); m.IsEdns0() != nil {
		t.Errorf("unasked: %v", m)
	}
}

// A negative answer holds what upstream said, and is the only one that can be long.
func TestALongAnswerIsTruncatedOverUDP(t *testing.T) {
	b := newBench(t, names2rules("*.example"), nil, nil)
	long := strings.Repeat(strings.Repeat("x", 60)+".", 4)
	name := strings.Repeat(strings.Repeat("y", 60)+".", 4)[:230] + ".example."
	b.up.set(func(q *dns.Msg, _, _ string) [][]byte {
		m := new(dns.Msg).SetRcode(q, dns.RcodeNameError)
		m.Ns = []dns.RR{&dns.SOA{Hdr: dns.RR_Header{Name: "example.", Rrtype: dns.TypeSOA, Class: dns.ClassINET}, Ns: "a." + long, Mbox: "b.c." + long[2:]}}
		return [][]byte{pack(t, m)}
	})
	for _, c := range []struct {
		size int
		edns uint16
		cut  bool
	}{{512, 0, true}, {512, 100, true}, {512, 1232, false}, {0, 0, false}} {
		q := new(dns.Msg).SetQuestion(name, dns.TypeA)
		if c.edns > 0 {
			q.SetEdns0(c.edns, false)
		}
		m := b.send(t, q, c.size)
		if m.Rcode != dns.RcodeNameError || m.Truncated != c.cut || len(m.Ns) == 0 != c.cut {
			t.Errorf("%+v: %v", c, m)
		}
		if c.cut && len(pack(t, m)) > 512 {
			t.Errorf("%+v: %d bytes", c, len(pack(t, m)))
		}
	}
}

// Whatever comes, the answer can be read and is to this message, and upstream is asked
// for addresses of allowed names alone.
func FuzzAnswer(f *testing.F) {
	for _, q := range []*dns.Msg{
		new(dns.Msg).SetQuestion("a.example.", dns.TypeA),
		new(dns.Msg).SetQuestion("x.b.example.", dns.TypeAAAA),
		new(dns.Msg).SetQuestion("c.example.", dns.TypeTXT).SetEdns0(1232, true),
		new(dns.Msg).SetQuestion(`x\.y\000.b.example.`, dns.TypeA),
		new(dns.Msg).SetQuestion("0.1.18.198.in-addr.arpa.", dns.TypePTR),
		new(dns.Msg).SetQuestion("localhost.", dns.TypeA),
	} {
		wire := pack(f, q)
		f.Add(wire)
		f.Add(wire[:len(wire)-1])
	}
	f.Add(make([]byte, headerSize))
	f.Fuzz(func(t *testing.T, wire []byte) {
		b := newBench(t, names2rules("a.example", "*.b.example"), []string{"a.example. 300 A 8.8.8.8"}, nil)
		out := b.answer(t.Context(), wire, 512)
		for _, asked := range b.up.questions() {
			name := strings.Fields(asked)[1]
			if name != "a.example." && !strings.HasSuffix(name, ".b.example.") || name != strings.ToLower(name) || strings.ContainsAny(name, `\ `) {
				t.Errorf("asked for %s", asked)
			}
		}
		for _, d := range b.denials() {
			if d.Reason == network.ReasonPrivate || len(d.Name) > 1024 || strings.ContainsFunc(d.Name, func(r rune) bool { return r < ' ' || r > '~' }) {
				t.Errorf("told %+v", d)
			}
		}
		if out == nil {
			return
		}
		m := new(dns.Msg)
		if err := m.Unpack(out); err != nil || !m.Response || len(out) > ednsSize || len(wire) < headerSize || out[0] != wire[0] || out[1] != wire[1] {
			t.Errorf("answer %x, %v", out, err)
		}
	})
}

func BenchmarkAnswer(b *testing.B) {
	for name, question := range map[string]string{"allowed": "a.example.", "refused": "b.example."} {
		b.Run(name, func(b *testing.B) {
			r := newBench(b, names2rules("a.example", "*.b.example"), []string{"a.example. 300 A 8.8.8.8"}, func(c *Config, _ *bench) { c.Denied = nil })
			wire := pack(b, new(dns.Msg).SetQuestion(question, dns.TypeA))
			b.ReportAllocs()
			for b.Loop() {
				if r.answer(b.Context(), wire, 512) == nil {
					b.Fatal("no answer")
				}
			}
		})
	}
}
