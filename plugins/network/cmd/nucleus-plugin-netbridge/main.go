// Command nucleus-plugin-netbridge connects the sandboxes of root by a bridge.
package main

import (
	"github.com/nucleus-runtime/nucleus/plugins/network/netbridge"
	"github.com/nucleus-runtime/nucleus/sdk/config"
	"github.com/nucleus-runtime/nucleus/sdk/plugin"
)

// version is set by the linker.
var version = "dev"

func main() { plugin.Serve(self()) }

func self() plugin.Plugin {
	n := netbridge.New()
	return plugin.Plugin{
		Name: "netbridge", Version: version, Description: "connects sandboxes by a bridge, with nftables as their policy",
		DocsURL: "https://github.com/nucleus-runtime/nucleus/tree/main/plugins/network",
		Network: n, Config: config.To(config.Func[netbridge.Config](n.Configure)), NetworkConfig: config.To(config.Func[netbridge.Instance](n.ConfigureInstance)),
		HandleVersions: []uint32{netbridge.HandleVersion},
		Needs:          plugin.Needs{Capabilities: []string{"CAP_NET_ADMIN", "CAP_NET_BIND_SERVICE"}, HostNetwork: true},
		Lifetime:       plugin.Resident,
		Close:          n.Close,
	}
}
