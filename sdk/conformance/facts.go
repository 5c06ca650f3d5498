package conformance

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/nucleus-runtime/nucleus/sdk/config"
	"github.com/nucleus-runtime/nucleus/sdk/internal/wire"
	"github.com/nucleus-runtime/nucleus/sdk/manifest"
	pluginv1 "github.com/nucleus-runtime/nucleus/sdk/proto/nucleus/plugin/v1"
)

// need is what a rule takes for granted, since another rule is about it.
type need uint8

const (
	nothing    need = iota
	running         // it shakes hands
	described       // Info and ConfigSchema can be used
	configured      // the configuration that was given is accepted
)

// facts are what rules take for granted, or why they can't.
type facts struct {
	info   *pluginv1.InfoResponse
	schema config.Schema

	start, describe, configure error // of each step; the later ones are not tried
	// unconfigured says that no configuration was given, and one is needed.
	unconfigured string

	fetch error             // of Fetch of all secrets
	masks map[string]uint64 // of boundaries that are answered, by the instance of hooks

	prepare  error // of Prepare of a runtime
	prepared *pluginv1.RuntimePrepareResponse

	// Of a sandbox with a policy of the simplest kind: what of connecting it, of what
	// is allowed, of what is denied and of disconnecting it is broken.
	attach, carries, denies, detach error
	forwarding                      bool // the network wants a host that forwards packets
}

// learn finds out once.
func (k *Checker) learn(ctx context.Context) *facts {
	if k.known != nil {
		return k.known
	}
	f := &facts{}
	p, err := k.start(ctx, launch{})
	if err != nil {
		f.start = err
		k.known = f
		return f
	}
	defer func() { p.close() }()
	k.known = f
	if f.describe = k.describe(ctx, p, f); f.describe != nil {
		return f
	}
	if k.serves(manifest.Network) {
		// What changes a host's network when it is configured must not be in the machine's.
		p.close()
		moved, err := k.moveOut(ctx)
		if err != nil {
			f.start = err
			return f
		}
		p = moved
	}
	if f.unconfigured, f.configure = k.configure(ctx, p); f.configure != nil || f.unconfigured != "" {
		return f
	}
	for _, s := range suites() {
		if s.learn != nil && k.serves(s.service) {
			s.learn(ctx, k, p)
		}
	}
	return f
}

func (k *Checker) describe(ctx context.Context, p *process, f *facts) error {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	var err error
	if f.info, err = p.base.Info(ctx, infoRequest()); err != nil {
		return fmt.Errorf("asking for Info: %w", err)
	}
	r, err := p.base.ConfigSchema(ctx, &pluginv1.ConfigSchemaRequest{})
	if err != nil {
		return fmt.Errorf("asking for ConfigSchema: %w", err)
	}
	if f.schema, err = wire.FromSchema(r); err != nil {
		return fmt.Errorf("asking for ConfigSchema: %w", err)
	}
	return nil
}

// meets tells why a rule can't be judged; nil if it can.
func (k *Checker) meets(ctx context.Context, r Rule) error {
	service := manifest.Service("")
	for _, s := range suites() {
		if s.name == r.Suite() {
			service = s.service
		}
	}
	if r.needs == nothing && service == "" {
		return nil
	}
	f := k.learn(ctx)
	switch {
	case f.start != nil:
		return skip("it can't be started: see base/handshake")
	case r.needs == running && service == "":
		return nil
	case f.describe != nil:
		return skip("it does not describe itself: see base/describe")
	case service != "" && !k.serves(service):
		return skip("the plugin does not serve %s", service)
	case r.needs < configured:
		return nil
	case f.configure != nil:
		return skip("it refuses its configuration: see base/configure")
	case f.unconfigured != "":
		return skip("%s", f.unconfigured)
	}
	return nil
}

// serves tells what can be used of its services.
func (k *Checker) serves(s manifest.Service) bool {
	for _, v := range wire.FromVersions(k.known.info.GetServices()) {
		if v.Service == s {
			return true
		}
	}
	return false
}

// block is the schema of a service's instances, or of the plugin.
func (k *Checker) block(s manifest.Service) *config.Block {
	if s == "" {
		return k.known.schema.Plugin
	}
	return k.known.schema.Instance[string(s)]
}

// instances of a service: those that were given, or one that is not configured where
// nothing can be.
func (k *Checker) instances(s manifest.Service) []Instance {
	var out []Instance
	for _, i := range k.conf.Instances {
		if i.Service == s {
			out = append(out, i)
		}
	}
	b := k.block(s)
	if out == nil && (s == manifest.Hooks && (b == nil || len(b.Attrs)+len(b.Blocks) == 0) || (s == manifest.Network || s == manifest.Runtime) && optionalOnly(b)) {
		out = []Instance{{Service: s, ID: "check"}}
	}
	return out
}

// optionalOnly tells whether an empty body will do.
func optionalOnly(b *config.Block) bool {
	return b == nil || !slices.ContainsFunc(b.Attrs, func(a config.Attr) bool { return a.Required }) &&
		!slices.ContainsFunc(b.Blocks, func(n config.Nested) bool { return n.Min > 0 })
}

// encoded is a body on its way; a nil one is empty.
func encoded(b Body, schema *config.Block) ([]byte, error) {
	if b == nil {
		b = Values(nil)
	}
	return b.Encode(schema)
}

