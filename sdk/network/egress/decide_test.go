package egress

import (
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/nucleus-runtime/nucleus/sdk/dnsname"
)

// decide asks a policy as flow.what says.
func decide(t testing.TB, p *Policy, what string) Verdict {
	t.Helper()
	w := strings.Fields(what)
	switch w[0] {
	case "resolve":
		return p.Resolve(dnsname.Name(w[1]))
	case "name", "job":
		port, err := strconv.ParseUint(w[3], 10, 16)
		if err != nil {
			t.Fatal(err)
		}
		if w[0] == "job" {
			return p.Job(dnsname.Name(w[1]), w[2], uint16(port))
		}
		return p.Name(dnsname.Name(w[1]), w[2], uint16(port))
	case "addr":
		return p.Addr(w[1], netip.MustParseAddrPort(w[2]))
	case "bound":
		return p.Bound(dnsname.Name(w[1]), w[2], netip.MustParseAddrPort(w[3]))
	case "reach":
		return p.Reach(dnsname.Name(w[1]), netip.MustParseAddr(w[2]))
	}
	t.Fatalf("what is %q?", what)
	return Verdict{}
}
