// Package file gives secrets that are files of the host, kept as ssh keeps its
// keys.
package file

import (
	"context"
	"fmt"

	"github.com/nucleus-runtime/nucleus/plugins/secrets/internal/batch"
	"github.com/nucleus-runtime/nucleus/plugins/secrets/internal/safefile"
	"github.com/nucleus-runtime/nucleus/sdk/secrets"
)

// Config is the operator's part.
type Config struct {
	Dirs []string `hcl:"dirs,optional" desc:"directories below which secrets may be; default: wherever the provider's user can read"`
}

// Instance is one secret.
type Instance struct {
	Path string `hcl:"path" desc:"absolute path of a file that only its owner can read"`
	Trim bool   `hcl:"trim,optional" desc:"take one newline off the end"`
}

// Provider reads files.
type Provider struct {
	rule      safefile.Rule
	instances batch.Instances[Instance]
}

var _ secrets.Provider = (*Provider)(nil)

// New makes a provider.
func New(c Config) (*Provider, error) {
	for i, dir := range c.Dirs {
		if err := safefile.Path(fmt.Sprintf("dirs[%d]", i), dir); err != nil {
			return nil, err
		}
	}
	return &Provider{rule: safefile.Rule{Dirs: c.Dirs, Forbid: safefile.Private}}, nil
}

// Configure sets where a secret is.
func (p *Provider) Configure(id string, i Instance) error {
	if err := safefile.Path("path", i.Path); err != nil {
		return err
	}
	p.instances.Put(id, i)
	return nil
}

// Fetch reads the files.
func (p *Provider) Fetch(ctx context.Context, _ secrets.Call, refs []secrets.Ref) ([]secrets.Secret, error) {
	return batch.Fetch(ctx, refs, func(ref secrets.Ref) (secrets.Secret, error) {
		i, err := p.instances.Get(ref)
		if err != nil {
			return secrets.Secret{}, err
		}
		b, err := safefile.Read(i.Path, p.rule)
		if err != nil {
			return secrets.Secret{}, err
		}
		if i.Trim {
			b = batch.Trim(b)
		}
		return secrets.Secret{Value: b}, nil
	})
}