// request is a call of Configure.
func (k *Checker) request(p *process, s manifest.Service, id string, body Body) (*pluginv1.ConfigureRequest, error) {
	v, err := encoded(body, k.block(s))
	if err != nil {
		return nil, fmt.Errorf("the configuration that was given for %s: %w", place(s, id), err)
	}
	return &pluginv1.ConfigureRequest{
		ConfigMsgpack: v, InstanceId: id, Service: wire.Service(s), Selected: k.known.info.GetServices(),
		StateDir: filepath.Join(p.work, "state"), RunDir: filepath.Join(p.work, "run"), BootId: "b",
	}, nil
}

// requests are the calls of Configure that make the plugin work, in their order.
func (k *Checker) requests(p *process) ([]*pluginv1.ConfigureRequest, error) {
	first, err := k.request(p, "", "", k.conf.Plugin)
	if err != nil {
		return nil, err
	}
	out := []*pluginv1.ConfigureRequest{first}
	for _, s := range suites() {
		if s.service == "" || !k.serves(s.service) {
			continue
		}
		for _, i := range k.instances(s.service) {
			r, err := k.request(p, i.Service, i.instance(), i.Config)
			if err != nil {
				return nil, err
			}
			out = append(out, r)
		}
	}
	return out, nil
}

func place(s manifest.Service, id string) string {
	if s == "" {
		return "the plugin"
	}
	return fmt.Sprintf("instance %q %q", s, id)
}

// configure gives a process its configuration. Why says that none was given, and the
// plugin wants one.
func (k *Checker) configure(ctx context.Context, p *process) (why string, err error) {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	rs, err := k.requests(p)
	if err != nil {
		if k.conf.Plugin == nil && len(k.conf.Instances) == 0 {
			return "it needs a configuration, and none was given", nil
		}
		return "", &fault{err.Error(), "correct the configuration that the suite was given"}
	}
	for _, r := range rs {
		_, err := p.base.Configure(ctx, r)
		switch {
		case err == nil:
		case k.conf.Plugin == nil && r.GetInstanceId() == "":
			return fmt.Sprintf("it needs a configuration, and none was given: %s", status.Convert(err).Message()), nil
		default:
			return "", fmt.Errorf("configuring %s: %w", place(wire.FromService(r.GetService()), r.GetInstanceId()), err)
		}
	}
	return "", nil
}

// ready is a process that has its configuration.
func (k *Checker) ready(ctx context.Context, l launch) (*process, error) {
	p, err := k.start(ctx, l)
	if err != nil {
		return nil, err
	}
	if _, err := k.configure(ctx, p); err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

// tell is an error of a call as it travelled.
func tell(err error) string {
	if err == nil {
		return "OK"
	}
	st := status.Convert(err)
	return fmt.Sprintf("%s: %s", st.Code(), st.Message())
}

// typed tells whether an error says what went wrong. UNKNOWN and INTERNAL are of a
// plugin that is broken, UNAVAILABLE of one that is gone.
func typed(err error) bool {
	switch status.Code(err) {
	case codes.OK, codes.Unknown, codes.Internal, codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
		return false
	default:
		return true
	}
}

// failed tells whether a call that a rule only makes for its effects went wrong. What
// teardown has to answer is said by the rules of its service.
func (v verb) failed(err error) bool {
	return err != nil && !(v.teardown && typed(err))
}

func within(ctx context.Context, call func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	return call(ctx)
}

// healthy tells that a process still answers.
func (p *process) healthy(ctx context.Context) error {
	err := within(ctx, func(ctx context.Context) error {
		_, err := p.base.Health(ctx, &pluginv1.HealthRequest{})
		return err
	})
	if err == nil {
		return nil
	}
	if p.ended(time.Second / 10) {
		return broken("the process ended (%s)%s", p.fate, p.said())
	}
	return broken("Health: %s", tell(err))
}

func infoRequest() *pluginv1.InfoRequest {
	return &pluginv1.InfoRequest{CoreVersion: "conformance", CoreServices: wire.Versions(known())}
}

// known are the services that this suite speaks, in its version.
func known() []manifest.Version {
	var out []manifest.Version
	for _, s := range suites() {
		if s.service != "" {
			out = append(out, manifest.Version{Service: s.service, Version: "1.0"})
		}
	}
	return out
}

// verb is a call that may be repeated, interrupted and made by many at once.
type verb struct {
	name     string
	teardown bool // it must succeed whatever came before
	call     func(ctx context.Context, p *process, requestID string) error
}

// works tells that there is a configuration, and that it is accepted.
func (k *Checker) works() bool { return k.known.configure == nil && k.known.unconfigured == "" }

// verbs are all calls that can be made of a plugin with this configuration.
func (k *Checker) verbs() []verb {
	var out []verb
	for _, s := range suites() {
		if s.service == "" || k.works() && k.serves(s.service) {
			out = append(out, s.verbs(k)...)
		}
	}
	return out
}

// call makes the part of a request that names it.
func call(requestID string) *pluginv1.Call {
	return &pluginv1.Call{RequestId: requestID, SandboxId: sandbox, BootId: "b"}
}

// id is a request's, never given before.
func (k *Checker) id() string {
	n := k.nextID.Add(1)
	return fmt.Sprintf("%08x-0000-4000-8000-%012x", n, n)
}
