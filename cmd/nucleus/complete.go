package main

import (
	"slices"

	"github.com/spf13/cobra"
)

// named are the verbs whose arguments are sandboxes.
var named = []string{"start", "restart", "inspect", "exec", "attach", "logs", "events", "stats", "diff", "stop", "kill", "checkpoint", "pause", "resume", "wait", "rm"}

// completeNames has shells offer the names of sandboxes where a verb takes one.
func (a *app) completeNames(verbs []*cobra.Command) {
	for _, c := range verbs {
		if !slices.Contains(named, c.Name()) {
			continue
		}
		c.ValidArgsFunction = func(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if c.Name() == "exec" && len(args) > 0 {
				return nil, cobra.ShellCompDirectiveDefault // the command
			}
			root, err := a.sandboxes()
			if err != nil {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			refs, err := root.Refs()
			if err != nil {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			var names []string
			for _, x := range refs {
				if x.Name != "" && !slices.Contains(args, x.Name) {
					names = append(names, x.Name)
				}
			}
			slices.Sort(names)
			return names, cobra.ShellCompDirectiveNoFileComp
		}
	}
}
