package boundary

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/moby/sys/capability"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/nucleus-runtime/nucleus/core/plan"
	"github.com/nucleus-runtime/nucleus/sdk/hooks"
)

// Bounds of what one answer may add.
const (
	maxKeys = 256
	maxText = 64 << 10 // bytes of all keys and values
)

func empty(m hooks.Mutation) bool {
	return len(m.AddEnv)+len(m.DropCapabilities)+len(m.LowerRlimits)+len(m.Annotations) == 0
}

// changeable are the boundaries at which the sandbox's process can still be
// changed. At PreExec it is restricted, verified, and waits.
var changeable = hooks.At(hooks.PreNamespaces, hooks.PreCgroups, hooks.PreFS, hooks.PreSecurity)

// check looks at one plugin's changes beside those of the others.
func (s *Subscribers) check(who string, m hooks.Mutation, at hooks.Boundary) error {
	if !changeable.Has(at) {
		return fmt.Errorf("it changes the sandbox at %s, where everything is verified: the last moment is %s", at, hooks.PreSecurity)
	}
	if n := max(len(m.DropCapabilities), len(m.LowerRlimits)); n > maxKeys {
		return fmt.Errorf("it drops or lowers %d things at once, and may do %d", n, maxKeys)
	}
	for k := range m.AddEnv {
		if k == "" || strings.ContainsRune(k, '=') {
			return fmt.Errorf("%q is no name of a variable", k)
		}
	}
	return errors.Join(s.claim(who, "variable", m.AddEnv), s.claim(who, "annotation", m.Annotations))
}

// claim notes whose a key is. Two plugins that write the same do not know of each
// other, and one of them would be wrong about what holds.
func (s *Subscribers) claim(who, what string, m map[string]string) error {
	size := 0
	for _, k := range slices.Sorted(maps.Keys(m)) {
		size += len(k) + len(m[k])
		if strings.ContainsRune(k+m[k], 0) {
			return fmt.Errorf("%s %q has a NUL byte", what, k)
		}
		key := what + " " + k
		if other, ok := s.wrote[key]; ok && other != who {
			return fmt.Errorf("it sets %s %q, which plugin %q has set", what, k, other)
		}
		s.wrote[key] = who
	}
	if len(m) > maxKeys || size > maxText {
		return fmt.Errorf("it adds more than %d of %s, or more than %d bytes of them", maxKeys, what, maxText)
	}
	return nil
}

func added[V any](to, from map[string]V) map[string]V {
	if to == nil && len(from) > 0 {
		to = map[string]V{}
	}
	maps.Copy(to, from)
	return to
}

// Narrow gives the plan as an answer changes it; p stays as it is. Inherited
// gives the limits of a resource ("RLIMIT_NOFILE") that a process has whose plan
// says nothing of it, and false for a name that there is not.
func Narrow(p *plan.Plan, m hooks.Mutation, inherited func(string) (soft, hard uint64, ok bool)) (*plan.Plan, error) {
	if empty(m) {
		return p, nil
	}
	out := *p
	var err error
	if out.Process.Env, err = withEnv(p, m.AddEnv); err != nil {
		return nil, err
	}
	if out.Process.Capabilities, err = without(p.Process.Capabilities, m.DropCapabilities); err != nil {
		return nil, err
	}
	if out.Process.Rlimits, err = lowered(p.Process.Rlimits, m.LowerRlimits, inherited); err != nil {
		return nil, err
	}
	out.Annotations = added(maps.Clone(p.Annotations), m.Annotations)
	return &out, nil
}

// withEnv adds variables, and replaces none.
func withEnv(p *plan.Plan, add map[string]string) ([]string, error) {
	env := slices.Clone(p.Process.Env)
	for _, k := range slices.Sorted(maps.Keys(add)) {
		taken := slices.ContainsFunc(p.Process.Env, func(kv string) bool { return strings.HasPrefix(kv, k+"=") }) ||
			slices.ContainsFunc(p.Secrets, func(s plan.Secret) bool { return s.Env == k })
		if taken {
			return nil, fmt.Errorf("it sets variable %q, which is set already", k)
		}
		env = append(env, k+"="+add[k])
	}
	slices.Sort(env)
	return env, nil
}

func without(c *specs.LinuxCapabilities, drop []string) (*specs.LinuxCapabilities, error) {
	if len(drop) == 0 {
		return c, nil
	}
	gone := map[string]bool{}
	for _, d := range drop {
		name := strings.ToUpper(d)
		if !strings.HasPrefix(name, "CAP_") {
			name = "CAP_" + name
		}
		if !known(name) {
			return nil, fmt.Errorf("it drops capability %q, which there is not", d)
		}
		gone[name] = true
	}
	keep := slices.DeleteFunc(slices.Clone(c.Bounding), func(n string) bool { return gone[n] })
	return &specs.LinuxCapabilities{Bounding: keep, Effective: keep, Permitted: keep, Inheritable: keep, Ambient: keep}, nil
}

func known(name string) bool {
	return slices.ContainsFunc(capability.ListKnown(), func(c capability.Cap) bool { return "CAP_"+strings.ToUpper(c.String()) == name })
}

func lowered(have []specs.POSIXRlimit, lower map[string]uint64, inherited func(string) (soft, hard uint64, ok bool)) ([]specs.POSIXRlimit, error) {
	out := slices.Clone(have)
	for _, k := range slices.Sorted(maps.Keys(lower)) {
		name := "RLIMIT_" + strings.ToUpper(strings.TrimPrefix(strings.ToUpper(k), "RLIMIT_"))
		soft, hard, ok := inherited(name)
		if !ok {
			return nil, fmt.Errorf("it lowers limit %q, which there is not", k)
		}
		i := slices.IndexFunc(out, func(r specs.POSIXRlimit) bool { return r.Type == name })
		if i < 0 {
			i = len(out)
			out = append(out, specs.POSIXRlimit{Type: name, Soft: soft, Hard: hard})
		}
		out[i].Soft, out[i].Hard = min(out[i].Soft, lower[k]), min(out[i].Hard, lower[k])
	}
	return out, nil
}
