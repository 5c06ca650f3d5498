package netbridge

import (
	"testing"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/netlab"
	"github.com/nucleus-runtime/nucleus/sdk/conformance"
	"github.com/nucleus-runtime/nucleus/sdk/plugintest"
)

func TestItConforms(t *testing.T) {
	netlab.Needs(t)
	for _, r := range plugintest.Run(t, plugintest.Config{
		Binary: plugintest.Build(t, "../cmd/nucleus-plugin-netbridge", "nucleus-plugin-netbridge"),
		Plugin: plugintest.Values{"bridge": "nucleus7"},
		Instances: []plugintest.Instance{
			{Service: "network", ID: "default", Config: plugintest.Values{}},
			{Service: "network", ID: "own", Config: plugintest.Values{"subnet": "10.42.0.0/24", "mtu": 1400}},
		},
	}) {
		if r.Outcome == conformance.NotApplicable {
			t.Logf("nothing to look at: %v", r)
		}
	}
}
