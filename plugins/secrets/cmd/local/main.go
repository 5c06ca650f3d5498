// Command local gives sandboxes those secrets that need no library of another
// party's: four providers that are one program, so that the kernel has its pages
// once. The name that it is called by says which: nucleus-plugin-file.
package main

import (
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/nucleus-runtime/nucleus/plugins/secrets/command"
	"github.com/nucleus-runtime/nucleus/plugins/secrets/env"
	"github.com/nucleus-runtime/nucleus/plugins/secrets/file"
	"github.com/nucleus-runtime/nucleus/plugins/secrets/internal/provider"
	"github.com/nucleus-runtime/nucleus/plugins/secrets/systemd"
	"github.com/nucleus-runtime/nucleus/sdk/plugin"
)

// version is set by the linker.
var version = "dev"

// names are read by whatever installs this program, too.
//
//go:embed names
var names string

func main() {
	name := strings.TrimPrefix(filepath.Base(os.Args[0]), "nucleus-plugin-")
	p, ok := called(name)
	// They look at what they give each time they are asked, and keep nothing of a run.
	p.Lifetime = plugin.WarmOK
	if !ok {
		fmt.Fprintf(os.Stderr, "nucleus plugin: error: there is no provider %q: call this program nucleus-plugin- and one of %s\n", name, strings.Join(strings.Fields(names), ", "))
		os.Exit(1)
	}
	plugin.Serve(p)
}

func called(name string) (plugin.Plugin, bool) {
	switch name {
	case "env":
		return provider.Of(name, version, "gives variables that the operator allows", env.New), true
	case "exec":
		return provider.Of(name, version, "gives the output of commands that the operator defines", command.New), true
	case "file":
		return provider.Of(name, version, "gives the content of files", file.New), true
	case "systemd":
		return provider.Of(name, version, "gives credentials of systemd", systemd.New), true
	default:
		return plugin.Plugin{}, false
	}
}
