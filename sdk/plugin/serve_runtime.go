package plugin

import (
	"context"

	"github.com/nucleus-runtime/nucleus/sdk/errs"
	"github.com/nucleus-runtime/nucleus/sdk/internal/wire"
	pluginv1 "github.com/nucleus-runtime/nucleus/sdk/proto/nucleus/plugin/v1"
	"github.com/nucleus-runtime/nucleus/sdk/runtime"
)

type runtimeServer struct {
	pluginv1.UnimplementedRuntimeServer
	runtime runtime.Runtime
}

func (s *runtimeServer) Prepare(ctx context.Context, r *pluginv1.RuntimePrepareRequest) (*pluginv1.RuntimePrepareResponse, error) {
	req := wire.FromRuntimePrepare(r)
	if req.Network == 0 { // an author knows the networks that this SDK knows
		return nil, errs.Preconditionf("the sandbox's network is of kind %d, which this plugin does not know: build it with a newer SDK", r.GetNetwork())
	}
	p, err := s.runtime.Prepare(ctx, req)
	if err != nil {
		return nil, err
	}
	return wire.RuntimePrepared(orZero(p)), nil
}
