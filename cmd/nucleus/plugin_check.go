//go:build plugins

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/spf13/cobra"

	"github.com/nucleus-runtime/nucleus/core/audit"
	"github.com/nucleus-runtime/nucleus/core/pluginhost"
	"github.com/nucleus-runtime/nucleus/sdk/config"
	"github.com/nucleus-runtime/nucleus/sdk/conformance"
	"github.com/nucleus-runtime/nucleus/sdk/manifest"
)

// checkFlags are those of plugin check.
type checkFlags struct {
	suites []string
	config string
	cycles int
	asJSON bool
}

func (a *app) pluginCheck() *cobra.Command {
	var f checkFlags
	c := &cobra.Command{
		Use:   "check BINARY|NAME",
		Short: "Start a plugin again and again, and see whether it keeps the contract",
		Long: `Start a plugin again and again, as the user who calls this, and see whether it keeps
the contract: one line for each rule. What has a slash is a file, else it is the name
of a plugin that nucleus would find.

Many rules need a plugin that works. The file of -config says how:

  plugin {
    root = "/srv/secrets"          # as in the host configuration's config { }
  }
  instance "secrets" "token" {
    name = "token"                 # as in config { } of a job's secret "token"
  }
  missing "secrets" "gone" {       # a secret that does not exist
    name = "gone"
  }
  instance "network" "lan" {       # as in config { } of a job's network; none for none
    subnet = "10.98.0.0/24"
  }
  instance "runtime" "box" {       # as in config { } of a job's runtime; none for none
    program = "/usr/bin/box"
  }

A plugin of networks connects sandboxes of a host that is made for it, of network
namespaces, as a user of its own with the capabilities that it says it needs. That
takes root; without it those rules do not apply.

A plugin of runtimes is asked how it would run sandboxes, which are then run so, in
namespaces of their own: the host's static busybox is what runs in them.

Without plugin { }, a plugin by its name is given what the host configuration says.
The exit status is 1 if a rule was broken.`,
		Example: `  nucleus plugin check ./nucleus-plugin-dir
  nucleus plugin check -config check.hcl ./nucleus-plugin-dir
  nucleus plugin check -suite secrets -cycles 1000 -config check.hcl vault`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			ctx, stop := signal.NotifyContext(c.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			return a.checkPlugin(ctx, f, args[0])
		},
	}
	c.Flags().StringSliceVar(&f.suites, "suite", nil, fmt.Sprintf("only the rules of these services, beside those of every plugin: %s", strings.Join(conformance.Suites(), ", ")))
	c.Flags().StringVar(&f.config, "config", "", "file with a configuration that works")
	c.Flags().IntVar(&f.cycles, "cycles", 0, "how often to make each call to see whether the process grows (default 300)")
	c.Flags().BoolVar(&f.asJSON, "json", false, "print as JSON")
	return c
}

func (a *app) checkPlugin(ctx context.Context, f checkFlags, arg string) error {
	if f.cycles < 0 {
		return &usageError{err: fmt.Errorf("-cycles %d: write a number above 0", f.cycles), hint: "nucleus plugin check -h"}
	}
	c := conformance.Config{Binary: arg, Suites: f.suites, Cycles: f.cycles}
	if !strings.Contains(arg, "/") {
		if err := a.findChecked(&c, arg); err != nil {
			return err
		}
	}
	if f.config != "" {
		if err := a.readChecked(&c, f.config); err != nil {
			return err
		}
	}
	if !f.asJSON {
		c.Tell = a.tellRule
	}
	results, err := conformance.Check(ctx, c)
	if err != nil && ctx.Err() == nil {
		return &hintedError{err: fmt.Errorf("plugin check: %w", err), hint: "nucleus plugin check -h"}
	}
	if f.asJSON {
		if err := a.printJSON(struct {
			Version int                  `json:"version"`
			Plugin  string               `json:"plugin"`
			Rules   []conformance.Result `json:"rules"`
		}{1, c.Binary, results}); err != nil {
			return err
		}
	}
	if ctx.Err() != nil {
		return errors.New("plugin check: interrupted")
	}
	if slices.ContainsFunc(results, func(r conformance.Result) bool { return r.Outcome == conformance.Fail }) {
		return exitError(1)
	}
	return nil
}

