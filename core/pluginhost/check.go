package pluginhost

import (
	"context"
	"fmt"

	"github.com/hashicorp/hcl/v2"

	"github.com/nucleus-runtime/nucleus/sdk/manifest"
)

// Remembered is what the plugin of a name has said of itself, nil if it is not known:
// there is none, it may not be used, or it was never started as it is now. Nothing is
// started.
func (h *Host) Remembered(ctx context.Context, name string) *Description {
	program, err := h.o.Finder.Find(name)
	if err != nil {
		return nil
	}
	defer program.Close()
	return h.remembered(ctx, program)
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
