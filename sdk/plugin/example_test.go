package plugin_test

import (
	"context"

	"github.com/nucleus-runtime/nucleus/sdk/config"
	"github.com/nucleus-runtime/nucleus/sdk/errs"
	"github.com/nucleus-runtime/nucleus/sdk/hooks"
	"github.com/nucleus-runtime/nucleus/sdk/plugin"
)

// policy refuses sandboxes by name.
type policy struct{ forbidden string }

type policySettings struct {
	Forbidden string `hcl:"forbidden" desc:"The name that no sandbox may have."`
}

func (p *policy) Configure(_ context.Context, _ config.Instance, c policySettings) error {
	if c.Forbidden == "" {
		return errs.ConfigErrorf(errs.Path("forbidden"), "an empty name forbids nothing")
	}
	p.forbidden = c.Forbidden
	return nil
}

func (*policy) Describe(context.Context, string) (hooks.Subscription, error) {
	return hooks.Subscription{At: hooks.At(hooks.PreNamespaces)}, nil
}

func (p *policy) OnPhase(_ context.Context, _ hooks.Call, e hooks.Event) (hooks.Answer, error) {
	if e.SandboxName == p.forbidden {
		return hooks.Answer{Veto: "the name is reserved"}, nil
	}
	return hooks.Answer{}, nil
}

func ExampleServe() {
	p := &policy{}
	plugin.Serve(plugin.Plugin{
		Name: "names", Version: "1.0.0", Description: "keeps names free",
		Hooks: p, HooksConfig: config.To(p),
	})
}
