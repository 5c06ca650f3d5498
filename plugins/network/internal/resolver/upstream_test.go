package resolver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"

	"github.com/nucleus-runtime/nucleus/sdk/dnsname"
)

// reply answers every question for A with one address, after change.
func reply(t testing.TB, q *dns.Msg, a string, change func(*dns.Msg)) []byte {
	t.Helper()
	m := new(dns.Msg).SetReply(q)
	if q.Question[0].Qtype == dns.TypeA {
		m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 300}, A: netip.MustParseAddr(a).AsSlice()}}
	}
	if change != nil {
		change(m)
	}
	return pack(t, m)
}

func TestAnAnswerToSomethingElseIsPassedOver(t *testing.T) {
	for name, lie := range map[string]func(m *dns.Msg){
		"other id":       func(m *dns.Msg) { m.Id++ },
		"other name":     func(m *dns.Msg) { m.Question[0].Name = "b.example." },
		"name below":     func(m *dns.Msg) { m.Question[0].Name = "x.a.example." },
		"other type":     func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeTXT },
		"other class":    func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS },
		"no question":    func(m *dns.Msg) { m.Question = nil },
		"two questions":  func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) },
		"a question":     func(m *dns.Msg) { m.Response = false },
		"another opcode": func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate },
	} {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t, names2rules("a.example"), nil, nil)
			b.up.set(func(q *dns.Msg, _, _ string) [][]byte {
				return [][]byte{reply(t, q, "9.9.9.9", lie), []byte("garbage"), nil, reply(t, q, "8.8.8.8", nil)}
			})
			got, err := b.Lookup(t.Context(), "a.example")
			if err != nil || len(got) != 1 || got[0].String() != "8.8.8.8" {
				t.Errorf("%s: %v, %v", name, got, err)
			}
		})
	}
}

func TestRecordsOfOtherNamesAreNotTaken(t *testing.T) {
	b := newBench(t, names2rules("*.example"), nil, nil)
	b.up.set(func(q *dns.Msg, _, _ string) [][]byte {
		return [][]byte{reply(t, q, "8.8.8.8", func(m *dns.Msg) {
			for _, rr := range m.Answer {
				other := dns.Copy(rr).(*dns.A)
				other.Hdr.Name, other.A = "b.example.", netip.MustParseAddr("9.9.9.9").AsSlice()
				chaos := dns.Copy(other).(*dns.A)
				chaos.Hdr.Name, chaos.Hdr.Class = "a.example.", dns.ClassCHAOS
				m.Answer = append(m.Answer, other, chaos)
				m.Extra = append(m.Extra, other)
			}
		})}
	})
	if got, err := b.Lookup(t.Context(), "a.example"); err != nil || fmt.Sprint(got) != "[8.8.8.8]" {
		t.Errorf("%v, %v", got, err)
	}
}

func TestATruncatedAnswerIsAskedForOverTCP(t *testing.T) {
	for name, cut := range map[string]func(m *dns.Msg) []byte{
		"empty":       func(m *dns.Msg) []byte { m.Answer = nil; return pack(t, m) },
		"partial":     func(m *dns.Msg) []byte { return pack(t, m) },
		"in a record": func(m *dns.Msg) []byte { w := pack(t, m); return w[:len(w)-3] },
	} {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t, names2rules("a.example"), nil, nil)
			b.up.set(func(q *dns.Msg, network, _ string) [][]byte {
				if network == "udp" && q.Question[0].Qtype == dns.TypeA {
					var m dns.Msg
					_ = m.Unpack(reply(t, q, "9.9.9.9", func(m *dns.Msg) { m.Truncated = true }))
					return [][]byte{cut(&m)}
				}
				return [][]byte{reply(t, q, "8.8.8.8", func(m *dns.Msg) {
					for i := range 4000 { // more than is kept, and than UDP carries
						if len(m.Answer) > 0 {
							more := dns.Copy(m.Answer[0]).(*dns.A)
							more.A = netip.AddrFrom4([4]byte{8, 1, byte(i >> 8), byte(i)}).AsSlice()
							m.Answer = append(m.Answer, more)
						}
					}
					m.Compress = true
				})}
			})
			began := time.Now()
			got, err := b.Lookup(t.Context(), "a.example")
			if err != nil || len(got) != perFamily || got[0].String() != "8.8.8.8" || time.Since(began) != 0 {
				t.Errorf("%s: %v, %v after %s", name, got, err, time.Since(began))
			}
			if asked := b.up.questions(); !slices.Equal(asked, []string{"tcp a.example. A", "udp a.example. A", "udp a.example. AAAA"}) {
				t.Errorf("%s: asked %q", name, asked)
			}
		})
	}
}

