package main

import "github.com/spf13/cobra"

// commands makes the verb that the first of the arguments names, and all of them if it names
// none: to make all takes as long as to read a job.
func (a *app) commands(args []string) []*cobra.Command {
	verbs := []struct {
		name string
		make func() *cobra.Command
	}{
		{"run", a.runCommand},
		{"create", a.createCommand},
		{"start", a.startCommand},
		{"restart", a.restartCommand},
		{"up", a.upCommand},
		{"down", a.downCommand},
		{"ps", a.psCommand},
		{"inspect", a.inspectCommand},
		{"exec", a.execCommand},
		{"attach", a.attachCommand},
		{"logs", a.logsCommand},
		{"events", a.eventsCommand},
		{"stats", a.statsCommand},
		{"diff", a.diffCommand},
		{"stop", a.stopCommand},
		{"kill", a.killCommand},
		{"checkpoint", a.checkpointCommand},
		{"pause", a.pauseCommand},
		{"resume", a.resumeCommand},
		{"wait", a.waitCommand},
		{"rm", a.rmCommand},
		{"plan", a.planCommand},
		{"validate", a.validateCommand},
		{"unit", a.unitCommand},
		{"doctor", a.doctorCommand},
		{"gc", a.gcCommand},
		{"rootfs", a.rootfsCommand},
		{"fmt", a.fmtCommand},
		{"plugin", a.pluginCommand},
		{"version", a.versionCommand},
	}
	var all []*cobra.Command
	for _, v := range verbs {
		if len(args) > 0 && v.name == args[0] {
			return []*cobra.Command{v.make()}
		}
	}
	for _, v := range verbs {
		all = append(all, v.make())
	}
	return all
}
