// Package providertest checks what holds for the plugin of every provider.
package providertest

import (
	"testing"

	"github.com/nucleus-runtime/nucleus/sdk/config"
	"github.com/nucleus-runtime/nucleus/sdk/errs"
	"github.com/nucleus-runtime/nucleus/sdk/plugin"
	"github.com/nucleus-runtime/nucleus/sdk/secrets"
)

// Configurable fails if a tag of its configuration is wrong, if an attribute does
// not say what it is, or if it gives something before it was configured.
func Configurable(t *testing.T, p plugin.Plugin) {
	t.Helper()
	for _, s := range []config.Section{p.Config, p.SecretsConfig} {
		b, err := s.Schema()
		if err != nil {
			t.Error(err)
			continue
		}
		for _, a := range b.Attrs {
			if a.Description == "" {
				t.Errorf("attribute %q has no description", a.Name)
			}
		}
	}
	if _, err := p.Secrets.Fetch(t.Context(), secrets.Call{}, nil); errs.Of(err).Code != errs.Precondition {
		t.Errorf("error %v", err)
	}
}
