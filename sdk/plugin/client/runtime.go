package client

import (
	"context"
	"errors"
	"io"
	"slices"

	"google.golang.org/grpc"

	"github.com/nucleus-runtime/nucleus/sdk/errs"
	"github.com/nucleus-runtime/nucleus/sdk/internal/wire"
	pluginv1 "github.com/nucleus-runtime/nucleus/sdk/proto/nucleus/plugin/v1"
	"github.com/nucleus-runtime/nucleus/sdk/runtime"
)

// Runtime is a plugin's runtime. What it has not is nil, as in Network.
type Runtime struct {
	runtime.Runtime
	Execer    runtime.Execer
	Statser   runtime.Statser
	Recoverer runtime.Recoverer
	Lister    runtime.Lister
}

// Runtime gives the plugin's runtime, with what the features say. Wait, Exec and
// Stats need no deadline.
func (c *Client) Runtime(features []string) Runtime {
	r := &runtimeClient{c, pluginv1.NewRuntimeClient(c.conn)}
	out := Runtime{Runtime: r}
	if slices.Contains(features, runtime.FeatureExec) {
		out.Execer = r
	}
	if slices.Contains(features, runtime.FeatureStats) {
		out.Statser = r
	}
	if slices.Contains(features, runtime.FeatureRecover) {
		out.Recoverer = r
	}
	if slices.Contains(features, runtime.FeatureList) {
		out.Lister = r
	}
	return out
}

type runtimeClient struct {
	client *Client
	rpc    pluginv1.RuntimeClient
}

func (r *runtimeClient) Capabilities(ctx context.Context, instanceID string) (runtime.Capabilities, error) {
	resp, err := r.rpc.Capabilities(ctx, &pluginv1.CapabilitiesRequest{InstanceId: instanceID})
	if err != nil {
		return runtime.Capabilities{}, wire.Error(err)
	}
	return wire.FromCapabilities(resp), nil
}

func (r *runtimeClient) Prepare(ctx context.Context, req *runtime.PrepareRequest) (runtime.Handle, error) {
	if err := r.client.send(ctx, req.Call, req.Files); err != nil {
		return runtime.Handle{}, err
	}
	resp, err := r.rpc.Prepare(ctx, wire.RuntimePrepare(req))
	if err != nil {
		return runtime.Handle{}, wire.Error(err)
	}
	return wire.FromHandle(resp.GetHandle()), nil
}

func (r *runtimeClient) Start(ctx context.Context, req *runtime.StartRequest) (runtime.Started, error) {
	resp, err := r.rpc.Start(ctx, wire.Start(req))
	if err != nil {
		return runtime.Started{}, wire.Error(err)
	}
	return wire.FromStarted(resp), nil
}

func (r *runtimeClient) Wait(ctx context.Context, req *runtime.WaitRequest, tell func(runtime.Event) error) (runtime.Exit, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the stream
	stream, err := r.rpc.Wait(ctx, wire.Wait(req))
	if err != nil {
		return runtime.Exit{}, wire.Error(err)
	}
	for {
		m, err := stream.Recv()
		if err != nil {
			return runtime.Exit{}, streamError(err)
		}
		switch m.GetKind() {
		case pluginv1.WaitResponse_KIND_EXITED:
			if m.GetExit() == nil {
				return runtime.Exit{}, errNoExit
			}
			return wire.FromExit(m.GetExit()), nil
		case pluginv1.WaitResponse_KIND_STARTED, pluginv1.WaitResponse_KIND_OOM:
			if err := tell(wire.FromRuntimeEvent(m)); err != nil {
				return runtime.Exit{}, err
			}
		}
	}
}

var errNoExit = &errs.Error{Code: errs.Internal, Text: "the plugin ended its answer without telling the exit"}

// streamError is that of a stream that was to end with an exit.
func streamError(err error) error {
	if errors.Is(err, io.EOF) {
		return errNoExit
	}
	return wire.Error(err)
}

func (r *runtimeClient) Signal(ctx context.Context, req *runtime.SignalRequest) error {
	_, err := r.rpc.Signal(ctx, wire.Signal(req))
	return wire.Error(err)
}

func (r *runtimeClient) Stats(ctx context.Context, req *runtime.StatsRequest, give func(runtime.Sample) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the stream
	stream, err := r.rpc.Stats(ctx, wire.Stats(req))
	if err != nil {
		return wire.Error(err)
	}
	return each(stream, func(m *pluginv1.StatsResponse) error { return give(wire.FromSample(m)) })
}

// each is called with all that a stream brings, to its end.
func each[M any](stream grpc.ServerStreamingClient[M], f func(*M) error) error {
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return wire.Error(err)
		}
		if err := f(m); err != nil {
			return err
		}
	}
}

func (r *runtimeClient) Stop(ctx context.Context, req *runtime.StopRequest) error {
	_, err := r.rpc.Stop(ctx, wire.Stop(req))
	return wire.Error(err)
}

func (r *runtimeClient) Delete(ctx context.Context, req *runtime.DeleteRequest) error {
	_, err := r.rpc.Delete(ctx, wire.Delete(req))
	return wire.Error(err)
}

func (r *runtimeClient) Recover(ctx context.Context, req *runtime.RecoverRequest) (runtime.Condition, error) {
	resp, err := r.rpc.Recover(ctx, wire.Recover(req))
	if err != nil {
		return runtime.Condition{}, wire.Error(err)
	}
	return wire.FromCondition(resp), nil
}

func (r *runtimeClient) List(ctx context.Context, instanceID string) ([]runtime.Sandbox, error) {
	resp, err := r.rpc.List(ctx, &pluginv1.ListRequest{InstanceId: instanceID})
	if err != nil {
		return nil, wire.Error(err)
	}
	return wire.FromSandboxes(resp), nil
}
