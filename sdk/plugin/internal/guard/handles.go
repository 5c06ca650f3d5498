package guard

import (
	"context"
	"fmt"
	"slices"

	"google.golang.org/grpc"

	"github.com/nucleus-runtime/nucleus/sdk/errs"
	"github.com/nucleus-runtime/nucleus/sdk/internal/wire"
	pluginv1 "github.com/nucleus-runtime/nucleus/sdk/proto/nucleus/plugin/v1"
)

// Handles keeps handles from an author's code that it would have to guess at, and
// from the core those that it could not give back.
type Handles struct{ known []uint32 }

// NewHandles takes the versions that the plugin understands.
func NewHandles(known []uint32) *Handles { return &Handles{known} }

// Intercept is for calls with one request and one answer.
func (h *Handles) Intercept(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if err := h.came(req); err != nil {
		return nil, err
	}
	resp, err := next(ctx, req)
	if err != nil {
		return nil, err
	}
	return resp, h.goes(resp)
}

// Stream is for the others: each message is looked at.
func (h *Handles) Stream(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	return next(srv, &handleStream{ss, h})
}

type handleStream struct {
	grpc.ServerStream
	h *Handles
}

func (s *handleStream) RecvMsg(m any) error {
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	return s.h.came(m)
}

func (s *handleStream) SendMsg(m any) error {
	if err := s.h.goes(m); err != nil {
		return err
	}
	return s.ServerStream.SendMsg(m)
}

func (h *Handles) came(m any) error {
	return wire.Handles(m, func(in *pluginv1.Handle) error {
		got := wire.FromHandle(in)
		if err := got.Check(); err != nil {
			return &errs.Error{Code: errs.Config, Err: err}
		}
		if !got.IsZero() && !slices.Contains(h.known, got.Version) {
			return errs.Preconditionf("a handle of version %d was made by another version of this plugin, which knows %v", got.Version, h.known)
		}
		return nil
	})
}

func (h *Handles) goes(m any) error {
	return wire.Handles(m, func(in *pluginv1.Handle) error {
		made := wire.FromHandle(in)
		if err := made.Check(); err != nil {
			return fmt.Errorf("the plugin's answer: %w", err)
		}
		if !made.IsZero() && !slices.Contains(h.known, made.Version) {
			return fmt.Errorf("the plugin made a handle of version %d, which is none of its HandleVersions %v", made.Version, h.known)
		}
		return nil
	})
}