// tellRule prints a result. What is in it may be the plugin's words.
func (a *app) tellRule(r conformance.Result) {
	lines := func(indent, s string) string {
		var out []string
		for _, l := range strings.Split(s, "\n") {
			out = append(out, audit.Clean(l))
		}
		return strings.Join(out, "\n"+indent)
	}
	switch r.Outcome {
	case conformance.Pass:
		fmt.Fprintf(a.out, "ok    %s\n", r.Rule)
	case conformance.NotApplicable:
		fmt.Fprintf(a.out, "n/a   %s: %s\n", r.Rule, lines("      ", r.Reason))
	default:
		fmt.Fprintf(a.out, "FAIL  %s\n      expected: %s\n      got:      %s\n      remedy:   %s\n", r.Rule, r.Want, lines("                ", r.Got), r.Remedy)
	}
}

// findChecked looks a plugin up as every verb does, and takes its operator's
// configuration.
func (a *app) findChecked(c *conformance.Config, name string) error {
	_, finder, err := a.pluginHost()
	if err != nil {
		return err
	}
	p, err := finder.Find(name)
	if err != nil {
		return hinted(err)
	}
	defer p.Close()
	c.Binary = p.Path
	for k, v := range p.Host.Env {
		c.Env = append(c.Env, k+"="+v)
	}
	if p.Host.Config != nil {
		c.Plugin = written{p.Host.Config, finder.Host.EvalContext()}
	}
	return nil
}

// readChecked reads the file of -config. What is in the blocks is for the plugin's
// schema.
func (a *app) readChecked(c *conformance.Config, path string) error {
	src, err := os.ReadFile(filepath.Clean(path))
	if err != nil {
		return fmt.Errorf("configuration to check with: %w", err)
	}
	file, diags := hclsyntax.ParseConfig(src, path, hcl.InitialPos)
	if file == nil || diags.HasErrors() {
		return a.diagnostics(map[string][]byte{path: src}, diags)
	}
	content, more := file.Body.Content(&hcl.BodySchema{Blocks: []hcl.BlockHeaderSchema{
		{Type: "plugin"}, {Type: "instance", LabelNames: []string{"service", "name"}}, {Type: "missing", LabelNames: []string{"service", "name"}},
	}})
	diags = append(diags, more...)
	seen := map[string]bool{}
	for _, b := range content.Blocks {
		twice := strings.Join(b.Labels, " ")
		if seen[twice] {
			diags = append(diags, &hcl.Diagnostic{
				Severity: hcl.DiagError, Summary: "Block is there twice", Detail: "Give each instance of a service a name of its own.", Subject: &b.DefRange,
			})
		}
		seen[twice] = true
		if b.Type == "plugin" {
			c.Plugin = written{b.Body, nil}
			continue
		}
		if s := b.Labels[0]; s == "base" || !slices.Contains(conformance.Suites(), s) {
			diags = append(diags, &hcl.Diagnostic{
				Severity: hcl.DiagError, Summary: "Unknown service", Detail: fmt.Sprintf("There are rules for %s.", strings.Join(conformance.Suites()[1:], ", ")), Subject: &b.LabelRanges[0],
			})
		}
		c.Instances = append(c.Instances, conformance.Instance{
			Service: manifest.Service(b.Labels[0]), ID: b.Labels[1], Config: written{b.Body, nil}, Missing: b.Type == "missing",
		})
	}
	return a.diagnostics(map[string][]byte{path: src}, diags)
}

// written is a body of HCL, for a schema that is known when the plugin has been asked.
type written struct {
	body hcl.Body
	eval *hcl.EvalContext
}

func (w written) Encode(b *config.Block) ([]byte, error) {
	s, err := pluginhost.NewSchema(b)
	if err != nil {
		return nil, err
	}
	value, diags := s.Decode(w.body, w.eval)
	var bad []error
	for _, d := range diags {
		if d.Severity != hcl.DiagError {
			continue
		}
		at := ""
		if d.Subject != nil {
			at = fmt.Sprintf("%s:%d: ", d.Subject.Filename, d.Subject.Start.Line)
		}
		bad = append(bad, fmt.Errorf("%s%s: %s", at, d.Summary, d.Detail))
	}
	return value, errors.Join(bad...)
}
