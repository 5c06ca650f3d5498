package main

import (
	"context"
	"testing"

	"github.com/nucleus-runtime/nucleus/sdk/plugin"
)

func TestItNeedsNoPrivilege(t *testing.T) {
	p := self()
	if p.Needs.Root || len(p.Needs.Capabilities) > 0 || len(p.Needs.WritablePaths) > 0 || !p.Needs.HostNetwork || p.Lifetime != plugin.Resident {
		t.Errorf("%+v, %s", p.Needs, p.Lifetime)
	}
	b, err := p.Config.Schema()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range b.Attrs {
		if a.Description == "" {
			t.Errorf("attribute %q has no description", a.Name)
		}
	}
	if err := p.Close(context.Background()); err != nil {
		t.Error(err)
	}
}
