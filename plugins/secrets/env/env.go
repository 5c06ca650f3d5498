// Package env gives secrets that are variables of the provider's own environment,
// which the operator sets in the host configuration.
package env

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"slices"

	"github.com/nucleus-runtime/nucleus/plugins/secrets/fault"
	"github.com/nucleus-runtime/nucleus/plugins/secrets/internal/batch"
	"github.com/nucleus-runtime/nucleus/sdk/secrets"
)

// Config is the operator's part.
type Config struct {
	Allow []string `hcl:"allow" desc:"names of the variables that jobs may have"`
}

// Instance is one secret.
type Instance struct {
	Name string `hcl:"name" desc:"name of a variable that the operator allows"`
}

// Provider reads variables.
type Provider struct {
	allow     []string
	instances batch.Instances[Instance]
}

var _ secrets.Provider = (*Provider)(nil)

var validName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// New makes a provider.
func New(c Config) (*Provider, error) {
	for i, name := range c.Allow {
		if !validName.MatchString(name) {
			return nil, fault.Config(fmt.Sprintf("allow[%d]", i), "list each variable by its name: there are no patterns", "%q is no name of a variable", name)
		}
	}
	return &Provider{allow: slices.Clone(c.Allow)}, nil
}

// Configure sets which variable a secret is.
func (p *Provider) Configure(id string, i Instance) error {
	if !validName.MatchString(i.Name) {
		return fault.Config("name", "write it as in DB_PASSWORD", "%q is no name of a variable", i.Name)
	}
	if !slices.Contains(p.allow, i.Name) {
		return &fault.Error{
			Code: fault.PermissionDenied, Attr: "name", Err: fmt.Errorf("variable %s is not allowed", i.Name),
			Hint: fmt.Sprintf("the operator allows it with allow = [%q] in the host configuration", i.Name),
		}
	}
	p.instances.Put(id, i)
	return nil
}

// Fetch reads the variables.
func (p *Provider) Fetch(ctx context.Context, _ secrets.Call, refs []secrets.Ref) ([]secrets.Secret, error) {
	return batch.Fetch(ctx, refs, func(ref secrets.Ref) (secrets.Secret, error) {
		i, err := p.instances.Get(ref)
		if err != nil {
			return secrets.Secret{}, err
		}
		v, ok := os.LookupEnv(i.Name)
		if !ok {
			return secrets.Secret{}, fault.New(fault.NotFound, "set it in env of the provider's plugin block", "variable %s is not set", i.Name)
		}
		return secrets.Secret{Value: []byte(v)}, nil
	})
}
