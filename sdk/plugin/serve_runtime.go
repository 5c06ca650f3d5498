package plugin

import (
	"context"

	"github.com/nucleus-runtime/nucleus/sdk/internal/wire"
	pluginv1 "github.com/nucleus-runtime/nucleus/sdk/proto/nucleus/plugin/v1"
	"github.com/nucleus-runtime/nucleus/sdk/runtime"
)

type runtimeServer struct {
	pluginv1.UnimplementedRuntimeServer
	runtime runtime.Runtime
}

func (s *runtimeServer) Prepare(ctx context.Context, r *pluginv1.RuntimePrepareRequest) (*pluginv1.RuntimePrepareResponse, error) {
	p, err := s.runtime.Prepare(ctx, wire.FromRuntimePrepare(r))
	if err != nil {
		return nil, err
	}
	return wire.RuntimePrepared(orZero(p)), nil
}
