//go:build !plugins

package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/nucleus-runtime/nucleus/core"
	"github.com/nucleus-runtime/nucleus/core/job"
)

const full = false

// usePlugins does nothing in the build without a plugin host.
func (a *app) usePlugins(*core.Options) (*pluginUse, error) {
	return &pluginUse{pinnedOnly: func() {}, expect: func(*job.Job) {}, forget: func() {}, known: func(context.Context, string) bool { return false }}, nil
}

// checkPlugins knows of no plugins.
func (a *app) checkPlugins(context.Context, *job.Job, bool) error { return nil }

// pluginCommand hands the whole command over.
func (a *app) pluginCommand() *cobra.Command {
	return &cobra.Command{
		Use: "plugin", Short: "Look at plugins", DisableFlagParsing: true,
		RunE: func(*cobra.Command, []string) error { return a.becomeFull() },
	}
}
