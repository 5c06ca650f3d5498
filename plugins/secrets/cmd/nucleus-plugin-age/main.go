// Command nucleus-plugin-age gives sandboxes secrets that are files encrypted with age.
package main

import (
	"github.com/nucleus-runtime/nucleus/plugins/secrets/age"
	"github.com/nucleus-runtime/nucleus/plugins/secrets/internal/provider"
	"github.com/nucleus-runtime/nucleus/sdk/plugin"
)

// version is set by the linker.
var version = "dev"

func main() { plugin.Serve(self()) }

func self() plugin.Plugin { return provider.Of("age", version, "decrypts files of age", age.New) }
