package client

import (
	"context"
	"errors"
	"io"
	"slices"

	"google.golang.org/grpc"

	"github.com/nucleus-runtime/nucleus/sdk/errs"
	"github.com/nucleus-runtime/nucleus/sdk/internal/wire"
	"github.com/nucleus-runtime/nucleus/sdk/network"
	pluginv1 "github.com/nucleus-runtime/nucleus/sdk/proto/nucleus/plugin/v1"
)

// Network is a plugin's network backend. What it has not is nil: to put optional
// methods into the type, as Secrets does for two, would take a type for each set.
type Network struct {
	network.Network
	Preparer  network.Preparer
	Checker   network.Checker
	Collector network.Collector
	Watcher   network.Watcher
}

// Network gives the plugin's backend, with what the features say.
func (c *Client) Network(features []string) Network {
	n := &networkClient{c, pluginv1.NewNetworkClient(c.conn)}
	out := Network{Network: n}
	if slices.Contains(features, network.FeaturePrepare) {
		out.Preparer = n
	}
	if slices.Contains(features, network.FeatureStatus) {
		out.Checker = n
	}
	if slices.Contains(features, network.FeatureGC) {
		out.Collector = n
	}
	if slices.Contains(features, network.FeatureWatch) {
		out.Watcher = n
	}
	return out
}

type networkClient struct {
	client *Client
	rpc    pluginv1.NetworkClient
}

func (n *networkClient) Prepare(ctx context.Context, r *network.PrepareRequest) (*network.PrepareResponse, error) {
	resp, err := n.rpc.Prepare(ctx, wire.NetworkPrepare(r))
	if err != nil {
		return nil, wire.Error(err)
	}
	return sound(wire.FromNetworkPrepared(resp))
}

func (n *networkClient) Attach(ctx context.Context, r *network.AttachRequest) (*network.AttachResponse, error) {
	if err := n.client.send(ctx, r.Call, r.Files); err != nil {
		return nil, err
	}
	resp, err := n.rpc.Attach(ctx, wire.Attach(r))
	if err != nil {
		return nil, wire.Error(err)
	}
	return sound(wire.FromAttached(resp))
}

func (n *networkClient) Detach(ctx context.Context, r *network.DetachRequest) ([]string, error) {
	resp, err := n.rpc.Detach(ctx, wire.Detach(r))
	if err != nil {
		return nil, wire.Error(err)
	}
	return resp.GetRemoved(), nil
}

func (n *networkClient) Status(ctx context.Context, r *network.StatusRequest) (*network.Status, error) {
	resp, err := n.rpc.Status(ctx, wire.NetworkStatus(r))
	if err != nil {
		return nil, wire.Error(err)
	}
	return wire.FromNetworkState(resp), nil
}

// Watch gives nil at the end of the plugin's answer, and an error at that of ctx.
func (n *networkClient) Watch(ctx context.Context, r *network.WatchRequest, tell func(network.Denial) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the stream
	stream, err := n.rpc.Watch(ctx, wire.NetworkWatch(r))
	if err != nil {
		return wire.Error(err)
	}
	return each(stream, func(m *pluginv1.NetworkWatchResponse) error {
		d, err := wire.FromNetworkDenial(m)
		if err != nil {
			return err
		}
		return tell(d)
	})
}

func (n *networkClient) GC(ctx context.Context, r *network.GCRequest) (*network.GCResponse, error) {
	resp, err := n.rpc.GC(ctx, wire.GC(r))
	if err != nil {
		return nil, wire.Error(err)
	}
	return wire.FromCollected(resp), nil
}

// sound is an answer, unless there is nonsense in it.
func sound[T any](answer *T, err error) (*T, error) {
	if err != nil {
		return nil, &errs.Error{Code: errs.Internal, Text: "the plugin's answer: " + err.Error()}
	}
	return answer, nil
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
