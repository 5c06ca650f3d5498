package guard

import (
	"context"
	"errors"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Streams last as long as what they tell of, so there is no Deadline for them. They
// end with their connection, and with the plugin.

// OnlyStream is an interceptor for the contract's streams.
func OnlyStream(i grpc.StreamServerInterceptor) grpc.StreamServerInterceptor {
	return func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
		if !ours(info.FullMethod) {
			return next(srv, ss)
		}
		return i(srv, ss, info, next)
	}
}

// withContext is a stream with another context.
type withContext struct {
	grpc.ServerStream
	ctx context.Context
}

func (s *withContext) Context() context.Context { return s.ctx }

var errEnding = errors.New("the plugin is ending")

// Stream counts a stream as a call, and ends it at Close: it would not end by itself.
func (d *Drain) Stream(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	if !d.enter() {
		return status.Error(codes.Unavailable, errEnding.Error())
	}
	defer d.leave()
	ctx, cancel := context.WithCancelCause(ss.Context())
	defer cancel(nil)
	stop := context.AfterFunc(d.closing, func() { cancel(errEnding) })
	defer stop()
	err := next(srv, &withContext{ss, ctx})
	if err != nil && ss.Context().Err() == nil && errors.Is(context.Cause(ctx), errEnding) {
		// Another process of the plugin can go on with what had no effect.
		return status.Error(codes.Unavailable, errEnding.Error())
	}
	return err
}

// ErrorsStream is Errors for streams.
func ErrorsStream(domain string, s *Scrubber) grpc.StreamServerInterceptor {
	return func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
		return clean(domain, s, recovered(info.FullMethod, func() error { return next(srv, ss) }))
	}
}