func TestAnUpstreamThatFailsIsFollowedByTheNext(t *testing.T) {
	const bad, good = "192.0.2.1:53", "192.0.2.2:53"
	for name, c := range map[string]struct {
		answer func(q *dns.Msg) [][]byte
		after  time.Duration
	}{
		"silent": {func(*dns.Msg) [][]byte { return nil }, tryLimit},
		"broken": {func(q *dns.Msg) [][]byte {
			return [][]byte{reply(t, q, "9.9.9.9", func(m *dns.Msg) { m.Rcode = dns.RcodeServerFailure })}
		}, 0},
		"refusing": {func(q *dns.Msg) [][]byte {
			return [][]byte{reply(t, q, "9.9.9.9", func(m *dns.Msg) { m.Rcode, m.Question, m.Answer = dns.RcodeRefused, nil, nil })}
		}, 0},
		"lying": {func(q *dns.Msg) [][]byte {
			return slices.Repeat([][]byte{reply(t, q, "9.9.9.9", func(m *dns.Msg) { m.Id++ })}, strangers)
		}, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t, names2rules("*.example"), nil, func(c *Config, _ *bench) {
				c.Upstream = []netip.AddrPort{netip.MustParseAddrPort(bad), netip.MustParseAddrPort(good)}
			})
			b.up.set(func(q *dns.Msg, _, server string) [][]byte {
				if server == bad {
					return c.answer(q)
				}
				return [][]byte{reply(t, q, "8.8.8.8", nil)}
			})
			// The one that has answered is the first to be asked the next time.
			for i, after := range []time.Duration{c.after, 0} {
				began := time.Now()
				if got, err := b.Lookup(t.Context(), numbered(i)); err != nil || fmt.Sprint(got) != "[8.8.8.8]" || time.Since(began) != after {
					t.Errorf("%s, the %d. time: %v, %v after %s", name, i+1, got, err, time.Since(began))
				}
			}
		})
	}
}

func TestAServerFromBeforeEDNS(t *testing.T) {
	for _, rcode := range []int{dns.RcodeFormatError, dns.RcodeNotImplemented} {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t, names2rules("a.example"), nil, nil)
			b.up.set(func(q *dns.Msg, _, _ string) [][]byte {
				if q.IsEdns0() != nil {
					return [][]byte{reply(t, q, "9.9.9.9", func(m *dns.Msg) { m.Rcode, m.Question, m.Answer = rcode, nil, nil })}
				}
				return [][]byte{reply(t, q, "8.8.8.8", nil)}
			})
			if got, err := b.Lookup(t.Context(), "a.example"); err != nil || fmt.Sprint(got) != "[8.8.8.8]" {
				t.Errorf("%v, %v", got, err)
			}
		})
	}
}

func TestWhenNobodyAnswers(t *testing.T) {
	for upstreams, limit := range map[int]time.Duration{0: 0, 1: 2 * tryLimit, 2: 4 * tryLimit, 3: lookupLimit} {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t, names2rules("a.example"), nil, func(c *Config, _ *bench) {
				c.Upstream = slices.Repeat(c.Upstream, upstreams)
			})
			b.up.set(func(*dns.Msg, string, string) [][]byte { return nil })
			began := time.Now()
			if got := brief(b.ask(t, "a.example.", dns.TypeA)); got != "SERVFAIL" || time.Since(began) != limit {
				t.Errorf("%d upstreams: %s after %s", upstreams, got, time.Since(began))
			}
			// The failure is kept for a second, so that asking again does not ask upstream.
			asked := len(b.up.questions())
			if got := brief(b.ask(t, "a.example.", dns.TypeA)); got != "SERVFAIL" || len(b.up.questions()) != asked {
				t.Errorf("again: %s", got)
			}
			b.up.set(zone(t, "a.example. 300 A 8.8.8.8"))
			time.Sleep(failed)
			if got := brief(b.ask(t, "a.example.", dns.TypeA)); upstreams > 0 && got != "NOERROR 198.18.1.0" {
				t.Errorf("later: %s", got)
			}
		})
	}
}

