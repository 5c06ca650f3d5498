package conformance_test

import (
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
	for _, r := range check(t, ofNetworks("")) {
		if r.Outcome != conformance.Pass {
			t.Error(r)
		}
	}
}

var networkBites = []struct{ rule, defect, says string }{
	{"network/prepare", "prepares again", "the second answer differs"},
	{"network/prepare", "prepares more each time", "+ routing rule 300"},
	{"network/prepare-undone", "keeps what it prepared", "+ routing rule 3000"},
	{"network/attach", "attaches again", "the second time"},
	{"network/attach", "attaches more each time", "+ routing rule 300"},
	{"network/attach", "fails without a reason", "oops"},
	{"network/allowed", "carries no IPv6", "[2606:2800:220::34]:8080, which the policy allows"},
	{"network/denied", "forgets ports", "packets left the host that the policy denies"},
	{"network/denied", "forgets IPv6", "packets left the host that the policy denies"},
	{"network/policy-first", "policy comes late", "while Attach was at work"},
}

func TestEveryRuleOfNetworksBites(t *testing.T) {
	root(t)
	for _, b := range networkBites {
		t.Run(b.defect, func(t *testing.T) {
			t.Parallel()
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
