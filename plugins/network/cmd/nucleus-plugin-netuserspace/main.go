// Command nucleus-plugin-netuserspace connects sandboxes without any privilege on the
// host.
package main

import (
	"github.com/nucleus-runtime/nucleus/plugins/network/netuserspace"
	"github.com/nucleus-runtime/nucleus/sdk/config"
	"github.com/nucleus-runtime/nucleus/sdk/plugin"
)

// version is set by the linker.
var version = "dev"

func main() { plugin.Serve(self()) }

func self() plugin.Plugin {
	n := netuserspace.New().Own()
	return plugin.Plugin{
		Name: "netuserspace", Version: version, Description: "connects sandboxes without privileges on the host",
		DocsURL: "https://github.com/nucleus-runtime/nucleus/tree/main/plugins/network",
		Network: n, Config: config.To(n), HandleVersions: netuserspace.HandleVersions, Close: n.Close,
		Needs: plugin.Needs{HostNetwork: true}, Lifetime: plugin.Resident,
	}
}
