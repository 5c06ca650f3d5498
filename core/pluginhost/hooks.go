package pluginhost

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nucleus-runtime/nucleus/core/boundary"
	"github.com/nucleus-runtime/nucleus/core/job/hostconfig"
	"github.com/nucleus-runtime/nucleus/sdk/errs"
	"github.com/nucleus-runtime/nucleus/sdk/hooks"
	"github.com/nucleus-runtime/nucleus/sdk/manifest"
	"github.com/nucleus-runtime/nucleus/sdk/plugin/client"
)

// Hooks calls hooks plugins. It is a boundary.Source.
type Hooks struct{ Host *Host }

// describeTime is how long a hooks plugin may take to say what it wants to hear of.
const describeTime = 2 * time.Second

// Open starts a plugin, configures it for one sandbox, and asks what it wants to
// hear of.
func (h *Hooks) Open(ctx context.Context, sandbox string, w boundary.Want) (boundary.Caller, error) {
	c := &hooksCaller{host: h.Host, name: w.Plugin, sandbox: sandbox, pinned: h.Host.o.Finder.PinnedOnly}
	c.configure = func(ctx context.Context, p *Plugin, s *Schema) (err error) {
		c.config, err = h.Host.settle(ctx, p, s, w.Config, w.Eval, c.instance())
		return err
	}
	if err := c.ready(ctx); err != nil {
		return nil, err
	}
	if err := c.describe(ctx); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// Reopen starts a plugin for what its record tells. What it was configured with and
// must not be written down is missing.
func (h *Hooks) Reopen(ctx context.Context, sandbox string, r boundary.Record) (boundary.Caller, error) {
	c := &hooksCaller{host: h.Host, name: r.Plugin, sandbox: sandbox, pinned: r.Pinned}
	if err := h.Host.o.Finder.pinned(r.Plugin, r.Pinned); err != nil {
		return nil, err
	}
	c.configure = func(ctx context.Context, p *Plugin, s *Schema) error {
		return h.Host.remind(ctx, p, s, r.Config, c.instance())
	}
	return c, c.ready(ctx)
}

// hooksCaller calls one plugin for one sandbox. A process that has ended is started
// once more for the next call.
type hooksCaller struct {
	host          *Host
	name, sandbox string
	configure     func(context.Context, *Plugin, *Schema) error
	config        []byte
	pinned        bool
	sub           hooks.Subscription

	mu     sync.Mutex // one call at a time
	p      *Plugin
	closed bool
}

func (c *hooksCaller) instance() string { return instance(c.sandbox, c.name) }

// ready has the caller hold mu, or be the only one who knows of it.
func (c *hooksCaller) ready(ctx context.Context) error {
	if c.closed {
		return context.Canceled
	}
	if c.p != nil {
		return nil
	}
	var err error
	c.p, _, err = c.host.open(ctx, c.name, manifest.Hooks, func(p *Plugin, s *Schema) error { return c.configure(ctx, p, s) })
	return err
}

func (c *hooksCaller) describe(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, describeTime)
	defer cancel()
	sub, err := client.New(c.p.Conn()).Hooks().Describe(ctx, c.instance())
	if err != nil {
		return c.p.failed("asking what it wants to hear of", err)
	}
	if b, allow := forbidden(c.p.Program.Host, sub.At); b != 0 {
		return &Error{c.name, fmt.Errorf("it wants to be called at %s, which its operator does not allow", b), fmt.Sprintf("allow = [%s] in its block of the host configuration", allow)}
	}
	c.sub = sub
	return nil
}

// phaseOf is what the host configuration calls the phase of a boundary.
func phaseOf(b hooks.Boundary) string {
	name := strings.TrimPrefix(b.String(), "PRE_")
	return strings.TrimPrefix(name, "POST_")
}

// forbidden gives the first boundary that an operator does not allow, 0 for none, and
// what he would have to write for all.
func forbidden(host hostconfig.Plugin, at hooks.Mask) (first hooks.Boundary, allow string) {
	if host.Allow == nil || slices.Contains(host.Allow, string(manifest.Hooks)) {
		return 0, ""
	}
	all := slices.Clone(host.Allow)
	for b := hooks.PreNamespaces; b <= hooks.Cleanup; b++ {
		phase := string(manifest.Hooks) + ":" + phaseOf(b)
		if !at.Has(b) || slices.Contains(all, phase) {
			continue
		}
		if first == 0 {
			first = b
		}
		all = append(all, phase)
	}
	return first, quoted(all)
}

func quoted(words []string) string {
	out := make([]string, len(words))
	for i, w := range words {
		out[i] = strconv.Quote(w)
	}
	return strings.Join(out, ", ")
}

// Subscription is what the plugin wants to hear of.
func (c *hooksCaller) Subscription() hooks.Subscription { return c.sub }

// Record has what the plugin was configured with, but for what is sensitive.
func (c *hooksCaller) Record() boundary.Record {
	return boundary.Record{Plugin: c.name, Config: c.config, Pinned: c.pinned}
}

// Call calls the plugin, and once more, as a new process, if it was down.
func (c *hooksCaller) Call(ctx context.Context, e hooks.Event) (hooks.Answer, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	// The same id each time: whatever the first try has done is not done twice.
	call := hooks.Call{RequestID: c.sandbox + "-" + e.Boundary.String(), SandboxID: c.sandbox, InstanceID: c.instance()}
	for call.Attempt = 1; ; call.Attempt++ {
		a, err := c.attempt(ctx, call, e)
		wait, worth := retry(err)
		if !worth || call.Attempt == tries {
			return a, err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return a, err
		}
	}
}

func (c *hooksCaller) attempt(ctx context.Context, call hooks.Call, e hooks.Event) (hooks.Answer, error) {
	if err := c.ready(ctx); err != nil {
		return hooks.Answer{}, err
	}
	a, err := client.New(c.p.Conn()).Hooks().OnPhase(ctx, call, e)
	if err == nil {
		a.Veto = shown(a.Veto)
		return a, nil
	}
	err = c.p.failed("calling it", err)
	if errs.Of(err).Code == errs.Unavailable {
		c.p.Close()
		c.p = nil
	}
	return hooks.Answer{}, err
}

// Close ends the plugin.
func (c *hooksCaller) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	if c.p != nil {
		c.p.Retire()
		c.p = nil
	}
}
