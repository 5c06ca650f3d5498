// The process has little to do in parallel. To follow the CPU limit Go's runtime
// would keep cgroup files open, and read one every second.

//go:debug containermaxprocs=0

// Command nucleus runs commands in hardened sandboxes described by job files.
// It parses flags, calls package core, and prints; it does no kernel work.
package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/nucleus-runtime/nucleus/core/host"
)

// version is set by the linker.
var version = "dev"

// app is what the verbs share.
type app struct {
	stdin          *os.File
	stdout, stderr *os.File
	out            io.Writer
	stateRoot      string
	hostConfigPath string
	host           hostConfig
	code           int
	piped          []byte            // the job that came on standard input
	sources        map[string][]byte // files that diagnostics may be about
	inherited      []*os.File        // descriptors that the caller named: fd:N
}

func main() {
	host.MaybeChild()
	os.Exit(run(os.Args[1:]))
}

func run(args []string) int {
	if full {
		if err := ownDescriptors(); err != nil {
			fmt.Fprintln(os.Stderr, "nucleus: error:", err)
			return 125
		}
	}
	a := &app{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, out: os.Stdout}
	root := a.root()
	root.SetArgs(longFlags(root, args))
	if err := root.ExecuteContext(context.Background()); err != nil {
		return a.report(err)
	}
	return a.code
}

func (a *app) root() *cobra.Command {
	c := &cobra.Command{
		Use:   "nucleus",
		Short: "Run a command in a hardened Linux sandbox described by one HCL file",
		Long: `Run a command in a hardened Linux sandbox described by one HCL file.
Long flags take one dash or two: -config is --config.`,
		Example: `  nucleus run -config job.hcl
  nucleus run -- /bin/echo hello
  nucleus plan -config job.hcl
  nucleus doctor`,
		SilenceUsage: true, SilenceErrors: true, Version: version,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	c.PersistentFlags().StringVar(&a.stateRoot, "state-root", "", "directory that keeps track of sandboxes (default /run/nucleus; for users $XDG_RUNTIME_DIR/nucleus, else /tmp/nucleus-UID; env NUCLEUS_STATE_ROOT)")
	c.PersistentFlags().StringVar(&a.hostConfigPath, "host-config", "", "host configuration (default /etc/nucleus/nucleus.hcl, ~/.config/nucleus/nucleus.hcl for users)")
	c.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return &usageError{err: err, hint: c.CommandPath() + " -h"}
	})
	c.AddCommand(a.runCommand(), a.planCommand(), a.validateCommand(), a.doctorCommand(), a.gcCommand(), a.rootfsCommand(), a.fmtCommand(), a.pluginCommand(), a.versionCommand())
	c.SetVersionTemplate(versionLine())
	c.InitDefaultCompletionCmd()
	for _, sub := range c.Commands() {
		// Of a command that only groups others cobra takes an unknown verb for a wish
		// to see the help.
		if sub.HasSubCommands() && !sub.Runnable() {
			sub.Args = cobra.NoArgs
			sub.RunE = func(c *cobra.Command, _ []string) error { return c.Help() }
		}
	}
	return c
}

// longFlags lets long flags take one dash, as HashiCorp's tools have them:
// -config is --config. What comes after -- is the workload's.
func longFlags(root *cobra.Command, args []string) []string {
	out := make([]string, 0, len(args))
	for i, s := range args {
		if s == "--" {
			return append(out, args[i:]...)
		}
		if len(s) > 2 && s[0] == '-' && s[1] != '-' {
			s = "-" + s
		}
		out = append(out, s)
	}
	return out
}

// usageError is a mistake on the command line.
type usageError struct {
	err  error
	hint string
}

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// exitError carries an exit code whose reason has been printed.
type exitError int

func (e exitError) Error() string { return "" }
