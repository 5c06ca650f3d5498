// The process has little to do in parallel. To follow the CPU limit Go's runtime
// would keep cgroup files open, and read one every second.

//go:debug containermaxprocs=0

// Command nucleus runs commands in hardened sandboxes described by job files.
// It parses flags, calls package core, and prints; it does no kernel work.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	_ "github.com/nucleus-runtime/nucleus/cmd/nucleus/internal/process"
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
	supervisorFD   int               // where a supervisor of its own tells that it is ready, 0 for none
	ready          *os.File          // it, once opened
	stackLock      *os.File          // held until then, nil for a sandbox of no stack
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
	root := a.root(args)
	root.SetArgs(longFlags(root, args))
	if err := root.ExecuteContext(context.Background()); err != nil {
		return a.report(exclusive(mistyped(root, err)))
	}
	return a.code
}

// mistyped gives what cobra says of an unknown verb a hint that can be typed.
func mistyped(root *cobra.Command, err error) error {
	var word, path string
	if _, serr := fmt.Sscanf(err.Error(), "unknown command %q for %q", &word, &path); serr != nil {
		return err
	}
	hint := path + " -h"
	if group, _, ferr := root.Find(strings.Fields(path)[1:]); ferr == nil {
		if like := group.SuggestionsFor(word); len(like) > 0 {
			hint = path + " " + strings.Join(like, ", or "+path+" ")
		}
	}
	return &usageError{err: err, hint: hint}
}

// exclusive says of flags that exclude each other how users write them.
func exclusive(err error) error {
	rest, ok := strings.CutPrefix(err.Error(), "if any flags in the group [")
	if !ok {
		return err
	}
	_, set, _ := strings.Cut(rest, "; [")
	set, _, _ = strings.Cut(set, "]")
	return &usageError{err: fmt.Errorf("-%s exclude each other", strings.ReplaceAll(set, " ", " and -")), hint: "write one of them"}
}

// countArguments has a verb and those below it say what they want, where cobra counts.
func countArguments(c *cobra.Command) {
	for _, sub := range c.Commands() {
		countArguments(sub)
	}
	right := c.Args
	if right == nil || c.HasSubCommands() {
		return
	}
	c.Args = func(c *cobra.Command, args []string) error {
		err := right(c, args)
		var ue *usageError
		switch {
		case err == nil || errors.As(err, &ue):
			return err
		case len(args) == 0:
			err = errors.New("an argument is missing")
		case right(c, nil) == nil:
			err = fmt.Errorf("unexpected argument %q", args[0])
		default:
			err = fmt.Errorf("unexpected argument %q", args[1])
		}
		return &usageError{err: fmt.Errorf("%s: %w", strings.TrimPrefix(c.CommandPath(), c.Root().Name()+" "), err), hint: strings.TrimSuffix(c.UseLine(), " [flags]")}
	}
}

// root is the command with the verbs that these arguments may be about.
func (a *app) root(args []string) *cobra.Command {
	verbs := a.commands(args)
	c := &cobra.Command{
		Use:   "nucleus",
		Short: "Run a command in a hardened Linux sandbox described by one HCL file",
		Long: `Run a command in a hardened Linux sandbox described by one HCL file.
Long flags take one dash or two: -config is --config.`,
		Example: `  nucleus run -config job.hcl
  nucleus run -- /bin/echo hello
  nucleus plan -config job.hcl
  nucleus doctor`,
		SilenceUsage: true, SilenceErrors: true,
		DisableSuggestions: true, SuggestionsMinimumDistance: 2, // mistyped asks for them
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: len(verbs) == 1},
	}
	c.PersistentFlags().StringVar(&a.stateRoot, "state-root", "", "directory that keeps track of sandboxes (default /run/nucleus; for users $XDG_RUNTIME_DIR/nucleus, else /tmp/nucleus-UID; env NUCLEUS_STATE_ROOT)")
	c.PersistentFlags().StringVar(&a.hostConfigPath, "host-config", "", "host configuration (default /etc/nucleus/nucleus.hcl, ~/.config/nucleus/nucleus.hcl for users)")
	c.PersistentFlags().IntVar(&a.supervisorFD, supervisorFlag, 0, "")
	_ = c.PersistentFlags().MarkHidden(supervisorFlag) // it exists
	c.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		if text, _, ok := strings.Cut(err.Error(), ": strconv."); ok {
			err = errors.New(text + ": not a number that fits")
		} else if name, ok := strings.CutPrefix(err.Error(), "unknown flag: --"); ok {
			err = errors.New("unknown flag: -" + name) // as the help writes it
		}
		return &usageError{err: err, hint: c.CommandPath() + " -h"}
	})
	c.AddCommand(verbs...)
	a.completeNames(verbs)
	countArguments(c)
	// As cobra would, but for text/template: with it the linker must keep the methods of
	// all types, which is a third of the program, and each start maps most of it.
	c.Flags().BoolP("version", "v", false, "version for nucleus")
	help := c.HelpFunc()
	c.SetHelpFunc(func(c *cobra.Command, args []string) {
		if asked, _ := c.Flags().GetBool("version"); asked && !c.HasParent() {
			fmt.Fprint(c.OutOrStdout(), versionLine())
			return
		}
		help(c, args)
	})
	c.InitDefaultCompletionCmd()
	for _, sub := range c.Commands() {
		// Of a command that only groups others cobra takes an unknown verb for a wish
		// to see the help.
		if sub.HasSubCommands() && !sub.Runnable() {
			if sub.Name() == "completion" { // cobra's own
				sub.Example = "  source <(nucleus completion bash)"
			}
			sub.Args = cobra.NoArgs
			sub.RunE = func(c *cobra.Command, _ []string) error { return c.Help() }
		}
	}
	return c
}

// longFlags lets long flags take one dash, as HashiCorp's tools have them:
// -config is --config. What comes after -- is the workload's.
func longFlags(root *cobra.Command, args []string) []string {
	out := make([]string, 0, len(args)+1)
	verb, skip, words := root, false, 0
	for i, s := range args {
		if s == "--" {
			return append(out, args[i:]...)
		}
		if skip || s == "-" || !strings.HasPrefix(s, "-") {
			if !skip && verb == root {
				if sub, _, err := root.Find([]string{s}); err == nil {
					verb = sub
				}
			} else if !skip {
				words++
			}
			out, skip = append(out, s), false
			// The rest is a command, as in docker exec.
			if verb.Name() == "exec" && words == 1 {
				if rest := args[i+1:]; len(rest) > 0 && rest[0] != "--" {
					out = append(out, "--")
				}
				return append(out, args[i+1:]...)
			}
			continue
		}
		if len(s) > 2 && s[0] == '-' && s[1] != '-' {
			s = "-" + s
		}
		out = append(out, s)
		name := strings.TrimLeft(s, "-")
		f := verb.Flags().Lookup(name)
		if f == nil {
			f = root.PersistentFlags().Lookup(name)
		}
		skip = f != nil && f.NoOptDefVal == "" // its value is the next word
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