func TestAFamilyThatIsNeverAnsweredIsNotWaitedForLong(t *testing.T) {
	for _, same := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t, names2rules("a.example"), nil, func(c *Config, _ *bench) { c.SameFamily = same })
			b.up.set(func(q *dns.Msg, _, _ string) [][]byte {
				if q.Question[0].Qtype == dns.TypeAAAA {
					return nil
				}
				return [][]byte{reply(t, q, "8.8.8.8", nil)}
			})
			began := time.Now()
			if got := brief(b.ask(t, "a.example.", dns.TypeA)); got != "NOERROR 198.18.1.0" || time.Since(began) != grace {
				t.Errorf("%s after %s", got, time.Since(began))
			}
			want := "NOERROR fd00:6e75:636c::100"
			if same {
				want = "SERVFAIL" // there may be one
			}
			if got := brief(b.ask(t, "a.example.", dns.TypeAAAA)); got != want {
				t.Errorf("AAAA: %s", got)
			}
			time.Sleep(half)
			b.up.set(zone(t, "a.example. 300 AAAA 2606:4700::1"))
			if got := brief(b.ask(t, "a.example.", dns.TypeAAAA)); got != "NOERROR fd00:6e75:636c::100" {
				t.Errorf("later: %s", got)
			}
		})
	}
}

func TestTTLs(t *testing.T) {
	for _, c := range []struct {
		records     []string
		told, after uint32 // at once, and 10 s later if it is kept for so long
		kept        time.Duration
	}{
		{[]string{"A 8.8.8.8"}, 60, 60, time.Hour},
		{[]string{"A 8.8.8.8", "AAAA 2606:4700::1"}, 60, 60, 100 * time.Second},
		{[]string{"A 8.8.8.8"}, 30, 20, 30 * time.Second},
		{[]string{"A 8.8.8.8"}, 1, 1, time.Second}, // 0
		{[]string{"TXT hello"}, 20, 10, 20 * time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			ttl := []string{"100000", "100"}
			if c.kept < time.Minute {
				ttl[0] = fmt.Sprint(c.told)
			}
			if c.told == 1 {
				ttl[0] = "0"
			}
			var records []string
			for i, r := range c.records {
				records = append(records, "a.example. "+ttl[i]+" "+r)
			}
			b := newBench(t, names2rules("a.example"), records, nil)
			told := func() uint32 {
				m := b.ask(t, "a.example.", dns.TypeA)
				return append(m.Answer, m.Ns...)[0].Header().Ttl
			}
			if got := told(); got != c.told {
				t.Errorf("%q: TTL %d, want %d", records, got, c.told)
			}
			asked := len(b.up.questions())
			if c.kept > 10*time.Second {
				time.Sleep(10 * time.Second)
				if got := told(); got != c.after {
					t.Errorf("%q: later TTL %d, want %d", records, got, c.after)
				}
				time.Sleep(c.kept - 10*time.Second - time.Nanosecond)
			}
			if c.kept == time.Second {
				time.Sleep(time.Second - time.Millisecond)
			}
			if got := told(); got < 1 || len(b.up.questions()) != asked {
				t.Errorf("%q: asked again too early", records)
			}
			time.Sleep(c.kept)
			if told(); len(b.up.questions()) == asked {
				t.Errorf("%q: never asked again", records)
			}
		})
	}
}

