package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"

	"github.com/spf13/cobra"

	"github.com/nucleus-runtime/nucleus/cmd/nucleus/internal/doctor"
	"github.com/nucleus-runtime/nucleus/cmd/nucleus/internal/rootfs"
	"github.com/nucleus-runtime/nucleus/core"
	"github.com/nucleus-runtime/nucleus/core/job"
	"github.com/nucleus-runtime/nucleus/core/plan"
	"github.com/nucleus-runtime/nucleus/core/pluginhost/rundir"
	"github.com/nucleus-runtime/nucleus/core/supervisor"
)

func (a *app) planCommand() *cobra.Command {
	var f jobFlags
	var asJSON, asOCI bool
	c := &cobra.Command{
		Use:   "plan [-config FILE|-] [-json|-oci] [flags] [-- COMMAND ARGS...]",
		Short: "Show what a job means on this host, and what enforces each line of it",
		Long: `Show what a job means on this host, and what enforces each line of it. Nothing is
made. A runtime plugin that has been started on this host before is asked whether it
can run the job; no other plugin is started.`,
		Example: `  nucleus plan -config job.hcl
  nucleus plan -config job.hcl -json
  nucleus plan -config job.hcl -oci > config.json`,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) > 0 && c.ArgsLenAtDash() != 0 {
				return unexpected("plan", args[0])
			}
			p, err := a.makePlan(c.Context(), &f, args)
			if err != nil {
				return err
			}
			switch {
			case asOCI:
				return a.printJSON(p.OCI())
			case asJSON:
				return a.printJSON(p)
			}
			return plan.Explain(a.out, p)
		},
	}
	f.add(c)
	f.addJob(c)
	f.addParent(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print the plan as JSON")
	c.Flags().BoolVar(&asOCI, "oci", false, "print the plan as an OCI runtime configuration (config.json)")
	c.MarkFlagsMutuallyExclusive("json", "oci")
	return c
}

func (a *app) makePlan(ctx context.Context, f *jobFlags, args []string) (*plan.Plan, error) {
	j, err := a.load(f, args)
	if err != nil {
		return nil, err
	}
	o := core.Options{CgroupParent: f.parent}
	use, err := a.usePlugins(&o)
	if err != nil {
		return nil, err
	}
	if err := a.pluginHostFor(j, use); err != nil {
		return nil, err
	}
	rt, err := a.runtime(o)
	if err != nil {
		return nil, err
	}
	printed := a.checkPlugins(ctx, j, true)
	p, err := rt.Plan(j)
	if err != nil {
		return nil, err
	}
	if printed == nil && p.Runtime != nil && use.known(ctx, p.Runtime.Plugin) {
		defer use.forget()
		return p, rt.AskRuntime(ctx, p)
	}
	return p, printed
}

func (a *app) validateCommand() *cobra.Command {
	var f jobFlags
	c := &cobra.Command{
		Use:   "validate -config FILE|-",
		Short: "Check a job file, without looking at this host",
		Example: `  nucleus validate -config job.hcl
  nucleus validate -config web.hcl -var port=8080`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			jobs, err := a.loadAll(&f)
			if err != nil {
				return err
			}
			if slices.ContainsFunc(jobs, leavesToFull) {
				return a.becomeFull()
			}
			return a.validate(c.Context(), f.config, jobs)
		},
	}
	f.add(c)
	return c
}

// validate checks what decoding cannot see.
func (a *app) validate(ctx context.Context, config string, jobs []*job.Job) error {
	var wrong plan.Errors
	var printed error
	for _, j := range jobs {
		printed = errors.Join(printed, a.checkPlugins(ctx, j, false))
		var more plan.Errors
		if err := core.Check(j); errors.As(err, &more) {
			wrong = append(wrong, more...)
		}
	}
	if len(wrong) > 0 {
		return wrong
	}
	if printed != nil {
		return printed
	}
	if config == "-" {
		config = pipedName
	}
	for _, j := range jobs {
		if _, err := fmt.Fprintf(a.out, "%s: job %q is valid\n", config, j.Name); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) doctorCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "doctor [-json]",
		Short: "Show what this host can do for sandboxes, and what to do about the rest",
		Long: `Show what this host can do for sandboxes: every kernel feature that Nucleus uses
is tried in a throw-away child. Networks and runtimes are told of by what their
plugins need. Exit status: 0 if all three modes could run here,
1 if some could, 2 if none could, 125 if doctor itself failed.`,
		Example: `  nucleus doctor
  nucleus doctor -json`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			rt, err := a.runtime(core.Options{})
			if err != nil {
				return err
			}
			gvisor, err := a.pluginPaths("gvisor")
			if err != nil {
				return err
			}
			h, err := rt.Host()
			if err != nil {
				return err
			}
			r, err := doctor.Collect(c.Context(), doctor.Options{Cgroup: h.Cgroup, GVisor: gvisor})
			if err != nil {
				return err
			}
			a.code, err = doctor.Run(a.out, asJSON, r)
			return err
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	return c
}

func (a *app) gcCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "gc [-json]",
		Short: "Remove what sandboxes left whose supervisor was killed",
		Long: `Remove what sandboxes left whose supervisor was killed, and tell plugins what they
are owed. Safe beside live sandboxes, at any time. Every run does the same first, but
for plugins: these are started here, with the -host-config that the sandboxes ran with.
Network plugins that this user has run also look for what no sandbox has written down.
Compiled seccomp filters that no job has used for 30 days go, too.
Prints the ids of sandboxes, and what plugins have removed: the plugin's name, and what it was.`,
		Example: `  nucleus gc
  nucleus gc -json`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return a.gc(c.Context(), asJSON) },
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print what was removed as JSON")
	return c
}

