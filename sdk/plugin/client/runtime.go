package client

import (
	"context"

	"github.com/nucleus-runtime/nucleus/sdk/internal/wire"
	pluginv1 "github.com/nucleus-runtime/nucleus/sdk/proto/nucleus/plugin/v1"
	"github.com/nucleus-runtime/nucleus/sdk/runtime"
)

// Runtime gives the plugin's runtime.
func (c *Client) Runtime() runtime.Runtime {
	return &runtimeClient{pluginv1.NewRuntimeClient(c.conn)}
}

type runtimeClient struct{ rpc pluginv1.RuntimeClient }

func (r *runtimeClient) Prepare(ctx context.Context, req *runtime.PrepareRequest) (*runtime.Prepared, error) {
	resp, err := r.rpc.Prepare(ctx, wire.RuntimePrepare(req))
	if err != nil {
		return nil, wire.Error(err)
	}
	return wire.FromRuntimePrepared(resp), nil
}
