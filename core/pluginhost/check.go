package pluginhost

import (
	"context"
	"fmt"
	"slices"

	"github.com/hashicorp/hcl/v2"

	"github.com/nucleus-runtime/nucleus/core/job"
	corenet "github.com/nucleus-runtime/nucleus/core/network"
	"github.com/nucleus-runtime/nucleus/sdk/manifest"
	"github.com/nucleus-runtime/nucleus/sdk/network"
)

// Remembered is what the plugin of a name has said of itself, nil if it was never started
// as it is now. The error tells why it cannot be used. Nothing is started.
func (h *Host) Remembered(ctx context.Context, name string) (*Description, error) {
	program, err := h.o.Finder.Find(name)
	if err != nil {
		return nil, err
	}
	defer program.Close()
	return h.remembered(ctx, program), nil
}

func (h *Host) remembered(ctx context.Context, program *Program) *Description {
	a := h.o.Schemas.read(h.schemaKey(program))
	if a == nil {
		return nil
	}
	d, err := a.describe(ctx)
	if err != nil || d.Info.Name != program.Name {
		return nil
	}
	return d
}

// What is said where a job wants to reach others by a plugin that cannot.
const (
	noJoin   = "it does not connect jobs with each other (feature " + network.FeatureStack + ")"
	joinHint = `name a plugin that does, "netuserspace" or "netbridge", or remove jobs from the rule`
)

// JoinsStacks tells whether the plugin connects the jobs of a stack with each other.
func (d *Description) JoinsStacks() bool {
	return slices.Contains(d.Info.Features, network.FeatureStack)
}

// DialsMembers tells whether the plugin asks the core for connections to other jobs.
func (d *Description) DialsMembers() bool {
	return slices.Contains(d.Info.Features, network.FeatureDialMember)
}

// What is said of a job that others cannot reach by such a plugin.
func noInit(job string) string {
	return fmt.Sprintf("job %q has no init, which makes the sockets that others reach it by", job)
}

func initHint(job string) string { return fmt.Sprintf("write init = true in job %q", job) }

// CheckEgress tells which of a job's rules the plugin has no means for.
func (d *Description) CheckEgress(j *job.Job) (diags hcl.Diagnostics) {
	if j.Network.Egress == nil {
		return nil
	}
	for i, r := range j.Network.Egress.Allow {
		why, hint := noJoin, joinHint
		switch {
		case len(r.Jobs) == 0:
			continue
		case !d.JoinsStacks():
		case d.DialsMembers() && len(r.WithoutInit) > 0:
			why, hint = noInit(r.WithoutInit[0]), initHint(r.WithoutInit[0])
		default:
			continue
		}
		x := &hcl.Diagnostic{
			Severity: hcl.DiagError, Summary: "Jobs cannot be reached",
			Detail: fmt.Sprintf("Plugin %q: %s.\nHint: %s", d.Info.Name, why, hint),
		}
		if at, ok := j.Range(corenet.JobsOrigin(i)); ok {
			x.Subject = &at
		}
		diags = append(diags, x)
	}
	return diags
}

// Part is a body of configuration that somebody wrote for a plugin.
type Part struct {
	Service manifest.Service // "" is the operator's, for the plugin as a whole
	Body    hcl.Body         // nil if there is none
	Eval    *hcl.EvalContext
	At      hcl.Range // the block around it, the zero value if there is none
}

// Check tells what is wrong with a part, as far as the schema tells. What only the
// plugin knows, the start tells.
func (d *Description) Check(p Part) hcl.Diagnostics {
	block := d.Schema.Instance[string(p.Service)]
	if p.Service == "" {
		block = d.Schema.Plugin
	}
	schema, err := NewSchema(block)
	if err != nil {
		return nil
	}
	_, diags := schema.Decode(p.Body, p.Eval)
	if p.Body != nil {
		return diags
	}
	for _, x := range diags {
		x.Subject, x.Context = nil, nil
		where := "its block of the job"
		if p.Service == "" {
			where = "its block of the host configuration"
		}
		x.Detail += fmt.Sprintf(" Plugin %q wants it in config { … } in %s.", d.Info.Name, where)
		if p.At != (hcl.Range{}) {
			x.Subject = &p.At
		}
	}
	return diags
}
