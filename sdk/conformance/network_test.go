package conformance_test

import (
	"flag"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nucleus-runtime/nucleus/sdk/conformance"
)

// ofNetworks is the fake as a plugin of networks.
func ofNetworks(defect string) conformance.Config {
	return conformance.Config{Binary: fake, Env: []string{"FAKE_DEFECT=" + defect, "FAKE_SERVES=network"}, Cycles: 10}
}

// root tells whether there can be a host's network to look at.
func root(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can make network namespaces") //nolint:forbidigo // testutil is of another module
	}
}

func TestGoodNetworkPassesAll(t *testing.T) {
	root(t)
	t.Parallel()
	for _, r := range check(t, ofNetworks("")) {
		if r.Outcome != conformance.Pass {
			t.Error(r)
		}
	}
}

var networkBites = []struct{ rule, defect, says string }{
	{"network/prepare", "prepares again", "the second answer differs"},
	{"network/prepare", "prepares more each time", "+ routing rule 300"},
	{"network/prepare", "sets up after nothing", `setup "late" comes after "early"`},
	{"network/prepare-undone", "keeps what it prepared", "+ routing rule 3000"},
	{"network/attach", "attaches again", "the second time"},
	{"network/attach", "attaches more each time", "+ routing rule 300"},
	{"network/attach", "fails without a reason", "oops"},
	{"network/allowed", "carries no IPv6", "[2606:2800:220::34]:8080, which the policy allows"},
	{"network/denied", "forgets ports", "packets left the host that the policy denies"},
	{"network/denied", "forgets IPv6", "packets left the host that the policy denies"},
	{"network/policy-first", "policy comes late", "while Attach was at work"},
	{"network/refuses", "takes names for everything", "a name: of a policy that was not enforced"},
	{"network/refuses", "fails at names", "index out of range"},
	{"network/isolation", "one network for all", "a sandbox reaches another at 10."},
	{"network/members", "finds no job", "the job is there, and its name has the addresses []"},
	{"network/members", "asks for every port", "it asks for tcp of job \"db\", port 8081"},
	{"network/members", "keeps connections for later", "before it was started there is no such job"},
	{"network/death", "falls open", "after the end of its process"},
	{"network/detach", "leaves its link", "+ link f"},
	{"network/detach", "leaves its rules", "+ routing rule 2000"},
	{"network/detach", "leaves a sysctl", "+ sysctl ipv4/conf/all/accept_local = 1"},
	{"network/detach", "leaves a table", "+ nftables: table 1 fake"},
	{"network/detach-again", "detaches once", "Detach, again: precondition"},
	{"network/detach-again", "needs its handle", "told no handle: precondition: no handle"},
	{"network/detach-again", "stops where the link is gone", "a sandbox that is gone the host's network is not as it was"},
	{"network/handle-version", "any handle", "Detach, as what Attach gave: OK"},
	{"network/crash", "makes something for a moment", "+ link moment"},
	{"network/status", "always fine", "ok, and no drift"},
	{"network/gc", "collects nothing", "+ "},
	{"network/gc", "collects all", "- "},
	{"network/gc", "collects others'", "- "},
	{"network/gc", "collects in a dry run", "only to say what it would remove"},
	{"network/undumpable", "dumpable", "/mem belongs to user"},
	{"network/watch", "tells nobody", "nothing told within 2s"},
}

// exact is for whoever changes a rule or a fake: it takes some minutes.
var exact = flag.Bool("exact", false, "see of each fake network that it breaks no other rule than its own")

func TestEveryRuleOfNetworksBites(t *testing.T) {
	root(t)
	for _, b := range networkBites {
		t.Run(b.defect, func(t *testing.T) {
			if b.rule != "network/crash" { // which kills at a moment that it has measured
				t.Parallel()
			}
			k, err := conformance.New(ofNetworks(b.defect))
			if err != nil {
				t.Fatal(err)
			}
			defer k.Close()
			var got []string
			for _, r := range k.Rules(t.Context()) {
				if r.Suite() != "network" {
					continue // they were seen with the good one
				}
				if !*exact && r.ID != b.rule {
					continue
				}
				res := k.Check(t.Context(), r)
				if res.Outcome != conformance.Fail {
					continue
				}
				got = append(got, r.ID)
				if !strings.Contains(res.Got, b.says) {
					t.Errorf("it does not say %q:\n%s", b.says, res)
				}
			}
			if s := strings.Join(got, " "); s != b.rule {
				t.Errorf("%q failed, and %s should", s, b.rule)
			}
		})
	}
}

func TestEveryRuleOfNetworksHasItsFake(t *testing.T) {
	root(t)
	t.Parallel()
	began := time.Now()
	k, err := conformance.New(ofNetworks(""))
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	for _, r := range k.Rules(t.Context()) {
		if r.Suite() != "network" {
			continue
		}
		if !slices.ContainsFunc(networkBites, func(b struct{ rule, defect, says string }) bool { return b.rule == r.ID }) {
			t.Errorf("no fake breaks %s alone", r.ID)
		}
		one := time.Now()
		res := k.Check(t.Context(), r)
		t.Logf("%s: %s, %s", r.ID, res.Outcome, time.Since(one).Round(time.Millisecond))
	}
	t.Logf("all: %s", time.Since(began).Round(time.Millisecond))
}
