// Package age gives secrets that are files encrypted with age (age-encryption.org).
package age

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"filippo.io/age"
	"filippo.io/age/agessh"
	"filippo.io/age/armor"
	"golang.org/x/crypto/ssh"

	"github.com/nucleus-runtime/nucleus/plugins/secrets/fault"
	"github.com/nucleus-runtime/nucleus/plugins/secrets/internal/batch"
	"github.com/nucleus-runtime/nucleus/plugins/secrets/internal/safefile"
	"github.com/nucleus-runtime/nucleus/plugins/secrets/internal/wipe"
	"github.com/nucleus-runtime/nucleus/sdk/secrets"
)

// Config is the operator's part.
type Config struct {
	Identities []string `hcl:"identities,optional" desc:"absolute paths of identity files (age or ssh keys) for secrets that name none"`
	Dirs       []string `hcl:"dirs,optional" desc:"directories below which secrets and their identity files may be; default: wherever the provider's user can read"`
}

// Instance is one secret.
type Instance struct {
	Path     string `hcl:"path" desc:"absolute path of the encrypted file, armored or not"`
	Identity string `hcl:"identity,optional" desc:"absolute path of the identity file; default: those of the host configuration"`
	Trim     bool   `hcl:"trim,optional" desc:"take one newline off the end"`
}

// Provider decrypts files.
type Provider struct {
	c         Config
	instances batch.Instances[Instance]
}

var _ secrets.Provider = (*Provider)(nil)

// New makes a provider.
func New(c Config) (*Provider, error) {
	for i, path := range c.Identities {
		if err := safefile.Path(fmt.Sprintf("identities[%d]", i), path); err != nil {
			return nil, err
		}
	}
	for i, dir := range c.Dirs {
		if err := safefile.Path(fmt.Sprintf("dirs[%d]", i), dir); err != nil {
			return nil, err
		}
	}
	return &Provider{c: c}, nil
}

// Configure sets where a secret is.
func (p *Provider) Configure(id string, i Instance) error {
	if err := safefile.Path("path", i.Path); err != nil {
		return err
	}
	if i.Identity == "" && len(p.c.Identities) == 0 {
		return fault.Config("identity", "write identity = \"/etc/nucleus/age.key\", or identities in the host configuration", "there is no identity to decrypt with")
	}
	if i.Identity != "" {
		if err := safefile.Path("identity", i.Identity); err != nil {
			return err
		}
	}
	p.instances.Put(id, i)
	return nil
}

// Fetch decrypts the files. Identities are read once for the whole batch and not
// kept after it.
func (p *Provider) Fetch(ctx context.Context, _ secrets.Call, refs []secrets.Ref) ([]secrets.Secret, error) {
	ring := make(map[string][]age.Identity)
	return batch.Fetch(ctx, refs, func(ref secrets.Ref) (secrets.Secret, error) {
		i, err := p.instances.Get(ref)
		if err != nil {
			return secrets.Secret{}, err
		}
		ids, err := p.identities(ring, i)
		if err != nil {
			return secrets.Secret{}, err
		}
		b, err := decrypt(i.Path, safefile.Rule{Dirs: p.c.Dirs, Forbid: safefile.Trusted}, ids)
		if i.Trim {
			b = batch.Trim(b)
		}
		return secrets.Secret{Value: b}, err
	})
}

func (p *Provider) identities(ring map[string][]age.Identity, i Instance) ([]age.Identity, error) {
	paths, rule := p.c.Identities, safefile.Rule{Forbid: safefile.Private}
	if i.Identity != "" {
		// The job's word: it reads no more than the job's secrets do.
		paths, rule.Dirs = []string{i.Identity}, p.c.Dirs
	}
	var ids []age.Identity
	for _, path := range paths {
		some, ok := ring[path]
		if !ok || i.Identity != "" {
			var err error
			if some, err = readIdentities(path, rule); err != nil {
				return nil, err
			}
			ring[path] = some
		}
		ids = append(ids, some...)
	}
	return ids, nil
}

func readIdentities(path string, rule safefile.Rule) ([]age.Identity, error) {
	b, err := safefile.Read(path, rule)
	if fault.Of(err) == fault.NotFound {
		// Not the secret is missing, which may be optional, but the key to it.
		return nil, fault.New(fault.FailedPrecondition, "create it with age-keygen -o "+path, "there is no identity file %q", path)
	}
	if err != nil {
		return nil, err
	}
	defer wipe.Bytes(b)
	if bytes.HasPrefix(b, []byte("-----BEGIN")) {
		id, err := agessh.ParseIdentity(b)
		var locked *ssh.PassphraseMissingError
		if errors.As(err, &locked) {
			return nil, fault.New(fault.FailedPrecondition, "nobody is there to type it: use a key without one", "identity file %q has a passphrase", path)
		}
		if err != nil {
			return nil, notIdentities(path)
		}
		return []age.Identity{id}, nil
	}
	ids, err := age.ParseIdentities(bytes.NewReader(b))
	if err != nil {
		return nil, notIdentities(path)
	}
	return ids, nil
}

// notIdentities leaves out the parser's error, which quotes the line: it may be a key
// with a typing error, or a file of which the job should see nothing.
func notIdentities(path string) error {
	return fault.New(fault.FailedPrecondition, "age-keygen makes one; of ssh keys, ed25519 and rsa will do", "%q holds no identity of age nor a private ssh key", path)
}

func decrypt(path string, rule safefile.Rule, ids []age.Identity) ([]byte, error) {
	sealed, err := safefile.Read(path, rule)
	if err != nil {
		return nil, err
	}
	in := bufio.NewReader(bytes.NewReader(sealed))
	var src io.Reader = in
	if start, _ := in.Peek(len(armor.Header)); string(start) == armor.Header {
		src = armor.NewReader(in)
	}
	plain, err := age.Decrypt(src, ids...)
	var other *age.NoIdentityMatchError
	switch {
	case errors.As(err, &other):
		return nil, fault.New(fault.PermissionDenied, "encrypt it for one of them (age-keygen -y tells the recipient), not with a passphrase", "%q is encrypted for none of the %d identities", path, len(ids))
	case err != nil:
		return nil, broken(path)
	}
	b, err := wipe.Read(plain, safefile.Limit)
	switch {
	case errors.Is(err, wipe.ErrTooLong):
		return nil, fault.New(fault.FailedPrecondition, "a secret is not data: mount the file as a volume", "%q is longer than 1 MiB", path)
	case err != nil:
		return nil, broken(path)
	}
	return b, nil
}

// broken leaves out age's error, which quotes the file: it may be a secret that
// somebody forgot to encrypt.
func broken(path string) error {
	return fault.New(fault.FailedPrecondition, "encrypt it again", "%q is no file of age, or it was cut off or changed", path)
}
