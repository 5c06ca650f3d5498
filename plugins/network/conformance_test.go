// Package network has the tests of the networks' programs against the contract of
// plugins, as processes.
package network

import (
	"slices"
	"testing"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/netlab"
	"github.com/nucleus-runtime/nucleus/sdk/conformance"
	"github.com/nucleus-runtime/nucleus/sdk/plugintest"
)

// conforms runs all rules. Those that are named may have nothing to look at.
func conforms(t *testing.T, c plugintest.Config, except ...string) {
	t.Helper()
	netlab.Needs(t)
	c.Cycles = 30
	for _, r := range plugintest.Run(t, c) {
		if r.Outcome == conformance.NotApplicable && !slices.Contains(except, r.Rule) {
			t.Error(r)
		}
	}
}

func TestNetbridgeConforms(t *testing.T) {
	binary := plugintest.Build(t, "./cmd/nucleus-plugin-netbridge", "nucleus-plugin-netbridge")
	for name, c := range map[string]plugintest.Config{
		"as it comes":          {},
		"as an operator likes": {Plugin: plugintest.Values{"bridge": "lan0", "subnet": "10.99.0.0/24", "subnet6": "fd99::/64", "mtu": 1400}},
		"on a bridge of its own": {Instances: []plugintest.Instance{
			{Service: "network", ID: "lan", Config: plugintest.Values{"subnet": "10.98.0.0/24"}},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			c.Binary = binary
			conforms(t, c, "network/members") // the core makes no connections for it
		})
	}
}

func TestNetuserspaceConforms(t *testing.T) {
	binary := plugintest.Build(t, "./cmd/nucleus-plugin-netuserspace", "nucleus-plugin-netuserspace")
	for name, c := range map[string]plugintest.Config{
		"as it comes":           {},
		"by a stack of its own": {Plugin: plugintest.Values{"path": "netstack"}},
	} {
		t.Run(name, func(t *testing.T) {
			c.Binary = binary
			conforms(t, c, "network/gc") // nothing of a sandbox outlives its process
		})
	}
}
