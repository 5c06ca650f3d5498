// Package client is a host's half of the wire: it turns a connection into the
// interfaces that the plugin's author has implemented, and errors back into
// sdk/errs. No type of gRPC leaves it.
package client

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	goplugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/nucleus-runtime/nucleus/sdk/config"
	"github.com/nucleus-runtime/nucleus/sdk/contract"
	"github.com/nucleus-runtime/nucleus/sdk/errs"
	"github.com/nucleus-runtime/nucleus/sdk/hooks"
	"github.com/nucleus-runtime/nucleus/sdk/internal/wire"
	"github.com/nucleus-runtime/nucleus/sdk/manifest"
	"github.com/nucleus-runtime/nucleus/sdk/plugin/descriptors"
	"github.com/nucleus-runtime/nucleus/sdk/plugin/handshake"
	pluginv1 "github.com/nucleus-runtime/nucleus/sdk/proto/nucleus/plugin/v1"
	"github.com/nucleus-runtime/nucleus/sdk/secrets"
)

// Client calls one plugin process. Each call needs a context with a deadline, and
// fails with an *errs.Error.
type Client struct {
	conn        grpc.ClientConnInterface
	base        pluginv1.BaseClient
	descriptors *descriptors.Sender // nil for none
}

// New makes a Client of a connection.
func New(conn grpc.ClientConnInterface) *Client {
	c := checked{conn}
	return &Client{conn: c, base: pluginv1.NewBaseClient(c)}
}

// WithDescriptors is a Client of the same plugin that sends the Files of requests
// over a side channel, whose other end the plugin's process has inherited.
func (c *Client) WithDescriptors(s *descriptors.Sender) *Client {
	with := *c
	with.descriptors = s
	return &with
}

// send sends the files of a request, before the request.
func (c *Client) send(ctx context.Context, call contract.Call, files []*os.File) error {
	switch {
	case len(files) == 0:
		return nil
	case c.descriptors == nil:
		return errs.Preconditionf("the plugin was started without a side channel for descriptors")
	}
	if err := c.descriptors.Send(ctx, call.RequestID, files); err != nil {
		if errors.Is(err, descriptors.ErrClosed) {
			return &errs.Error{Code: errs.Unavailable, Err: err}
		}
		return errs.Of(err)
	}
	return nil
}

// PluginSet is for go-plugin's client, which then dispenses a *Client under
// handshake.PluginName.
func PluginSet() goplugin.PluginSet {
	return goplugin.PluginSet{handshake.PluginName: dispenser{}}
}

type dispenser struct {
	goplugin.NetRPCUnsupportedPlugin
}

func (dispenser) GRPCServer(*goplugin.GRPCBroker, *grpc.Server) error {
	return fmt.Errorf("a host serves nothing: plugins use sdk/plugin")
}

func (dispenser) GRPCClient(_ context.Context, _ *goplugin.GRPCBroker, conn *grpc.ClientConn) (any, error) {
	return New(conn), nil
}

// FromStatus is an error as a plugin has made it, of a status: for hosts with calls
// of their own.
func FromStatus(st *status.Status) error { return wire.FromStatus(st) }

// Info asks a plugin what it is. Core is the host's version and what it can use.
func (c *Client) Info(ctx context.Context, coreVersion string, core []manifest.Version) (manifest.Info, error) {
	r, err := c.base.Info(ctx, &pluginv1.InfoRequest{CoreVersion: coreVersion, CoreServices: wire.Versions(core)})
	if err != nil {
		return manifest.Info{}, wire.Error(err)
	}
	return wire.FromInfo(r), nil
}

// ConfigSchema asks what can be configured.
func (c *Client) ConfigSchema(ctx context.Context) (config.Schema, error) {
	r, err := c.base.ConfigSchema(ctx, &pluginv1.ConfigSchemaRequest{})
	if err != nil {
		return config.Schema{}, wire.Error(err)
	}
	return wire.FromSchema(r)
}

// Configuration is what Configure takes to a plugin.
type Configuration struct {
	Instance config.Instance
	Service  manifest.Service   // of the instance; "" for the plugin itself
	Value    []byte             // by (*config.Block).Marshal; nil for none
	Selected []manifest.Version // that the host will use
}

// Configure configures the plugin, or one instance. The diagnostics are warnings;
// those of an error are in it.
func (c *Client) Configure(ctx context.Context, cfg Configuration) ([]errs.Diagnostic, error) {
	r := &pluginv1.ConfigureRequest{
		ConfigMsgpack: cfg.Value, InstanceId: cfg.Instance.ID, Service: wire.Service(cfg.Service), StateDir: cfg.Instance.StateDir,
		RunDir: cfg.Instance.RunDir, BootId: cfg.Instance.BootID, StateRoot: cfg.Instance.StateRoot, Selected: wire.Versions(cfg.Selected),
	}
	if cfg.Instance.CallTimeout > 0 {
		r.CallTimeout = durationpb.New(cfg.Instance.CallTimeout)
	}
	resp, err := c.base.Configure(ctx, r)
	if err != nil {
		return nil, wire.Error(err)
	}
	return wire.FromDiagnostics(resp.GetDiagnostics()), nil
}