// A name whose addresses change with every answer is one name with one address.
func TestRotationDoesNotShow(t *testing.T) {
	const lookups = 10_000
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, names2rules("a.example"), nil, nil)
		var mu sync.Mutex
		n := 0
		b.up.set(func(q *dns.Msg, _, _ string) [][]byte {
			mu.Lock()
			defer mu.Unlock()
			n++
			return [][]byte{reply(t, q, netip.AddrFrom4([4]byte{8, byte(n >> 16), byte(n >> 8), byte(n)}).String(), func(m *dns.Msg) {
				for _, rr := range m.Answer {
					rr.Header().Ttl = 0
				}
			})}
		})
		for range lookups {
			if got := brief(b.ask(t, "a.example.", dns.TypeA)); got != "NOERROR 198.18.1.0" {
				t.Fatal(got)
			}
			time.Sleep(time.Second)
		}
		if got := len(b.up.questions()); got != 2*lookups {
			t.Errorf("%d questions, want %d: the name did not rotate", got, 2*lookups)
		}
		bound := b.bindings()
		if slices.Sort(bound); len(slices.Compact(bound)) != lookups {
			t.Errorf("bound to %d addresses, want %d", len(slices.Compact(bound)), lookups)
		}
	})
}

func TestManyWhoWantANameAskOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, names2rules("a.example"), nil, nil)
		b.up.set(func(q *dns.Msg, _, _ string) [][]byte {
			time.Sleep(time.Second)
			return [][]byte{reply(t, q, "8.8.8.8", nil)}
		})
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				if got := brief(b.ask(t, "a.example.", dns.TypeA)); got != "NOERROR 198.18.1.0" {
					t.Error(got)
				}
			})
		}
		wg.Wait()
		if got := b.up.questions(); len(got) != 2 {
			t.Errorf("asked %q", got)
		}
		if got := b.bindings(); len(got) != 1 {
			t.Errorf("bound %q", got)
		}
	})
}

func TestLookupOfWhatTheResolverDoesNotResolve(t *testing.T) {
	b := newBench(t, names2rules("a.example", "localhost", "*.localhost"), []string{"a.example. 300 A 8.8.8.8"}, nil)
	for _, n := range []dnsname.Name{"b.example", "localhost", "a.localhost"} {
		if got, err := b.Lookup(t.Context(), n); !errors.Is(err, ErrRefused) {
			t.Errorf("%s: %v, %v", n, got, err)
		}
	}
	b.Close()
	if got, err := b.Lookup(t.Context(), "a.example"); err == nil || strings.Contains(err.Error(), "refuses") {
		t.Errorf("closed: %v, %v", got, err)
	}
	if asked := b.up.questions(); len(asked) > 0 {
		t.Errorf("asked %q", asked)
	}
}

// counted is a connection that is counted while it is open.
type counted struct {
	net.Conn
	closed func()
}

func (c counted) Close() error {
	c.closed()
	return c.Conn.Close()
}

// However many names are wanted at once, no more than a number of sockets is open for
// them, and those that find no place fail soon.
func TestNamesThatAreResolvedAtATimeAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		open, most, failures, atOnce := 0, 0, 0, 0
		count := func(n *int, by int) {
			mu.Lock()
			defer mu.Unlock()
			*n += by
			most = max(most, open)
		}
		b := newBench(t, names2rules("*.example"), nil, func(c *Config, _ *bench) {
			dial := c.Dial
			c.Dial = func(ctx context.Context, network, server string) (net.Conn, error) {
				count(&open, 1)
				conn, err := dial(ctx, network, server)
				return counted{conn, func() { count(&open, -1) }}, err
			}
		})
		b.up.set(func(q *dns.Msg, _, _ string) [][]byte {
			time.Sleep(time.Second)
			return [][]byte{reply(t, q, "8.8.8.8", nil)}
		})
		var wg sync.WaitGroup
		began := time.Now()
		for i := range 2 * flights {
			wg.Go(func() {
				if _, err := b.Lookup(t.Context(), dnsname.Name(fmt.Sprintf("n%d.example", i))); err != nil {
					count(&failures, 1)
					if time.Since(began) == 0 {
						count(&atOnce, 1)
					}
				}
			})
		}
		wg.Wait()
		if most != 2*lookups || open != 0 || atOnce != flights || time.Since(began) != lookupLimit {
			t.Errorf("%d sockets at a time, %d left, %d failures, %d of them at once, after %s", most, open, failures, atOnce, time.Since(began))
		}
	})
}