func (a *app) gc(ctx context.Context, asJSON bool) error {
	if !full && fullInstalled() {
		// A dead sandbox may owe a plugin a call. Without that build it stays owed.
		return a.becomeFull()
	}
	events, closeEvents, err := a.sinks("")
	if err != nil {
		return err
	}
	defer closeEvents()
	o := core.Options{Events: events}
	if _, err := a.usePlugins(&o); err != nil {
		return err
	}
	rt, err := a.runtime(o)
	if err != nil {
		return err
	}
	if err := ownDescriptors(); err != nil { // poststop hooks may run
		return err
	}
	done, err := rt.Collect(ctx)
	if errors.Is(err, core.ErrNoPlugins) {
		err = &hintedError{err: err, hint: "install nucleus-full beside nucleus-init (make install), then run nucleus gc again"}
	}
	err = errors.Join(err, rundir.Sweep(rundir.Default()))
	if asJSON {
		return errors.Join(a.printJSON(collectedJSON(done)), err)
	}
	lines := done.Sandboxes
	for _, n := range done.Networks {
		for _, what := range n.Removed {
			lines = append(lines, n.Backend+": "+what)
		}
	}
	for _, line := range lines {
		if _, werr := fmt.Fprintln(a.out, line); werr != nil {
			return errors.Join(werr, err)
		}
	}
	return err
}

// collected is what gc prints.
type collected struct {
	Version   int                `json:"version"`
	Collected []string           `json:"collected"` // ids of sandboxes
	Networks  []collectedNetwork `json:"networks"`
}

type collectedNetwork struct {
	Backend string   `json:"backend"`
	Removed []string `json:"removed"`
}

func collectedJSON(done core.Collected) collected {
	c := collected{Version: 1, Collected: append([]string{}, done.Sandboxes...), Networks: []collectedNetwork{}}
	for _, n := range done.Networks {
		c.Networks = append(c.Networks, collectedNetwork(n))
	}
	return c
}

func (a *app) rootfsCommand() *cobra.Command {
	c := &cobra.Command{Use: "rootfs", Short: "Work with root file system directories", Example: "  nucleus rootfs digest ./rootfs"}
	var asJSON bool
	d := &cobra.Command{
		Use:   "digest PATH [-json]",
		Short: "Print the digest that attests a root file system, for rootfs { digest = … }",
		Example: `  nucleus rootfs digest ./rootfs
  nucleus rootfs digest -json ./rootfs`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error { return rootfs.Digest(a.out, args[0], asJSON) },
	}
	d.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	c.AddCommand(d)
	return c
}

func (a *app) fmtCommand() *cobra.Command {
	var check bool
	c := &cobra.Command{
		Use:   "fmt [-check] FILE...",
		Short: "Rewrite job files in the canonical style",
		Example: `  nucleus fmt job.hcl
  nucleus fmt -check job.hcl
  nucleus fmt - < job.hcl`,
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return &usageError{err: errors.New("no file: name job files, or - for standard input"), hint: "nucleus fmt job.hcl"}
			}
			for _, path := range args {
				if err := a.format(path, check); err != nil {
					return err
				}
			}
			return nil
		},
	}
	c.Flags().BoolVar(&check, "check", false, "change nothing; exit status 1 if a file would change")
	return c
}

func (a *app) format(path string, check bool) error {
	name, src, err := a.readJob(path)
	if err != nil {
		return err
	}
	// What is no HCL has no style; its tokens would be put anywhere.
	if diags := job.CheckSyntax(name, src); diags.HasErrors() {
		return a.diagnostics(map[string][]byte{name: src}, diags)
	}
	out, err := core.FormatJob(src)
	if err != nil {
		return err
	}
	switch {
	case check:
		if string(out) != string(src) {
			a.code = 1
			_, err = fmt.Fprintln(a.out, name)
		}
		return err
	case path == "-":
		_, err = a.out.Write(out)
		return err
	case string(out) == string(src):
		return nil
	}
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	return replaceFile(path, st.Mode().Perm(), out)
}

// replaceFile writes a file so that it is never half there.
func replaceFile(path string, mode fs.FileMode, content []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".nucleus-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // no-op once it is renamed
	if _, err := f.Write(content); err != nil {
		_ = f.Close()
		return err
	}
	if err := f.Chmod(mode); err != nil {
		_ = f.Close()
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

func (a *app) versionCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use: "version", Short: "Print the version", Example: "  nucleus version", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if asJSON {
				return a.printJSON(map[string]any{"schema": 1, "version": version, "go": runtime.Version(), "arch": runtime.GOARCH})
			}
			_, err := fmt.Fprint(a.out, versionLine())
			return err
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	return c
}

func versionLine() string {
	return fmt.Sprintf("nucleus %s (%s %s)\n", version, runtime.Version(), runtime.GOARCH)
}

// What is printed as JSON has a version, which grows when a field changes its meaning or goes.
type (
	printedResult struct {
		Version int `json:"version"`
		core.Result
	}
	printedEnd struct {
		Version int `json:"version"`
		supervisor.Ended
	}
	printedStats struct {
		Version int `json:"version"`
		supervisor.Stats
	}
)

func (a *app) printJSON(v any) error { return writeJSON(a.out, v) }

func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}
