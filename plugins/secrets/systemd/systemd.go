// Package systemd gives secrets that are credentials of a service (systemd.exec(5),
// LoadCredential= and its like).
package systemd

import (
	"context"
	"os"
	"strings"

	"github.com/nucleus-runtime/nucleus/plugins/secrets/fault"
	"github.com/nucleus-runtime/nucleus/plugins/secrets/internal/batch"
	"github.com/nucleus-runtime/nucleus/plugins/secrets/internal/safefile"
	"github.com/nucleus-runtime/nucleus/sdk/secrets"
)

// variable is where systemd tells a service its credentials' directory.
const variable = "CREDENTIALS_DIRECTORY"

// Config is the operator's part.
type Config struct {
	Directory string `hcl:"directory,optional" desc:"directory of the credentials; default: CREDENTIALS_DIRECTORY of the provider's environment"`
}

// Instance is one secret.
type Instance struct {
	Name string `hcl:"name" desc:"name of the credential, as in LoadCredential=NAME:..."`
}

// Provider reads credentials.
type Provider struct {
	dir       string
	instances batch.Instances[Instance]
}

var _ secrets.Provider = (*Provider)(nil)

// New makes a provider.
func New(c Config) (*Provider, error) {
	dir, attr := c.Directory, "directory"
	if dir == "" {
		dir, attr = os.Getenv(variable), variable
	}
	if dir == "" {
		return nil, fault.New(fault.FailedPrecondition,
			"run it in a service with LoadCredential= and pass the variable in env of the provider's plugin block, or write directory = \"/run/credentials/UNIT\"",
			"%s is not set", variable)
	}
	if err := safefile.Path(attr, dir); err != nil {
		return nil, err
	}
	return &Provider{dir: dir}, nil
}

// Configure sets which credential a secret is.
func (p *Provider) Configure(id string, i Instance) error {
	if !validName(i.Name) {
		return fault.Config("name", "1 to 255 printable ASCII characters without / and :, as systemd wants them", "%q is no name of a credential", i.Name)
	}
	p.instances.Put(id, i)
	return nil
}

// validName is systemd's credential_name_valid(): the name of a file and of a
// descriptor (sd_listen_fds_with_names(3)).
func validName(name string) bool {
	outside := func(r rune) bool { return r < ' ' || r > '~' || r == '/' || r == ':' }
	return name != "" && len(name) <= 255 && name != "." && name != ".." && !strings.ContainsFunc(name, outside)
}

// Fetch reads the credentials.
func (p *Provider) Fetch(ctx context.Context, _ secrets.Call, refs []secrets.Ref) ([]secrets.Secret, error) {
	rule := safefile.Rule{Dirs: []string{p.dir}, NoLinks: true, Forbid: safefile.Credential}
	return batch.Fetch(ctx, refs, func(ref secrets.Ref) (secrets.Secret, error) {
		i, err := p.instances.Get(ref)
		if err != nil {
			return secrets.Secret{}, err
		}
		b, err := safefile.Read(p.dir+"/"+i.Name, rule)
		return secrets.Secret{Value: b}, err
	})
}
