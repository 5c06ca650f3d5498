package core

import (
	"github.com/nucleus-runtime/nucleus/core/cgroups"
	"github.com/nucleus-runtime/nucleus/core/job"
	"github.com/nucleus-runtime/nucleus/core/namespaces"
	"github.com/nucleus-runtime/nucleus/core/plan"
)

// Begun is a first process of a sandbox to come (RunOptions.Begun).
type Begun = namespaces.Begun

// Begin makes the first process of a sandbox, in its namespaces, where it waits; a program
// that is in a hurry has the job planned meanwhile. The thread that it is called on must not end
// before the sandbox (RunOptions.ThreadsStay). Nothing of it outlives this process, and
// Begun.Dismiss ends it. It is nil if it could not be made, whose reason Create finds by
// itself, and where that must be born in its control group: on hosts with cgroup v2.
func (r *Runtime) Begin(j *job.Job) *Begun {
	if r.cgroups.Layout == cgroups.V2 && r.cgroups.Usable() {
		return nil
	}
	b, err := namespaces.Begin(plan.Namespaces(j))
	if err != nil {
		return nil
	}
	return b
}
