package pluginhost

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/hcl/v2"

	"github.com/nucleus-runtime/nucleus/core/secret"
	"github.com/nucleus-runtime/nucleus/sdk/config"
	"github.com/nucleus-runtime/nucleus/sdk/errs"
	"github.com/nucleus-runtime/nucleus/sdk/manifest"
	"github.com/nucleus-runtime/nucleus/sdk/plugin/client"
	"github.com/nucleus-runtime/nucleus/sdk/secrets"
)

// Time that calls may take, unless the context ends before.
const (
	infoTime      = time.Second
	configureTime = 2 * time.Second
	fetchTime     = 15 * time.Second
)

// Secrets gives the values of secrets by plugins: a provider is the plugin of that
// name. It is a secret.Source.
type Secrets struct{ Host *Host }

// Fetch starts the plugins of all providers beside each other, asks each once for
// all of its secrets, and ends them.
func (s *Secrets) Fetch(ctx context.Context, r secret.Request) (secret.Fetched, error) {
	var mu sync.Mutex
	all := secret.Fetched{Values: map[string]*secret.Value{}}
	failures := make([]error, len(r.Groups))
	var wg sync.WaitGroup
	for i, g := range r.Groups {
		wg.Go(func() {
			got, err := s.group(ctx, r.Sandbox, g)
			failures[i] = err
			mu.Lock()
			defer mu.Unlock()
			maps.Copy(all.Values, got.Values)
			all.Loans = append(all.Loans, got.Loans...)
		})
	}
	wg.Wait()
	return all, errors.Join(failures...)
}

// group asks one provider, and once more, as a new process, if it or what it talks
// to was down. What it returns is the caller's, with an error too.
func (s *Secrets) group(ctx context.Context, sandbox string, g secret.Group) (secret.Fetched, error) {
	// The same id each time: whatever the first try has done is not done twice.
	call := secrets.Call{RequestID: sandbox + "-" + g.Provider, SandboxID: sandbox, Attempt: 1}
	var loans []secret.Loan
	for ; ; call.Attempt++ {
		values, err := s.attempt(ctx, call, g)
		loans = append(loans, values.Loans...) // of a try that failed, too
		values.Loans = loans
		wait, worth := retry(err)
		if !worth || call.Attempt == tries {
			return values, err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return values, err
		}
	}
}

const (
	tries = 2
	// maxWait is the longest that a plugin may ask to wait before the next try.
	// Somebody waits for the start of a sandbox.
	maxWait = 2 * time.Second
)

// retry tells whether another try is worth it, and when.
func retry(err error) (time.Duration, bool) {
	if err == nil {
		return 0, false
	}
	e := errs.Of(err)
	return max(e.RetryAfter, 0), e.Code.Retryable() && e.RetryAfter <= maxWait
}

func (s *Secrets) attempt(ctx context.Context, call secrets.Call, g secret.Group) (out secret.Fetched, err error) {
	p, err := s.Host.Start(ctx, g.Provider, manifest.Secrets)
	if err != nil {
		return out, providerError(g.Provider, err)
	}
	l := &loan{host: s.Host, sandbox: call.SandboxID, provider: g.Provider, now: time.Now, p: p, retired: make(chan struct{})}
	defer func() {
		switch {
		case len(l.leases) > 0: // it stays
			out.Loans = []secret.Loan{l}
		case p.closes: // nobody waits for that before the sandbox has ended
			out.Loans = []secret.Loan{l}
			go l.retire()
		default:
			p.Close()
		}
	}()
	refs, configs, err := s.configure(ctx, l, g)
	if err != nil {
		return out, err
	}
	ctx, cancel := context.WithTimeout(ctx, fetchTime)
	defer cancel()
	asked := time.Now()
	got, err := client.New(p.Conn()).Secrets(nil).Fetch(ctx, call, refs)
	if err != nil {
		return out, providerError(g.Provider, p.failed("fetching", err))
	}
	for i, x := range got {
		if len(x.Lease.ID) > maxLeaseID || len(configs[i]) > maxRecorded {
			l.leases = nil
			clearAll(got)
			return out, &secret.Error{Name: refs[i].Name, Err: fmt.Errorf("its lease, or its configuration, is too long to be written down: %d and %d bytes", len(x.Lease.ID), len(configs[i]))}
		}
		if x.Lease.ID != "" {
			l.leases = append(l.leases, &lease{
				LeaseRecord: secret.LeaseRecord{Name: refs[i].Name, ID: x.Lease.ID, Config: configs[i]},
				granted:     asked, length: x.Lease.Duration, asked: x.Lease.Duration, renewable: x.Lease.Renewable && slices.Contains(l.features, secrets.FeatureRenew),
			})
		}
	}
	out.Values, err = sealed(g, got)
	if len(l.leases) > 0 {
		err = errors.Join(err, p.forget(ctx))
	}
	return out, err
}

