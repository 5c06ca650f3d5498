package conformance

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/zclconf/go-cty/cty"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/nucleus-runtime/nucleus/sdk/config"
	"github.com/nucleus-runtime/nucleus/sdk/errs"
	"github.com/nucleus-runtime/nucleus/sdk/internal/wire"
	"github.com/nucleus-runtime/nucleus/sdk/manifest"
	pluginv1 "github.com/nucleus-runtime/nucleus/sdk/proto/nucleus/plugin/v1"
)

func accepts(_ context.Context, k *Checker) error {
	if k.known.configure == nil && k.known.unconfigured != "" {
		return skip("%s", k.known.unconfigured)
	}
	return k.known.configure
}

// section is a body that can be configured.
type section struct {
	service manifest.Service
	block   *config.Block
	given   Body
	id      string
}

func (k *Checker) sections() []section {
	out := []section{{block: k.known.schema.Plugin, given: k.conf.Plugin}}
	for _, v := range wire.FromVersions(k.known.info.GetServices()) {
		s := section{service: v.Service, block: k.block(v.Service), id: "wrong"}
		if is := k.instances(v.Service); len(is) > 0 {
			s.given = is[0].Config
		}
		out = append(out, s)
	}
	return out
}

// value is the configuration that was given, or NilVal.
func (s section) value() cty.Value {
	if s.given == nil || s.block == nil {
		return cty.NilVal
	}
	b, err := s.given.Encode(s.block)
	if err != nil {
		return cty.NilVal
	}
	v, err := s.block.Unmarshal(b)
	if err != nil {
		return cty.NilVal
	}
	return v
}

func (s section) request(value []byte) *pluginv1.ConfigureRequest {
	return &pluginv1.ConfigureRequest{ConfigMsgpack: value, InstanceId: s.id, Service: wire.Service(s.service)}
}

func wrongValues(ctx context.Context, k *Checker) error {
	p, err := k.start(ctx, launch{})
	if err != nil {
		return err
	}
	defer p.close()
	if k.works() {
		if _, err := k.configure(ctx, p); err != nil {
			return err
		}
	}
	var bad []error
	tried := 0
	for _, s := range k.sections() {
		for _, b := range breaches(s.block, s.value()) {
			tried++
			value, err := s.block.Marshal(b.value)
			if err != nil {
				return err
			}
			if err := refuses(ctx, p, s, b, value); err != nil {
				bad = append(bad, err)
			}
		}
	}
	if tried == 0 {
		return skip("nothing in its schema can be wrong: no attribute is required or has a constraint")
	}
	return errors.Join(bad...)
}

func refuses(ctx context.Context, p *process, s section, b breach, value []byte) error {
	err := within(ctx, func(ctx context.Context) error {
		_, err := p.base.Configure(ctx, s.request(value))
		return err
	})
	where := fmt.Sprintf("%s, %s: %s", place(s.service, s.id), b.at, b.what)
	if s.service == "" {
		where = fmt.Sprintf("%s: %s", b.at, b.what)
	}
	if status.Code(err) != codes.InvalidArgument {
		return broken("%s, and Configure answers %s", where, tell(err))
	}
	var e *errs.Error
	if !errors.As(wire.Error(err), &e) || len(e.Diagnostics) == 0 {
		return broken("%s, and the error has no ConfigError: %s", where, tell(err))
	}
	var paths []string
	led := false
	for _, d := range e.Diagnostics {
		if len(d.Path) > 0 && !resolves(s.block, d.Path) {
			return broken("%s, and the error's path %s is nowhere in the schema", where, d.Path)
		}
		led = led || leadsTo(d.Path, b.at)
		paths = append(paths, d.Path.String())
	}
	if !led {
		return broken("%s, and the error is about %q: %s", where, strings.Join(paths, ", "), tell(err))
	}
	return nil
}

func garbage(ctx context.Context, k *Checker) error {
	p, err := k.start(ctx, launch{})
	if err != nil {
		return err
	}
	defer p.close()
	for _, s := range k.sections() {
		for what, value := range map[string][]byte{
			"one byte that is none":             {0xc1},
			"a map that is cut off":             {0x8f},
			"a list":                            {0x93, 1, 2, 3},
			"text":                              {0xa3, 'a', 'b', 'c'},
			"a map with an attribute too many":  {0x81, 0xae, 'n', 'o', '_', 's', 'u', 'c', 'h', '_', 't', 'h', 'i', 'n', 'g', '_', 1},
			"a length of four gigabytes":        {0xdf, 0xff, 0xff, 0xff, 0xff},
			"an extension that nobody defined":  {0xc7, 0xff, 0x55},
			"lists in lists, ten thousand deep": []byte(strings.Repeat("\x91", 10000)),
		} {
			err := within(ctx, func(ctx context.Context) error {
				_, err := p.base.Configure(ctx, s.request(value))
				return err
			})
			if status.Code(err) != codes.InvalidArgument {
				return broken("%s for %s: %s%s", what, place(s.service, s.id), tell(err), p.said())
			}
		}
	}
	return p.healthy(ctx)
}

