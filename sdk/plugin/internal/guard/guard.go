// Package guard stands between the wire and an author's code: it refuses calls
// that break the contract, and keeps from the wire what must not get there.
package guard

import (
	"context"
	"fmt"
	"runtime/debug"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/nucleus-runtime/nucleus/sdk/errs"
	"github.com/nucleus-runtime/nucleus/sdk/internal/wire"
	pluginv1 "github.com/nucleus-runtime/nucleus/sdk/proto/nucleus/plugin/v1"
)

// ours tells calls of the contract from those that go-plugin adds, which have no
// deadline and no author's code behind them.
func ours(method string) bool { return strings.HasPrefix(method, "/nucleus.plugin.") }

// maxStack of a panic's: the first frames are the ones that matter, and a status
// travels in a header.
const maxStack = 4096

// Only is an interceptor for the contract's calls.
func Only(i grpc.UnaryServerInterceptor) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		if !ours(info.FullMethod) {
			return next(ctx, req)
		}
		return i(ctx, req, info, next)
	}
}

// Deadline refuses a call that could take for ever.
func Deadline(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if _, ok := ctx.Deadline(); !ok {
		return nil, status.Errorf(codes.InvalidArgument, "%s: each call needs a deadline, and this one has none", info.FullMethod)
	}
	return next(ctx, req)
}

// gone is the answer where what is to be removed is not there: that is success.
var gone = map[string]func() any{
	pluginv1.Secrets_Revoke_FullMethodName: func() any { return &pluginv1.RevokeResponse{} },
	pluginv1.Network_Detach_FullMethodName: func() any { return &pluginv1.DetachResponse{} },
}

// Teardown makes removing what is not there succeed.
func Teardown(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	resp, err := next(ctx, req)
	if empty, ok := gone[info.FullMethod]; ok && status.Code(err) == codes.NotFound {
		return empty(), nil
	}
	return resp, err
}

// Errors makes statuses of an author's errors and panics, without secrets. Domain
// is the plugin's name.
func Errors(domain string, s *Scrubber) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		var resp any
		err := recovered(info.FullMethod, func() (err error) {
			resp, err = next(ctx, req)
			return err
		})
		if err != nil {
			return nil, clean(domain, s, err)
		}
		return resp, nil
	}
}

// clean makes a status of every error: an author's may wrap one of another server.
func clean(domain string, s *Scrubber, err error) error {
	if err == nil {
		return nil
	}
	return wire.Status(s.Error(err), domain).Err()
}

func recovered(method string, f func() error) (err error) {
	defer func() {
		p := recover()
		if p == nil {
			return
		}
		stack := debug.Stack()
		err = &errs.Error{
			Code: errs.Internal, Text: fmt.Sprintf("the plugin panicked in %s: %v", method, p),
			Panic: &errs.Panic{Message: fmt.Sprint(p), Stack: string(stack[:min(len(stack), maxStack)])},
		}
	}()
	return f()
}

// Drain counts calls, so that a plugin ends when the last one has its answer.
type Drain struct {
	mu      sync.Mutex
	active  int
	over    bool
	idle    chan struct{}
	closing context.Context // ends with Close
	close   context.CancelFunc
}

// NewDrain makes one for which no call is at work.
func NewDrain() *Drain {
	d := &Drain{idle: make(chan struct{})}
	d.closing, d.close = context.WithCancel(context.Background())
	return d
}

// Intercept refuses calls that come after Close.
func (d *Drain) Intercept(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if !d.enter() {
		return nil, status.Error(codes.Unavailable, errEnding.Error())
	}
	defer d.leave()
	return next(ctx, req)
}

func (d *Drain) enter() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.over {
		return false
	}
	d.active++
	return true
}

func (d *Drain) leave() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.active--; d.over && d.active == 0 {
		close(d.idle)
	}
}

// Close takes no more calls. The channel is closed when the last is done.
func (d *Drain) Close() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.over {
		d.over = true
		d.close()
		if d.active == 0 {
			close(d.idle)
		}
	}
	return d.idle
}
