package client

import (
	"context"
	"fmt"

	"google.golang.org/grpc"

	"github.com/nucleus-runtime/nucleus/sdk/errs"
	"github.com/nucleus-runtime/nucleus/sdk/internal/wire"
	pluginv1 "github.com/nucleus-runtime/nucleus/sdk/proto/nucleus/plugin/v1"
)

// checked is a connection over which no handle goes, and none comes, that is beyond
// its bounds: the plugin is another party, and the core writes handles to its journal.
type checked struct{ grpc.ClientConnInterface }

func (c checked) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	if err := goes(args); err != nil {
		return err
	}
	if err := c.ClientConnInterface.Invoke(ctx, method, args, reply, opts...); err != nil {
		return err
	}
	return came(reply)
}

func (c checked) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	s, err := c.ClientConnInterface.NewStream(ctx, desc, method, opts...)
	if err != nil {
		return nil, err
	}
	return checkedStream{s}, nil
}

type checkedStream struct{ grpc.ClientStream }

func (s checkedStream) SendMsg(m any) error {
	if err := goes(m); err != nil {
		return err
	}
	return s.ClientStream.SendMsg(m)
}

func (s checkedStream) RecvMsg(m any) error {
	if err := s.ClientStream.RecvMsg(m); err != nil {
		return err
	}
	return came(m)
}

func goes(m any) error {
	return wire.Handles(m, func(h *pluginv1.Handle) error {
		if err := wire.FromHandle(h).Check(); err != nil {
			return &errs.Error{Code: errs.Config, Err: err}
		}
		return nil
	})
}

func came(m any) error {
	return wire.Handles(m, func(h *pluginv1.Handle) error {
		if err := wire.FromHandle(h).Check(); err != nil {
			return &errs.Error{Code: errs.Internal, Err: fmt.Errorf("the plugin's answer: %w", err)}
		}
		return nil
	})
}
