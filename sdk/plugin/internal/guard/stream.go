package guard

import (
	"context"
	"errors"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/nucleus-runtime/nucleus/sdk/errs"
	pluginv1 "github.com/nucleus-runtime/nucleus/sdk/proto/nucleus/plugin/v1"
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
func (d *Drain) Stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
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
		if info.FullMethod == pluginv1.Runtime_Exec_FullMethodName {
			return status.Error(codes.Canceled, errEnding.Error())
		}
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

// Stream refuses a request_id that has had its effect: what came out of the first
// stream cannot be told again. Those whose first message has no call have no effect.
func (r *Replay) Stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	once := &onceStream{ServerStream: ss, replay: r, method: info.FullMethod}
	err := next(srv, once)
	once.leave(err)
	return err
}

type onceStream struct {
	grpc.ServerStream
	replay *Replay
	method string

	mu    sync.Mutex
	k     key
	entry *entry
}

func (s *onceStream) RecvMsg(m any) error {
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	r, ok := m.(*pluginv1.ExecRequest)
	if !ok || r.GetSetup() == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.entry != nil {
		return &errs.Error{Code: errs.Config, Text: "a stream has one setup"}
	}
	k := key{s.method, r.GetSetup().GetCall().GetRequestId()}
	if k.requestID == "" {
		return &errs.Error{Code: errs.Config, Text: errNoID}
	}
	e, mine := s.replay.enter(k, digest{})
	if !mine {
		return errs.Existsf("request_id %q has been used: what its process wrote cannot be told again", k.requestID)
	}
	s.k, s.entry = k, e
	return nil
}

func (s *onceStream) leave(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.entry != nil {
		s.replay.leave(s.k, s.entry, nil, err, !again(err))
	}
}

// again tells whether the author's code says that nothing has happened yet. That a
// host has gone says nothing.
func again(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable, codes.ResourceExhausted, codes.Aborted:
		return true
	default:
		return false
	}
}