// configure tells the plugin its operator's configuration, then each secret's.
func (s *Secrets) configure(ctx context.Context, l *loan, g secret.Group) (refs []secrets.Ref, configs [][]byte, err error) {
	p := l.p
	d, schema, err := s.Host.ready(ctx, p)
	if err != nil {
		return nil, nil, providerError(g.Provider, err)
	}
	l.features = d.Info.Features
	for _, ref := range g.Refs {
		id := instance(l.sandbox, ref.Name)
		value, err := s.Host.configure(ctx, p, schema, ref.Config, ref.Eval, manifest.Secrets, id)
		if err == nil {
			value, err = schema.Public(value)
		}
		if err != nil {
			return nil, nil, &secret.Error{Name: ref.Name, Err: err}
		}
		refs = append(refs, secrets.Ref{Name: ref.Name, InstanceID: id})
		configs = append(configs, value)
	}
	return refs, configs, nil
}

const (
	maxLeaseID = 4 << 10
	// maxRecorded bounds what of a configuration is written down.
	maxRecorded = 8 << 10
)

func clearAll(got []secrets.Secret) {
	for _, x := range got {
		clear(x.Value)
	}
}

// sealed moves values into sealed memory, and overwrites what came.
func sealed(g secret.Group, got []secrets.Secret) (_ map[string]*secret.Value, err error) {
	defer clearAll(got)
	if len(got) != len(g.Refs) {
		return nil, providerError(g.Provider, fmt.Errorf("it gave %d values, and %d were asked for", len(got), len(g.Refs)))
	}
	values := map[string]*secret.Value{}
	for i, x := range got {
		name := g.Refs[i].Name
		if x.Name != name && x.Name != "" {
			return values, providerError(g.Provider, fmt.Errorf("it gave another value in the place of %q", name))
		}
		if x.Absent {
			return values, &secret.Error{Name: name, Err: errors.New("there is no such secret")}
		}
		v, err := secret.New(x.Value)
		if err != nil {
			return values, &secret.Error{Name: name, Err: err}
		}
		values[name] = v
	}
	return values, nil
}

// providerError keeps the remedy.
func providerError(provider string, err error) error {
	e := &secret.Error{Provider: provider, Err: err}
	var pe *Error
	if errors.As(err, &pe) {
		e.Hint = pe.Hint
	}
	return e
}

// Description is what a plugin says of itself.
type Description struct {
	Info   manifest.Info
	Schema config.Schema
}

// Serves tells whether it offers a service.
func (d *Description) Serves(s manifest.Service) bool {
	return slices.ContainsFunc(d.Info.Services, func(v manifest.Version) bool { return v.Service == s })
}

// Describe tells what a running plugin is, and checks that it is what its name and
// its operator say. A plugin that is remembered is not asked again.
func (h *Host) Describe(ctx context.Context, p *Plugin) (d *Description, err error) {
	if d = p.known; d == nil {
		d = h.remembered(ctx, p.Program)
	}
	if d != nil {
		err = h.allowed(p, d.Info)
	} else {
		d, err = h.Ask(ctx, p)
	}
	if err != nil {
		return d, err
	}
	p.closes = slices.Contains(d.Info.Features, manifest.FeatureClose)
	p.selected, err = selectVersions(p.Name, d.Info, p.Service)
	return d, err
}

// Ask is Describe that asks, whatever is remembered.
func (h *Host) Ask(ctx context.Context, p *Plugin) (*Description, error) {
	ctx, cancel := context.WithTimeout(ctx, infoTime)
	defer cancel()
	said := &recorder{ClientConnInterface: p.Conn()}
	c := client.New(said)
	info, err := c.Info(ctx, h.o.Version, ours)
	if err != nil {
		return nil, p.failed("asking what it is", err)
	}
	schema, err := c.ConfigSchema(ctx)
	if err != nil {
		return nil, p.failed("asking for its configuration's schema", err)
	}
	if info.Name != p.Name {
		return nil, &Error{p.Name, fmt.Errorf("it says that it is plugin %q", info.Name), shown("install it as " + Prefix + info.Name)}
	}
	h.o.Schemas.write(h.schemaKey(p.Program), &said.answers)
	return &Description{clean(info), schema}, h.allowed(p, info)
}

// clean makes fit to show what a plugin says of itself.
func clean(in manifest.Info) manifest.Info {
	for _, s := range []*string{&in.Version, &in.SDKVersion, &in.Description, &in.DocsURL} {
		*s = shown(*s)
	}
	for _, list := range [][]string{in.Features, in.Needs.Capabilities, in.Needs.WritablePaths} {
		for i := range list {
			list[i] = shown(list[i])
		}
	}
	for i := range in.Services {
		in.Services[i].Version = shown(in.Services[i].Version)
	}
	return in
}

