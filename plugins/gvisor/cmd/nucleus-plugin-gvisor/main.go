// Command nucleus-plugin-gvisor runs sandboxes by gVisor.
package main

import (
	"github.com/nucleus-runtime/nucleus/plugins/gvisor"
	"github.com/nucleus-runtime/nucleus/sdk/config"
	"github.com/nucleus-runtime/nucleus/sdk/plugin"
)

// version is set by the linker.
var version = "dev"

func main() { plugin.Serve(self()) }

func self() plugin.Plugin {
	r := gvisor.New()
	return plugin.Plugin{
		Name: "gvisor", Version: version, Description: "runs sandboxes on a kernel of their own, gVisor's, in user space",
		DocsURL: "https://github.com/nucleus-runtime/nucleus/blob/main/docs/gvisor.md",
		Runtime: r, RuntimeConfig: config.To(r),
		Lifetime: plugin.WarmOK,
	}
}