func wantsDeadline(ctx context.Context, k *Checker) error {
	p, err := k.start(ctx, launch{})
	if err != nil {
		return err
	}
	defer p.close()
	if k.works() {
		if _, err := k.configure(ctx, p); err != nil {
			return err
		}
	}
	// A context that is cancelled has no deadline: a plugin that hangs is given up.
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	var bad []error
	calls := append(k.verbs(), verb{"Configure", false, func(ctx context.Context, p *process, _ string) error {
		_, err := p.base.Configure(ctx, &pluginv1.ConfigureRequest{})
		return err
	}})
	for _, s := range calls {
		done := make(chan error, 1)
		p.readers.Go(func() { done <- s.call(ctx, p, k.id()) })
		select {
		case err := <-done:
			if status.Code(err) != codes.InvalidArgument {
				bad = append(bad, broken("%s: %s", s.name, tell(err)))
			}
		case <-time.After(callLimit):
			bad = append(bad, broken("%s: no answer within %s", s.name, callLimit))
		}
	}
	return errors.Join(bad...)
}

func unknownValues(ctx context.Context, k *Checker) error {
	p, err := k.start(ctx, launch{})
	if err != nil {
		return err
	}
	defer p.close()
	const newer = pluginv1.Service(4711)
	more := &pluginv1.InfoRequest{CoreVersion: "99", CoreServices: []*pluginv1.ServiceVersion{{Service: newer, Version: "1.0"}}}
	more.ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 4711, protowire.VarintType), 1))
	err = within(ctx, func(ctx context.Context) error {
		_, err := p.base.Info(ctx, more)
		return err
	})
	if err != nil {
		return broken("Info with a field and a service that it can't know: %s", tell(err))
	}
	err = within(ctx, func(ctx context.Context) error {
		_, err := p.base.Configure(ctx, &pluginv1.ConfigureRequest{InstanceId: "x", Service: newer})
		return err
	})
	if !typed(err) {
		return broken("Configure of an instance of an unknown service: %s%s", tell(err), p.said())
	}
	return p.healthy(ctx)
}

func versionSkew(ctx context.Context, k *Checker) error {
	p, err := k.start(ctx, launch{})
	if err != nil {
		return err
	}
	defer p.close()
	// Info is asked by cores of any version, and is about the plugin alone.
	for _, core := range []*pluginv1.InfoRequest{{}, {CoreVersion: "0.0.1"}, {CoreVersion: "99.0.0", CoreServices: raised(k.known.info, 98, 0)}} {
		if err := within(ctx, func(ctx context.Context) error {
			_, err := p.base.Info(ctx, core)
			return err
		}); err != nil {
			return broken("Info asked by core %q: %s", core.GetCoreVersion(), tell(err))
		}
	}
	// The value is good where one is known: what is wrong is the version.
	value, valueErr := encoded(k.conf.Plugin, k.known.schema.Plugin)
	configure := func(selected []*pluginv1.ServiceVersion) error {
		return within(ctx, func(ctx context.Context) error {
			_, err := p.base.Configure(ctx, &pluginv1.ConfigureRequest{ConfigMsgpack: value, Selected: selected})
			return err
		})
	}
	if err := configure(raised(k.known.info, 1, 0)); status.Code(err) != codes.FailedPrecondition {
		return broken("Configure with the next major version: %s", tell(err))
	}
	if valueErr != nil || !k.works() {
		return nil // whether it is accepted can't be told from whether the value is
	}
	if err := configure(raised(k.known.info, 0, 7)); err != nil {
		return &fault{"Configure with a higher minor version: " + tell(err), "compare the major version only: a minor one only adds"}
	}
	return nil
}

// raised gives the plugin's own services in higher versions.
func raised(in *pluginv1.InfoResponse, major, minor int) []*pluginv1.ServiceVersion {
	var out []*pluginv1.ServiceVersion
	for _, s := range in.GetServices() {
		var a, b int
		_, _ = fmt.Sscanf(s.GetVersion(), "%d.%d", &a, &b) // its form is another rule's business
		out = append(out, &pluginv1.ServiceVersion{Service: s.GetService(), Version: fmt.Sprintf("%d.%d", a+major, b+minor)})
	}
	return out
}
