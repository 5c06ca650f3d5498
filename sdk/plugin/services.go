package plugin

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	goplugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/nucleus-runtime/nucleus/sdk/config"
	"github.com/nucleus-runtime/nucleus/sdk/errs"
	"github.com/nucleus-runtime/nucleus/sdk/hooks"
	"github.com/nucleus-runtime/nucleus/sdk/internal/wire"
	"github.com/nucleus-runtime/nucleus/sdk/manifest"
	"github.com/nucleus-runtime/nucleus/sdk/plugin/internal/guard"
	pluginv1 "github.com/nucleus-runtime/nucleus/sdk/proto/nucleus/plugin/v1"
	"github.com/nucleus-runtime/nucleus/sdk/secrets"
)

// services registers what a plugin serves.
type services struct {
	goplugin.NetRPCUnsupportedPlugin
	server *server
}

func (s *services) GRPCServer(_ *goplugin.GRPCBroker, g *grpc.Server) error {
	p := &s.server.plugin
	pluginv1.RegisterBaseServer(g, &base{server: s.server})
	if p.Network != nil {
		pluginv1.RegisterNetworkServer(g, newNetworkServer(p.Network, s.server.descriptors))
	}
	if p.Runtime != nil {
		pluginv1.RegisterRuntimeServer(g, &runtimeServer{runtime: p.Runtime})
	}
	if p.Secrets != nil {
		pluginv1.RegisterSecretsServer(g, &secretsServer{provider: p.Secrets, scrub: s.server.scrub})
	}
	if p.Hooks != nil {
		pluginv1.RegisterHooksServer(g, &hooksServer{handler: p.Hooks})
	}
	return nil
}

func (*services) GRPCClient(context.Context, *goplugin.GRPCBroker, *grpc.ClientConn) (any, error) {
	return nil, errors.New("a plugin is no host: use sdk/plugin/client")
}

type base struct {
	pluginv1.UnimplementedBaseServer
	server *server
	mu     sync.Mutex // one Configure at a time: authors need no lock for it
}

func (b *base) Info(context.Context, *pluginv1.InfoRequest) (*pluginv1.InfoResponse, error) {
	return wire.Info(b.server.plugin.info()), nil
}

func (b *base) ConfigSchema(context.Context, *pluginv1.ConfigSchemaRequest) (*pluginv1.ConfigSchemaResponse, error) {
	schema, err := b.server.plugin.schema()
	if err != nil {
		return nil, err
	}
	return wire.Schema(schema)
}

func (b *base) Configure(ctx context.Context, r *pluginv1.ConfigureRequest) (*pluginv1.ConfigureResponse, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.compatible(r.GetSelected()); err != nil {
		return nil, err
	}
	var service manifest.Service
	if r.GetInstanceId() != "" {
		if service = wire.FromService(r.GetService()); service == "" {
			return nil, &errs.Error{Code: errs.Config, Text: fmt.Sprintf("instance %q is of a service that this plugin does not know", r.GetInstanceId())}
		}
	}
	sec := b.server.plugin.section(service)
	if sec == nil {
		if err := nothing(r.GetConfigMsgpack()); err != nil {
			return nil, err
		}
		return &pluginv1.ConfigureResponse{}, nil
	}
	in := config.Instance{
		ID: r.GetInstanceId(), StateDir: r.GetStateDir(), RunDir: r.GetRunDir(),
		CallTimeout: r.GetCallTimeout().AsDuration(), BootID: r.GetBootId(), StateRoot: r.GetStateRoot(),
	}
	err := sec.Configure(ctx, in, r.GetConfigMsgpack())
	warnings, ok := errs.Warnings(err)
	if !ok {
		return nil, err
	}
	return &pluginv1.ConfigureResponse{Diagnostics: wire.Diagnostics(warnings)}, nil
}

// nothing accepts only a configuration with nothing in it.
func nothing(value []byte) error {
	if _, err := (*config.Block)(nil).Unmarshal(value); err != nil {
		return errs.ConfigErrorf(nil, "this plugin takes no configuration here")
	}
	return nil
}

