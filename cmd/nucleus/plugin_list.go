//go:build plugins

package main

import (
	"cmp"
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/nucleus-runtime/nucleus/core/audit"
	"github.com/nucleus-runtime/nucleus/core/pluginhost"
)

// foundPlugin is a plugin's file, or why it can't be used.
type foundPlugin struct {
	Name   string `json:"name"`
	Path   string `json:"path,omitempty"`
	SHA256 string `json:"sha256,omitempty"`
	Pinned bool   `json:"pinned"`
	Error  string `json:"error,omitempty"`
}

// findPlugins looks at the files of plugins, of all if none is named. Nothing is started.
func findPlugins(finder *pluginhost.Finder, names []string) ([]foundPlugin, error) {
	if len(names) == 0 {
		var err error
		if names, err = finder.List(); err != nil {
			return nil, err
		}
	}
	out := make([]foundPlugin, 0, len(names))
	for _, n := range names {
		p, err := finder.Find(n)
		if err != nil {
			out = append(out, foundPlugin{Name: n, Error: err.Error()})
			continue
		}
		out = append(out, foundPlugin{Name: n, Path: p.Path, SHA256: p.Digest, Pinned: p.Pinned})
		_ = p.Close()
	}
	return out, nil
}

func (a *app) printPlugins(found []foundPlugin, asJSON bool, line func(foundPlugin) string) error {
	if asJSON {
		return a.printJSON(struct {
			Version int           `json:"version"`
			Plugins []foundPlugin `json:"plugins"`
		}{1, found})
	}
	t := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	for _, p := range found {
		fmt.Fprintf(t, "%s\t%s\n", audit.Clean(p.Name), line(p))
	}
	return t.Flush()
}

func pinning(p foundPlugin) string {
	if p.Pinned {
		return "pinned"
	}
	return "not pinned"
}

func (a *app) pluginList() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use: "list", Short: "List the plugins that can be found, and why others can't be used", Example: "  nucleus plugin list", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			_, finder, err := a.pluginHost()
			if err != nil {
				return err
			}
			found, err := findPlugins(finder, nil)
			if err != nil {
				return err
			}
			return a.printPlugins(found, asJSON, func(p foundPlugin) string {
				return cmp.Or(p.Path, "-") + "\t" + cmp.Or(audit.Clean(p.Error), pinning(p))
			})
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	return c
}

func (a *app) pluginVerify() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use: "verify [NAME...]", Short: "See whether plugins' files may be used: owners, modes, digests",
		Long: `See whether the files of plugins may be used: who owns them and the directories on the
way, who may write there, and whether the digest, which is computed anew, is one that the
host configuration names. Nothing is started. The exit status is 1 if one may not be used.`,
		Example: "  nucleus plugin verify\n  nucleus plugin verify -json netbridge",
		RunE: func(_ *cobra.Command, args []string) error {
			_, finder, err := a.pluginHost()
			if err != nil {
				return err
			}
			finder.Digests = &pluginhost.DigestCache{} // which remembers nothing
			found, err := findPlugins(finder, args)
			if err != nil {
				return err
			}
			err = a.printPlugins(found, asJSON, func(p foundPlugin) string {
				if p.Error != "" {
					return "refused\t" + audit.Clean(p.Error)
				}
				return "ok\t" + pinning(p) + ", sha256 " + p.SHA256
			})
			for _, p := range found {
				if err == nil && p.Error != "" {
					err = exitError(1)
				}
			}
			return err
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	return c
}
