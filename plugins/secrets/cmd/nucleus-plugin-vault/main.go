// Command nucleus-plugin-vault gives sandboxes secrets of HashiCorp Vault.
package main

import (
	"github.com/nucleus-runtime/nucleus/plugins/secrets/internal/provider"
	"github.com/nucleus-runtime/nucleus/plugins/secrets/vault"
	"github.com/nucleus-runtime/nucleus/sdk/plugin"
)

// version is set by the linker.
var version = "dev"

func main() { plugin.Serve(self()) }

func self() plugin.Plugin {
	return provider.Leasing("vault", version, "gives secrets of HashiCorp Vault", vault.New)
}
