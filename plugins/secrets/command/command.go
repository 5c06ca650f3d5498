// Package command gives secrets that are the output of commands (provider "exec").
// The operator defines the commands; a job only names one, and gives arguments
// where the operator left room for them.
package command

import (
	"context"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/nucleus-runtime/nucleus/plugins/secrets/fault"
	"github.com/nucleus-runtime/nucleus/plugins/secrets/internal/batch"
	"github.com/nucleus-runtime/nucleus/plugins/secrets/internal/safefile"
	"github.com/nucleus-runtime/nucleus/sdk/secrets"
)

// Config is the operator's part.
type Config struct {
	Commands []Command `hcl:"command,block" desc:"commands that jobs may name"`
}

// Command is what a job may have run.
type Command struct {
	Name         string            `hcl:"name,label" desc:"what jobs call it"`
	Argv         []string          `hcl:"argv" desc:"program by its absolute path, and its first arguments"`
	Args         []string          `hcl:"args,optional" desc:"regular expression for each argument of the job, which must match as a whole"`
	AllowOptions bool              `hcl:"allow_options,optional" desc:"let arguments of the job begin with a dash"`
	Env          map[string]string `hcl:"env,optional" desc:"environment, beside PATH and LANG"`
	Timeout      string            `hcl:"timeout,optional" desc:"how long it may take; default: 5s"`
}

// Instance is one secret.
type Instance struct {
	Command string   `hcl:"command" desc:"name of a command of the host configuration"`
	Args    []string `hcl:"args,optional" desc:"arguments, as many as the command has patterns for"`
	Trim    bool     `hcl:"trim,optional" desc:"take one newline off the end"`
}

const defaultTimeout = 5 * time.Second

// allowed is a Command that was looked through.
type allowed struct {
	Command
	patterns []*regexp.Regexp
	timeout  time.Duration
}

type bound struct {
	allowed
	args []string
	trim bool
}

// Provider runs commands.
type Provider struct {
	commands  map[string]allowed
	instances batch.Instances[bound]
}

var _ secrets.Provider = (*Provider)(nil)

// New makes a provider.
func New(c Config) (*Provider, error) {
	p := &Provider{commands: make(map[string]allowed)}
	for _, cmd := range c.Commands {
		at := func(attr string) string { return fmt.Sprintf("command[%q]%s", cmd.Name, attr) }
		if _, twice := p.commands[cmd.Name]; twice || cmd.Name == "" {
			return nil, fault.Config(at(""), "give each command a name of its own", "%q is empty or was used before", cmd.Name)
		}
		a := allowed{Command: cmd, timeout: defaultTimeout}
		if len(cmd.Argv) == 0 {
			return nil, fault.Config(at(".argv"), "write argv = [\"/usr/bin/pass\", \"show\"]", "there is no program")
		}
		if err := safefile.Path(at(".argv[0]"), cmd.Argv[0]); err != nil {
			return nil, err
		}
		for j, text := range cmd.Args {
			// In a group of its own: an alternative must not escape the anchors.
			re, err := regexp.Compile(`\A(?:` + text + `)\z`)
			if err != nil {
				return nil, fault.Config(fmt.Sprintf("%s[%d]", at(".args"), j), "see the syntax of RE2", "%q is no regular expression", text)
			}
			a.patterns = append(a.patterns, re)
		}
		for k := range cmd.Env {
			if k == "" || strings.ContainsAny(k, "=\x00") {
				return nil, fault.Config(at(".env"), "write it as in HOME", "%q is no name of a variable", k)
			}
		}
		if cmd.Timeout != "" {
			d, err := time.ParseDuration(cmd.Timeout)
			if err != nil || d <= 0 {
				return nil, fault.Config(at(".timeout"), "write it as in \"5s\"", "%q is no time to wait", cmd.Timeout)
			}
			a.timeout = d
		}
		p.commands[cmd.Name] = a
	}
	return p, nil
}

// Configure sets which command a secret comes from.
func (p *Provider) Configure(id string, i Instance) error {
	a, ok := p.commands[i.Command]
	if !ok {
		return &fault.Error{
			Code: fault.PermissionDenied, Attr: "command", Err: fmt.Errorf("%q is not allowed", i.Command),
			Hint: fmt.Sprintf("the operator allows it with command %q { argv = [...] } in the host configuration", i.Command),
		}
	}
	if len(i.Args) != len(a.patterns) {
		return fault.Config("args", fmt.Sprintf("write %d, or ask the operator for more patterns", len(a.patterns)),
			"command %q takes %d arguments, not %d", i.Command, len(a.patterns), len(i.Args))
	}
	for n, arg := range i.Args {
		attr := fmt.Sprintf("args[%d]", n)
		switch {
		case strings.ContainsRune(arg, 0):
			return fault.Config(attr, "leave it out", "an argument cannot have a zero byte")
		// What looks like an operand in the operator's pattern would be an option.
		case strings.HasPrefix(arg, "-") && !a.AllowOptions:
			return &fault.Error{
				Code: fault.PermissionDenied, Attr: attr, Err: fmt.Errorf("%q begins with a dash", arg),
				Hint: "the operator allows options with allow_options = true",
			}
		case !a.patterns[n].MatchString(arg):
			return &fault.Error{
				Code: fault.PermissionDenied, Attr: attr, Err: fmt.Errorf("%q does not match", arg),
				Hint: fmt.Sprintf("the operator allows %q", a.Args[n]),
			}
		}
	}
	p.instances.Put(id, bound{allowed: a, args: slices.Clone(i.Args), trim: i.Trim})
	return nil
}

// Fetch runs the commands, one after the other: many of them take a lock on their
// store, or ask one agent.
func (p *Provider) Fetch(ctx context.Context, _ secrets.Call, refs []secrets.Ref) ([]secrets.Secret, error) {
	return batch.Fetch(ctx, refs, func(ref secrets.Ref) (secrets.Secret, error) {
		b, err := p.instances.Get(ref)
		if err != nil {
			return secrets.Secret{}, err
		}
		v, err := b.run(ctx)
		return secrets.Secret{Value: v}, err
	})
}

func (b bound) argv() []string { return slices.Concat(b.Argv, b.args) }

// environment is complete: the provider's own may hold what is the operator's.
func (b bound) environment() []string {
	env := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"}
	for k, v := range b.Env {
		env = append(env, k+"="+v)
	}
	return env
}

// program finds the file behind argv[0] and checks that nobody else could have
// put another in its place.
func (b bound) program() (string, error) {
	path, err := filepath.EvalSymlinks(b.Argv[0])
	if err != nil {
		return "", fault.New(fault.FailedPrecondition, "install it, or correct argv in the host configuration", "command %q: there is no program %q", b.Name, b.Argv[0])
	}
	if err := trusted(path); err != nil {
		return "", err
	}
	return path, nil
}
