package main

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/nucleus-runtime/nucleus/core/exec/hook"
	"github.com/nucleus-runtime/nucleus/core/lifecycle"
	"github.com/nucleus-runtime/nucleus/core/state"
	"github.com/nucleus-runtime/nucleus/core/supervisor"
)

// ociState gives the state in OCI's form, which knows four statuses.
func ociState(x state.Ref, r *supervisor.Record) specs.State {
	s := specs.State{Version: specs.Version, ID: r.ID, Pid: r.Pid, Bundle: x.Path, Annotations: map[string]string{hook.NameAnnotation: r.Name}}
	switch r.Status {
	case lifecycle.StatusCreating, lifecycle.StatusCreated:
		s.Status = specs.ContainerState(r.Status)
	case lifecycle.StatusRunning, lifecycle.StatusPaused, lifecycle.StatusCheckpointing, lifecycle.StatusStopping:
		s.Status = specs.StateRunning
	default:
		s.Status, s.Pid = specs.StateStopped, 0
	}
	return s
}
