// Command nucleus-plugin-curfew is a hooks plugin: it lets no sandbox start during
// the hours that the operator names, and tells those that run when it begins.
package main

import (
	"context"
	"fmt"
	"time"

	"github.com/nucleus-runtime/nucleus/sdk/config"
	"github.com/nucleus-runtime/nucleus/sdk/errs"
	"github.com/nucleus-runtime/nucleus/sdk/hooks"
	"github.com/nucleus-runtime/nucleus/sdk/plugin"
)

// version is set by the linker.
var version = "dev"

// operator is the config block of plugin "curfew" in the host configuration.
type operator struct {
	From  int `hcl:"from" desc:"The hour at which the curfew begins." min:"0" max:"23"`
	Until int `hcl:"until" desc:"The hour at which it ends." min:"0" max:"23"`
}

type curfew struct {
	hours operator
	now   func() time.Time
}

var _ hooks.Handler = (*curfew)(nil)

// Configure is called before anything else.
func (c *curfew) Configure(_ context.Context, _ config.Instance, o operator) error {
	if o.From == o.Until {
		return errs.ConfigErrorf(errs.Path("until"), "the curfew would never end: write another hour than %d", o.From)
	}
	c.hours = o
	return nil
}

// Describe says which boundaries of a sandbox's phases this plugin is called at.
func (c *curfew) Describe(context.Context, string) (hooks.Subscription, error) {
	return hooks.Subscription{At: hooks.At(hooks.PreNamespaces, hooks.PreSecurity)}, nil
}

// OnPhase answers with a veto before there is anything to undo, and with a variable
// for the workload.
func (c *curfew) OnPhase(_ context.Context, _ hooks.Call, e hooks.Event) (hooks.Answer, error) {
	var a hooks.Answer
	switch e.Boundary {
	case hooks.PreNamespaces:
		if c.holds(c.now().Hour()) {
			a.Veto = fmt.Sprintf("there is a curfew until %02d:00", c.hours.Until)
		}
	case hooks.PreSecurity:
		a.Mutation.AddEnv = map[string]string{"CURFEW": fmt.Sprintf("%02d:00", c.hours.From)}
	}
	return a, nil
}

// holds tells whether an hour is within the curfew, which may span midnight.
func (c *curfew) holds(hour int) bool {
	if c.hours.From < c.hours.Until {
		return c.hours.From <= hour && hour < c.hours.Until
	}
	return c.hours.From <= hour || hour < c.hours.Until
}

func main() {
	c := &curfew{now: time.Now}
	plugin.Serve(plugin.Plugin{
		Name: "curfew", Version: version, Description: "lets no sandbox start during certain hours",
		Hooks:  c,
		Config: config.To(c),
		// It keeps nothing of a sandbox, so one process serves all that come.
		Lifetime: plugin.WarmOK,
	})
}
