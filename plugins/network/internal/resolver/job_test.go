package resolver

import (
	"context"
	"errors"
	"net/netip"
	"testing"

	"github.com/miekg/dns"

	"github.com/nucleus-runtime/nucleus/sdk/dnsname"
	"github.com/nucleus-runtime/nucleus/sdk/network"
)

// A job is where it is said to be at the moment, and is asked for nowhere else, whatever
// the policy lets be asked for.
func TestJobsAreAnsweredAtOnce(t *testing.T) {
	var at Own
	var failure error
	b := newBench(t, network.Egress{Default: network.Public}, []string{"db. 300 A 8.8.8.8", "other. 300 A 8.8.4.4"}, func(c *Config, _ *bench) {
		c.Job = func(_ context.Context, n dnsname.Name) (Own, bool, error) { return at, n == "db", failure }
	})
	want := func(name string, kind uint16, rcode int, addresses ...string) {
		t.Helper()
		m := b.ask(t, name, kind)
		if m.Rcode != rcode || len(m.Answer) != len(addresses) {
			t.Fatalf("%s %s: %s", name, dns.TypeToString[kind], m)
		}
		for i, rr := range m.Answer {
			if a, ok := address(rr); !ok || a.String() != addresses[i] || rr.Header().Ttl != 1 {
				t.Errorf("%s: %s, want %s for a second", name, rr, addresses[i])
			}
		}
	}
	want("db.", dns.TypeA, dns.RcodeNameError)
	at = Own{V4: netip.MustParseAddr("10.203.1.2")}
	want("db.", dns.TypeA, dns.RcodeSuccess, "10.203.1.2")
	want("DB.", dns.TypeA, dns.RcodeSuccess, "10.203.1.2")
	want("db.", dns.TypeAAAA, dns.RcodeSuccess)
	want("db.", dns.TypeTXT, dns.RcodeSuccess)
	at = Own{V4: netip.MustParseAddr("10.203.1.3"), V6: netip.MustParseAddr("fd6e::3")}
	want("db.", dns.TypeA, dns.RcodeSuccess, "10.203.1.3")
	want("db.", dns.TypeAAAA, dns.RcodeSuccess, "fd6e::3")
	failure = errors.New("no answer from the kernel")
	want("db.", dns.TypeA, dns.RcodeServerFailure)
	if q := b.up.questions(); len(q) > 0 {
		t.Errorf("asked elsewhere: %q", q)
	}
	if m := b.ask(t, "other.", dns.TypeA); m.Rcode != dns.RcodeSuccess || len(b.up.questions()) == 0 {
		t.Errorf("a name that is no job's: %s, after the questions %q", m, b.up.questions())
	}
}
