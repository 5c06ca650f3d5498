// Package doctor owns what `nucleus doctor` shows: the host's features, and
// which modes, networks and runtimes could work here for this user. It finds nothing out by itself;
// package host does.
package doctor

import (
	"context"
	"fmt"
	"io"

	"github.com/nucleus-runtime/nucleus/core/host"
	"github.com/nucleus-runtime/nucleus/core/host/fact"
)

// Exit statuses of the verb, beside 125 for a failure of doctor itself.
const (
	ExitAll  = 0 // all modes could run here
	ExitSome = 1 // some could
	ExitNone = 2 // none could, or for none of them it could be told
)

// Options says what is looked at.
type Options struct {
	// Cgroup is what package cgroups found.
	Cgroup fact.Cgroup
	// StateRoot is where sandboxes' state goes; Dirs are directories that jobs
	// want to bind. Idmapped mounts are tried on their file systems.
	StateRoot string
	Dirs      []string
	// GVisor are the paths that the plugin gvisor may have, in their order.
	GVisor []string
}

// Report is all that doctor found out.
type Report struct {
	Host     fact.Host
	Features []fact.Feature
	Modes    []host.ModeVerdict
	Networks []host.NetworkVerdict
	Runtimes []host.RuntimeVerdict
}

// Collect probes this host.
func Collect(ctx context.Context, o Options) (Report, error) {
	h, err := host.Quick(host.Options{Cgroup: o.Cgroup})
	if err != nil {
		return Report{}, fmt.Errorf("finding out about this host: %w", err)
	}
	h.Toolchain = host.Toolchain(host.Options{})
	features := host.Probe(ctx, host.ProbeOptions{Host: h, StateRoot: o.StateRoot, Dirs: o.Dirs})
	if err := ctx.Err(); err != nil {
		return Report{}, fmt.Errorf("probing this host: %w", err)
	}
	return Report{
		Host: h, Features: features, Modes: host.Modes(h, features),
		Networks: host.Networks(h, features), Runtimes: host.Runtimes(features, o.GVisor),
	}, nil
}

// Run prints the report, as a table or as JSON, and returns the exit status
// that says whether the modes could run here.
func Run(w io.Writer, asJSON bool, r Report) (exit int, err error) {
	if asJSON {
		err = writeJSON(w, r)
	} else {
		err = writeTable(w, r)
	}
	if err != nil {
		return 0, fmt.Errorf("writing the report: %w", err)
	}
	return r.exit(), nil
}

func (r Report) exit() int {
	able := 0
	for _, m := range r.Modes {
		if m.State == fact.Available {
			able++
		}
	}
	switch {
	case able == 0:
		return ExitNone
	case able < len(r.Modes):
		return ExitSome
	}
	return ExitAll
}