// allowed compares what a plugin offers and needs with what its operator allows.
func (h *Host) allowed(p *Plugin, info manifest.Info) error {
	host := p.Program.Host
	for _, v := range info.Services {
		ok := slices.ContainsFunc(host.Allow, func(a string) bool {
			service, _, _ := strings.Cut(a, ":")
			return service == string(v.Service)
		})
		if host.Allow != nil && !ok {
			return &Error{p.Name, fmt.Errorf("it serves %s, which its operator does not allow", v.Service), fmt.Sprintf("allow = [%q] in its block of the host configuration", v.Service)}
		}
	}
	for _, need := range info.Needs.Capabilities {
		if os.Geteuid() != 0 {
			return &Error{p.Name, fmt.Errorf("it needs %s, which only root can give", need), noRoot(p.Service)}
		}
		if !slices.ContainsFunc(host.Caps, func(c string) bool { return strings.EqualFold(c, need) }) {
			return &Error{p.Name, fmt.Errorf("it needs %s, which its operator does not give", need), shown(fmt.Sprintf("caps = [%q] in its block of the host configuration", need))}
		}
	}
	if what, remedy := p.proc.launch.box.refuses(info.Needs); what != "" {
		return &Error{p.Name, fmt.Errorf("it needs %s, which its operator does not allow", what), shown(remedy + " in its block of the host configuration")}
	}
	if info.Needs.Root && host.User != "root" {
		return &Error{p.Name, errors.New("it needs to run as root, which its operator does not say"), `user = "root" in its block of the host configuration`}
	}
	return nil
}

// noRoot is what an ordinary user can do about a plugin that needs capabilities.
func noRoot(as manifest.Service) string {
	if as == manifest.Network {
		return `run nucleus as root, or write: network "netuserspace" { … }`
	}
	return "run nucleus as root"
}

// configureSelf gives a plugin its operator's configuration, an empty one too: it
// comes before anything else. One that was found has it.
func (h *Host) configureSelf(ctx context.Context, p *Plugin, d *Description) error {
	if p.proc.found != nil {
		return nil
	}
	schema, err := NewSchema(d.Schema.Plugin)
	if err != nil {
		return &Error{Plugin: p.Name, Err: err}
	}
	self, err := h.configure(ctx, p, schema, p.Program.Host.Config, h.o.Finder.Host.EvalContext(), "", "")
	if err == nil {
		h.keep(p, d, self)
	}
	var bad *ConfigError
	if errors.As(err, &bad) && p.Program.Host.Config == nil {
		// Without this whoever wrote the job would look for it there.
		return &Error{
			p.Name, fmt.Errorf("its operator has to configure it: %w", err),
			fmt.Sprintf("plugin %q { config { … } } in the host configuration (-host-config); nucleus plugin schema %s shows what", p.Name, p.Name),
		}
	}
	return err
}

// instance is what a plugin knows a block of a job by. One process may serve several
// sandboxes, whose blocks have the same labels.
func instance(sandbox, label string) string { return sandbox + "/" + label }

// configure decodes a body here, sends it, and gives what the plugin says of it its
// place in the file. It gives the value that was sent.
func (h *Host) configure(ctx context.Context, p *Plugin, schema *Schema, body hcl.Body, eval *hcl.EvalContext, service manifest.Service, id string) ([]byte, error) {
	value, diags := schema.Decode(body, eval)
	if diags.HasErrors() {
		return nil, &ConfigError{p.Name, diags}
	}
	return value, h.send(ctx, p, schema, body, value, service, id)
}

// send configures a plugin, or one instance, with a value. The body is where it came
// from, nil for none.
func (h *Host) send(ctx context.Context, p *Plugin, schema *Schema, body hcl.Body, value []byte, service manifest.Service, id string) error {
	ctx, cancel := context.WithTimeout(ctx, configureTime)
	defer cancel()
	ds, err := client.New(p.Conn()).Configure(ctx, client.Configuration{Instance: config.Instance{ID: id, StateRoot: h.stateRoot()}, Service: service, Value: value, Selected: p.selected})
	if err != nil {
		if e := errs.Of(err); len(e.Diagnostics) > 0 {
			ds = append(ds, e.Diagnostics...)
		} else {
			return p.failed("configuring it", err)
		}
	}
	if diags := schema.Diagnose(body, ds); diags.HasErrors() {
		return &ConfigError{p.Name, diags}
	}
	return nil
}

// maxLines is how many mistakes are told at once.
const maxLines = 20

// ConfigError tells what is wrong with a plugin's configuration, and where.
type ConfigError struct {
	Plugin string
	Diags  hcl.Diagnostics
}

func (e *ConfigError) Error() string {
	var lines []string
	for _, d := range e.Diags {
		if d.Severity != hcl.DiagError {
			continue
		}
		line := d.Summary
		if d.Detail != "" {
			line += ": " + d.Detail
		}
		if d.Subject != nil && d.Subject.Start.Line > 0 {
			line = fmt.Sprintf("%s:%d: %s", d.Subject.Filename, d.Subject.Start.Line, line)
		}
		lines = append(lines, line)
	}
	if rest := len(lines) - maxLines; rest > 0 {
		lines = append(lines[:maxLines], fmt.Sprintf("and %d more", rest))
	}
	return strings.Join(lines, "; ")
}
