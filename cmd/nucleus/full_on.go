//go:build plugins

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/hashicorp/hcl/v2"
	"github.com/spf13/cobra"

	"github.com/nucleus-runtime/nucleus/core"
	"github.com/nucleus-runtime/nucleus/core/audit"
	"github.com/nucleus-runtime/nucleus/core/job"
	"github.com/nucleus-runtime/nucleus/core/pluginhost"
	"github.com/nucleus-runtime/nucleus/core/pluginhost/rundir"
	"github.com/nucleus-runtime/nucleus/core/state"
	"github.com/nucleus-runtime/nucleus/sdk/config"
	"github.com/nucleus-runtime/nucleus/sdk/manifest"
)

const full = true

// usePlugins lets plugins give what a job wants of them. Nothing is started before
// it is needed, or expected.
func (a *app) usePlugins(o *core.Options) (*pluginUse, error) {
	h, finder, err := a.pluginHostIn(o.CgroupParent)
	if err != nil {
		return nil, err
	}
	o.Secrets, o.Hooks = &pluginhost.Secrets{Host: h}, &pluginhost.Hooks{Host: h}
	o.Networks, o.Runtimes = &pluginhost.Networks{Host: h}, &pluginhost.Runtimes{Host: h}
	return &pluginUse{
		pinnedOnly: func() { finder.PinnedOnly = true },
		expect: func(j *job.Job) {
			if j.Network.Plugin() {
				h.Expect(j.Network.Backend, manifest.Network)
			}
			if j.Runtime != nil {
				h.Expect(j.Runtime.Plugin, manifest.Runtime)
			}
			for _, s := range j.Secrets {
				h.Expect(s.Provider, manifest.Secrets)
			}
			for _, p := range j.PluginHooks {
				h.Expect(p.Plugin, manifest.Hooks)
			}
		},
		known: func(ctx context.Context, name string) bool {
			d, err := h.Remembered(ctx, name)
			return err == nil && d != nil
		},
		forget: h.Forget,
	}, nil
}

func (a *app) pluginHost() (*pluginhost.Host, *pluginhost.Finder, error) { return a.pluginHostIn("") }

// pluginHostIn takes the parent of control groups, "" for the host configuration's.
func (a *app) pluginHostIn(cgroupParent string) (*pluginhost.Host, *pluginhost.Finder, error) {
	conf, err := a.hostConfiguration()
	if err != nil {
		return nil, nil, err
	}
	if cgroupParent == "" {
		cgroupParent = conf.CgroupParent
	}
	root, err := a.stateRootPath()
	if err != nil {
		return nil, nil, err
	}
	dirs, err := pluginDirs(conf)
	if err != nil {
		return nil, nil, err
	}
	finder := &pluginhost.Finder{Dirs: dirs, Host: conf, Digests: &pluginhost.DigestCache{Dir: cacheDir("digest")}}
	schemas := &pluginhost.SchemaCache{Dir: cacheDir("schema")}
	return pluginhost.New(pluginhost.Options{
		Finder: finder, Schemas: schemas, RunDirs: rundir.Default(), StateRoot: cmp.Or(root, state.DefaultRoot()), Version: version, CgroupParent: cgroupParent,
	}), finder, nil
}

// cacheDir is "" for a user without a home.
func cacheDir(of string) string {
	if os.Geteuid() == 0 {
		return filepath.Join("/var/lib/nucleus", of)
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return ""
	}
	return filepath.Join(dir, "nucleus", of)
}

// checkPlugins looks at what a job and the host configuration say to the plugins that
// the job names, as far as what these have said of themselves is remembered: nothing
// is started. here has those refused that could not be started on this host.
func (a *app) checkPlugins(ctx context.Context, j *job.Job, here bool) error {
	h, finder, err := a.pluginHost()
	if err != nil {
		return nil
	}
	var diags hcl.Diagnostics
	known := map[string]*pluginhost.Description{}
	look := func(service manifest.Service, name, origin string, body hcl.Body) {
		d, seen := known[name]
		if !seen {
			d, err = h.Remembered(ctx, name)
			known[name] = d
			switch {
			case err != nil && here:
				diags = append(diags, unusable(err, j.Ranges[origin]))
			case d != nil:
				p, _ := finder.Host.Plugin(name)
				at := finder.Host.Ranges[fmt.Sprintf("plugin[%q]", name)]
				diags = append(diags, d.Check(pluginhost.Part{Body: p.Config, Eval: finder.Host.EvalContext(), At: at})...)
			}
		}
		if d != nil {
			diags = append(diags, d.Check(pluginhost.Part{Service: service, Body: body, Eval: j.EvalContext(), At: j.Ranges[origin]})...)
		}
	}
	if j.Network.Plugin() {
		look(manifest.Network, j.Network.Backend, "network", j.Network.Config)
		if d := known[j.Network.Backend]; d != nil {
			diags = append(diags, d.CheckEgress(j)...)
		}
	}
	if j.Runtime != nil {
		look(manifest.Runtime, j.Runtime.Plugin, "runtime", j.Runtime.Config)
	}
	for _, s := range j.Secrets {
		look(manifest.Secrets, s.Provider, fmt.Sprintf("secret[%q]", s.Name), s.Config)
	}
	for _, p := range j.PluginHooks {
		look(manifest.Hooks, p.Plugin, fmt.Sprintf("plugin_hook[%q]", p.Plugin), p.Config)
	}
	return a.diagnostics(a.sources, diags)
}