// Health asks how the plugin fares.
func (c *Client) Health(ctx context.Context) (manifest.Health, error) {
	r, err := c.base.Health(ctx, &pluginv1.HealthRequest{})
	if err != nil {
		return manifest.Health{}, wire.Error(err)
	}
	return wire.FromHealth(r), nil
}

// Shutdown asks the plugin to end. It finishes the calls that are at work.
func (c *Client) Shutdown(ctx context.Context) error {
	_, err := c.base.Shutdown(ctx, &pluginv1.ShutdownRequest{})
	return wire.Error(err)
}

// Secrets gives the plugin's provider. It is a Renewer and a Revoker if, and only
// if, the features say so.
func (c *Client) Secrets(features []string) secrets.Provider {
	p := &provider{pluginv1.NewSecretsClient(c.conn)}
	renew := slices.Contains(features, secrets.FeatureRenew)
	revoke := slices.Contains(features, secrets.FeatureRevoke)
	switch {
	case renew && revoke:
		return struct {
			*provider
			renewer
			revoker
		}{p, renewer{p}, revoker{p}}
	case renew:
		return struct {
			*provider
			renewer
		}{p, renewer{p}}
	case revoke:
		return struct {
			*provider
			revoker
		}{p, revoker{p}}
	default:
		return p
	}
}

type provider struct{ rpc pluginv1.SecretsClient }

func (p *provider) Fetch(ctx context.Context, call secrets.Call, refs []secrets.Ref) ([]secrets.Secret, error) {
	r, err := p.rpc.Fetch(ctx, &pluginv1.FetchRequest{Call: wire.Call(call), Refs: wire.Refs(refs)})
	if err != nil {
		return nil, wire.Error(err)
	}
	// The plugin is another party: what it answers is checked here, too.
	if len(r.GetSecrets()) != len(refs) {
		return nil, &errs.Error{Code: errs.Internal, Text: fmt.Sprintf("%d secrets were asked for, and the plugin gave %d", len(refs), len(r.GetSecrets()))}
	}
	out := make([]secrets.Secret, 0, len(refs))
	for i, s := range r.GetSecrets() {
		got := wire.FromSecret(s)
		if got.Name != refs[i].Name || got.Absent && !refs[i].Optional {
			return nil, &errs.Error{Code: errs.Internal, Text: fmt.Sprintf("the plugin's answer for secret %q is not for it", refs[i].Name)}
		}
		out = append(out, got)
	}
	return out, nil
}

type renewer struct{ p *provider }

func (r renewer) Renew(ctx context.Context, call secrets.Call, leaseID string, increment time.Duration) (secrets.Lease, error) {
	resp, err := r.p.rpc.Renew(ctx, &pluginv1.RenewRequest{Call: wire.Call(call), LeaseId: leaseID, Increment: durationpb.New(increment)})
	if err != nil {
		return secrets.Lease{}, wire.Error(err)
	}
	return secrets.Lease{ID: leaseID, Duration: resp.GetLeaseDuration().AsDuration(), Renewable: resp.GetRenewable()}, nil
}

type revoker struct{ p *provider }

func (r revoker) Revoke(ctx context.Context, call secrets.Call, leaseID string) error {
	_, err := r.p.rpc.Revoke(ctx, &pluginv1.RevokeRequest{Call: wire.Call(call), LeaseId: leaseID})
	return wire.Error(err)
}

// Hooks gives the plugin's handler.
func (c *Client) Hooks() hooks.Handler { return &handler{pluginv1.NewHooksClient(c.conn)} }

type handler struct{ rpc pluginv1.HooksClient }

func (h *handler) Describe(ctx context.Context, instanceID string) (hooks.Subscription, error) {
	r, err := h.rpc.Describe(ctx, &pluginv1.DescribeRequest{InstanceId: instanceID})
	if err != nil {
		return hooks.Subscription{}, wire.Error(err)
	}
	return hooks.Subscription{At: hooks.Mask(r.GetMask()), Order: r.GetOrder()}, nil
}

func (h *handler) OnPhase(ctx context.Context, call hooks.Call, e hooks.Event) (hooks.Answer, error) {
	r, err := h.rpc.OnPhase(ctx, wire.Event(call, e))
	if err != nil {
		return hooks.Answer{}, wire.Error(err)
	}
	return wire.FromAnswer(r), nil
}
