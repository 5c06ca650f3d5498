// Command nucleus-plugin-secrets gives sandboxes their secrets. It is one program
// for all providers of this directory: the name that it is called by says which,
// nucleus-plugin-file or nucleus-plugin-vault, since a provider is a plugin of its
// own to its host: with its own configuration, user and rights.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/nucleus-runtime/nucleus/plugins/secrets/age"
	"github.com/nucleus-runtime/nucleus/plugins/secrets/command"
	"github.com/nucleus-runtime/nucleus/plugins/secrets/env"
	"github.com/nucleus-runtime/nucleus/plugins/secrets/file"
	"github.com/nucleus-runtime/nucleus/plugins/secrets/systemd"
	"github.com/nucleus-runtime/nucleus/plugins/secrets/vault"
	"github.com/nucleus-runtime/nucleus/sdk/plugin"
)

// version is set by the linker.
var version = "dev"

// providers are those of this program, by the name that jobs use.
var providers = map[string]func() plugin.Plugin{
	"file": func() plugin.Plugin { return simple("gives the content of files", file.New) },
	"env":  func() plugin.Plugin { return simple("gives variables that the operator allows", env.New) },
	"exec": func() plugin.Plugin {
		return simple("gives the output of commands that the operator defines", command.New)
	},
	"systemd": func() plugin.Plugin { return simple("gives credentials of systemd", systemd.New) },
	"age":     func() plugin.Plugin { return simple("decrypts files of age", age.New) },
	"vault":   func() plugin.Plugin { return leasing("gives secrets of HashiCorp Vault", vault.New) },
}

func main() {
	name := strings.TrimPrefix(filepath.Base(os.Args[0]), "nucleus-plugin-")
	of, ok := providers[name]
	if !ok {
		var names []string
		for n := range providers {
			names = append(names, "nucleus-plugin-"+n)
		}
		slices.Sort(names)
		fmt.Fprintf(os.Stderr, "nucleus-plugin-secrets: error: no provider %q: call it %s\n", name, strings.Join(names, ", "))
		os.Exit(1)
	}
	p := of()
	p.Name, p.Version = name, version
	plugin.Serve(p)
}