// compatible refuses a core that wants to speak another major version.
func (b *base) compatible(selected []*pluginv1.ServiceVersion) error {
	for _, want := range wire.FromVersions(selected) {
		for _, have := range b.server.plugin.info().Services {
			if have.Service == want.Service && major(have.Version) != major(want.Version) {
				return errs.Preconditionf("the core speaks version %s of %s, and this plugin %s", want.Version, want.Service, have.Version)
			}
		}
	}
	return nil
}

func major(version string) string {
	m, _, _ := strings.Cut(version, ".")
	return m
}

func (b *base) Health(ctx context.Context, _ *pluginv1.HealthRequest) (*pluginv1.HealthResponse, error) {
	if b.server.plugin.Health == nil {
		return wire.Health(manifest.Health{}), nil
	}
	return wire.Health(b.server.plugin.Health(ctx)), nil
}

func (b *base) Shutdown(context.Context, *pluginv1.ShutdownRequest) (*pluginv1.ShutdownResponse, error) {
	b.server.end()
	return &pluginv1.ShutdownResponse{}, nil
}

type secretsServer struct {
	pluginv1.UnimplementedSecretsServer
	provider secrets.Provider
	scrub    *guard.Scrubber
}

func (s *secretsServer) Fetch(ctx context.Context, r *pluginv1.FetchRequest) (*pluginv1.FetchResponse, error) {
	refs := wire.FromRefs(r.GetRefs())
	got, err := s.provider.Fetch(ctx, wire.FromCall(r.GetCall()), refs)
	// Before the error is looked at: it may speak of values that came with it.
	for _, g := range got {
		s.scrub.Add(g.Value)
	}
	if err != nil {
		return nil, err
	}
	if len(got) != len(refs) {
		return nil, fmt.Errorf("%d secrets were asked for, and the provider gave %d", len(refs), len(got))
	}
	out := &pluginv1.FetchResponse{}
	for i, g := range got {
		if g.Name == "" {
			g.Name = refs[i].Name
		}
		if g.Name != refs[i].Name {
			return nil, fmt.Errorf("secret %q was asked for in place %d, and the provider gave %q", refs[i].Name, i, g.Name)
		}
		if g.Absent && !refs[i].Optional {
			return nil, errs.NotFoundf("secret %q does not exist", g.Name)
		}
		out.Secrets = append(out.Secrets, wire.Secret(g))
	}
	return out, nil
}

func (s *secretsServer) Renew(ctx context.Context, r *pluginv1.RenewRequest) (*pluginv1.RenewResponse, error) {
	p, ok := s.provider.(secrets.Renewer)
	if !ok {
		return nil, &errs.Error{Code: errs.Unimplemented, Text: "this provider renews no leases"}
	}
	l, err := p.Renew(ctx, wire.FromCall(r.GetCall()), r.GetLeaseId(), r.GetIncrement().AsDuration())
	if err != nil {
		return nil, err
	}
	return &pluginv1.RenewResponse{LeaseDuration: durationpb.New(l.Duration), Renewable: l.Renewable}, nil
}

func (s *secretsServer) Revoke(ctx context.Context, r *pluginv1.RevokeRequest) (*pluginv1.RevokeResponse, error) {
	p, ok := s.provider.(secrets.Revoker)
	if !ok {
		return nil, &errs.Error{Code: errs.Unimplemented, Text: "this provider revokes no leases"}
	}
	if err := p.Revoke(ctx, wire.FromCall(r.GetCall()), r.GetLeaseId()); err != nil {
		return nil, err
	}
	return &pluginv1.RevokeResponse{}, nil
}

type hooksServer struct {
	pluginv1.UnimplementedHooksServer
	handler hooks.Handler
}

func (h *hooksServer) Describe(ctx context.Context, r *pluginv1.DescribeRequest) (*pluginv1.DescribeResponse, error) {
	s, err := h.handler.Describe(ctx, r.GetInstanceId())
	if err != nil {
		return nil, err
	}
	return &pluginv1.DescribeResponse{Mask: uint64(s.At), Order: s.Order}, nil
}

func (h *hooksServer) OnPhase(ctx context.Context, r *pluginv1.OnPhaseRequest) (*pluginv1.OnPhaseResponse, error) {
	a, err := h.handler.OnPhase(ctx, wire.FromCall(r.GetCall()), wire.FromEvent(r))
	if err != nil {
		return nil, err
	}
	return wire.Answer(a), nil
}
