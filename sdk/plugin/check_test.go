package plugin

import (
	"context"
	"strings"
	"testing"

	"github.com/nucleus-runtime/nucleus/sdk/config"
	"github.com/nucleus-runtime/nucleus/sdk/network"
	"github.com/nucleus-runtime/nucleus/sdk/runtime"
)

func TestWhatAPluginMustBe(t *testing.T) {
	section := config.To(config.Func[struct{}](func(context.Context, config.Instance, struct{}) error { return nil }))
	good := func() Plugin { return Plugin{Name: "a", Version: "1", Network: struct{ network.Network }{}} }
	for _, tc := range []struct {
		name   string
		change func(*Plugin)
		want   string // "" for none
	}{
		{"a network", func(*Plugin) {}, ""},
		{"a runtime", func(p *Plugin) { p.Network, p.Runtime = nil, struct{ runtime.Runtime }{} }, ""},
		{"with a configuration", func(p *Plugin) { p.NetworkConfig = section }, ""},
		{"with handles", func(p *Plugin) { p.HandleVersions = []uint32{1, 2} }, ""},
		{"a name in capitals", func(p *Plugin) { p.Name = "A" }, "lower-case letters"},
		{"no version", func(p *Plugin) { p.Version = "" }, "it has no version"},
		{"nothing to serve", func(p *Plugin) { p.Network = nil }, "it serves nothing"},
		{"a configuration of another service", func(p *Plugin) { p.RuntimeConfig = section }, "a service that it does not serve"},
		{"handles of no version", func(p *Plugin) { p.HandleVersions = []uint32{1, 0} }, "0 is no version of a handle"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := good()
			tc.change(&p)
			err := p.check()
			if (err != nil) != (tc.want != "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v", err)
			}
		})
	}
}