// unusable tells why a plugin cannot be used.
func unusable(err error, at hcl.Range) *hcl.Diagnostic {
	d := &hcl.Diagnostic{Severity: hcl.DiagError, Summary: "Plugin cannot be used", Detail: err.Error() + "."}
	if at != (hcl.Range{}) {
		d.Subject = &at
	}
	var pe *pluginhost.Error
	if errors.As(err, &pe) && pe.Hint != "" {
		d.Detail += "\nHint: " + pe.Hint
	}
	return d
}

func (a *app) pluginCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "plugin", Short: "Look at plugins",
		Long:    `Look at plugins: programs nucleus-plugin-NAME in the plugin directories.`,
		Example: "  nucleus plugin list\n  nucleus plugin schema file",
	}
	c.AddCommand(a.pluginList(), a.pluginVerify(), a.pluginInfo(), a.pluginSchema(), a.pluginPin(), a.pluginCheck())
	return c
}

// described starts a plugin for what it says of itself.
func (a *app) described(ctx context.Context, name string) (*pluginhost.Description, string, error) {
	h, _, err := a.pluginHost()
	if err != nil {
		return nil, "", err
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	p, err := h.Start(ctx, name, "")
	if err != nil {
		return nil, "", hinted(err)
	}
	defer p.Close()
	d, err := h.Ask(ctx, p)
	return d, p.Program.Digest, hinted(err)
}

func hinted(err error) error {
	var pe *pluginhost.Error
	if errors.As(err, &pe) && pe.Hint != "" {
		return &hintedError{err: err, hint: pe.Hint}
	}
	return err
}

func (a *app) pluginInfo() *cobra.Command {
	return &cobra.Command{
		Use: "info NAME", Short: "Start a plugin and print what it says of itself, as JSON", Example: "  nucleus plugin info file", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			d, digest, err := a.described(c.Context(), args[0])
			if err != nil {
				return err
			}
			return a.printJSON(map[string]any{"version": 1, "info": d.Info, "sha256": digest})
		},
	}
}

func (a *app) pluginSchema() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use: "schema NAME", Short: "Print how a plugin is configured", Example: "  nucleus plugin schema vault", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			d, _, err := a.described(c.Context(), args[0])
			if err != nil {
				return err
			}
			if asJSON {
				return a.printJSON(struct {
					Version int `json:"version"`
					config.Schema
				}{1, d.Schema})
			}
			fmt.Fprintf(a.out, "in the host configuration: plugin %q { config { … } }\n", args[0])
			a.printBlock(d.Schema.Plugin, "  ")
			for _, v := range d.Info.Services {
				fmt.Fprintf(a.out, "in a job's block of %s: config { … }\n", v.Service)
				a.printBlock(d.Schema.Instance[string(v.Service)], "  ")
			}
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	return c
}

func (a *app) printBlock(b *config.Block, indent string) {
	if b == nil || len(b.Attrs)+len(b.Blocks) == 0 {
		fmt.Fprintln(a.out, indent+"nothing")
		return
	}
	for _, x := range b.Attrs {
		what := []string{x.Type.FriendlyName()}
		if x.Required {
			what = append(what, "required")
		}
		if len(x.Default) > 0 && !x.Sensitive {
			what = append(what, "default "+string(x.Default))
		}
		fmt.Fprintln(a.out, indent+audit.Clean(fmt.Sprintf("%s (%s): %s", x.Name, strings.Join(what, ", "), x.Description)))
	}
	for _, n := range b.Blocks {
		label := ""
		if n.Nesting == config.Map {
			label = ` "NAME"`
		}
		fmt.Fprintln(a.out, indent+audit.Clean(n.Type+label)+" {")
		a.printBlock(&n.Block, indent+"  ")
		fmt.Fprintln(a.out, indent+"}")
	}
}

func (a *app) pluginPin() *cobra.Command {
	return &cobra.Command{
		Use: "pin NAME", Short: "Print the block of the host configuration that pins a plugin's digest", Example: "  nucleus plugin pin file", Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			_, finder, err := a.pluginHost()
			if err != nil {
				return err
			}
			digest, err := finder.DigestOf(args[0])
			if err != nil {
				return hinted(err)
			}
			_, err = fmt.Fprintf(a.out, "plugin %q {\n  sha256 = %q\n}\n", args[0], digest)
			return err
		},
	}
}
