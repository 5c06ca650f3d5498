// Command nucleus-plugin-dotenv gives the values of one KEY=VALUE file as secrets.
// The operator says which file; a job says which keys of it.
package main

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"sync"

	"github.com/nucleus-runtime/nucleus/sdk/config"
	"github.com/nucleus-runtime/nucleus/sdk/errs"
	"github.com/nucleus-runtime/nucleus/sdk/plugin"
	"github.com/nucleus-runtime/nucleus/sdk/secrets"
)

// version is set by the linker.
var version = "dev"

const maxFile = 1 << 20

// operator is the config block of plugin "dotenv" in the host configuration.
type operator struct {
	Path string `hcl:"path" desc:"The file with lines KEY=VALUE." format:"abs_path"`
}

// instance is the config block of a job's secret.
type instance struct {
	Key string `hcl:"key" desc:"The key whose value it is." pattern:"[A-Za-z_][A-Za-z0-9_]*"`
}

type provider struct {
	mu   sync.Mutex
	path string
	keys map[string]string // by the id of the secret
}

var _ secrets.Provider = (*provider)(nil)

func (p *provider) configure(_ context.Context, _ config.Instance, c operator) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.path = c.Path
	return nil
}

func (p *provider) configureSecret(_ context.Context, in config.Instance, c instance) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.keys[in.ID] = c.Key
	return nil
}

// Fetch reads the file once for all secrets of a job, so that they are of one
// version of it.
func (p *provider) Fetch(_ context.Context, _ secrets.Call, refs []secrets.Ref) ([]secrets.Secret, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	text, err := read(p.path)
	if err != nil {
		return nil, err
	}
	defer clear(text)
	values, err := parse(text)
	if err != nil {
		return nil, errs.Preconditionf("%s: %w", p.path, err)
	}
	out := make([]secrets.Secret, 0, len(refs))
	for _, r := range refs {
		value, ok := values[p.keys[r.InstanceID]]
		switch {
		case ok:
			// A copy: the text is overwritten as soon as this returns.
			out = append(out, secrets.Secret{Name: r.Name, Value: append([]byte{}, value...)})
		case r.Optional:
			out = append(out, secrets.Secret{Name: r.Name, Absent: true})
		default:
			return nil, errs.NotFoundf("secret %q: %s has no key %s", r.Name, p.path, p.keys[r.InstanceID])
		}
	}
	return out, nil
}

// read refuses a file that others than its owner can read.
func read(path string) ([]byte, error) {
	f, err := os.Open(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, errs.NotFoundf("%w", err)
	case err != nil:
		return nil, errs.Deniedf("%w; let user %d, as whom this plugin runs, own it", err, os.Geteuid())
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, errs.Preconditionf("%s is not a regular file", path)
	}
	if st.Mode().Perm()&0o077 != 0 {
		return nil, errs.Deniedf("%s has mode %04o; chmod go= %s", path, st.Mode().Perm(), path)
	}
	if st.Size() > maxFile {
		return nil, errs.Preconditionf("%s is longer than 1 MiB", path)
	}
	return io.ReadAll(io.LimitReader(f, maxFile))
}

func main() {
	p := &provider{keys: map[string]string{}}
	plugin.Serve(plugin.Plugin{
		Name: "dotenv", Version: version, Description: "gives the values of a KEY=VALUE file",
		Secrets:       p,
		Config:        config.To(config.Func[operator](p.configure)),
		SecretsConfig: config.To(config.Func[instance](p.configureSecret)),
	})
}
