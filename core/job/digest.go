package job

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	ctyjson "github.com/zclconf/go-cty/cty/json"
)

// Digest tells two versions of a job apart: it is the same for jobs that ask for the
// same, wherever in a file they stand. What a path leads to does not count. It is keyed,
// for a job's variables and arguments may be few enough to be guessed from a plain hash:
// use a random key for each digest that is stored.
func (j *Job) Digest(key []byte) (string, error) {
	c := *j
	c.File, c.Ranges = "", nil
	var configs []any
	take := func(body *hcl.Body) error {
		v, err := j.configValue(*body)
		configs = append(configs, v)
		*body = nil
		return err
	}
	bodies := []*hcl.Body{&c.Network.Config}
	c.Secrets, c.PluginHooks = slices.Clone(j.Secrets), slices.Clone(j.PluginHooks)
	for i := range c.Secrets {
		bodies = append(bodies, &c.Secrets[i].Config)
	}
	for i := range c.PluginHooks {
		bodies = append(bodies, &c.PluginHooks[i].Config)
	}
	if j.Runtime != nil {
		r := *j.Runtime
		c.Runtime = &r
		bodies = append(bodies, &r.Config)
	}
	for _, b := range bodies {
		if err := take(b); err != nil {
			return "", err
		}
	}
	text, err := json.Marshal([]any{c, configs})
	if err != nil {
		return "", fmt.Errorf("digest of job %q: %w", j.Name, err)
	}
	m := hmac.New(sha256.New, key)
	m.Write(text)
	return hex.EncodeToString(m.Sum(nil)), nil
}

// config is what a body for a plugin holds, in an order that does not depend on where
// its attributes stand.
type config struct {
	Type   string
	Labels []string
	Attrs  map[string]json.RawMessage
	Blocks []*config
}

func (j *Job) configValue(body hcl.Body) (*config, error) {
	b, ok := body.(*hclsyntax.Body)
	if !ok || b == nil {
		return nil, nil
	}
	c := &config{Attrs: map[string]json.RawMessage{}}
	for name, a := range b.Attributes {
		v, diags := a.Expr.Value(j.eval)
		if diags.HasErrors() {
			return nil, fmt.Errorf("digest of job %q: %s: %s", j.Name, a.NameRange, diags[0].Summary)
		}
		text, err := ctyjson.Marshal(v, v.Type())
		if err != nil {
			return nil, fmt.Errorf("digest of job %q: %s: %w", j.Name, a.NameRange, err)
		}
		c.Attrs[name] = text
	}
	for _, n := range b.Blocks {
		x, err := j.configValue(n.Body)
		if err != nil {
			return nil, err
		}
		x.Type, x.Labels = n.Type, n.Labels
		c.Blocks = append(c.Blocks, x)
	}
	return c, nil
}
