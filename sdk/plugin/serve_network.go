package plugin

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/nucleus-runtime/nucleus/sdk/errs"
	"github.com/nucleus-runtime/nucleus/sdk/internal/wire"
	"github.com/nucleus-runtime/nucleus/sdk/network"
	"github.com/nucleus-runtime/nucleus/sdk/plugin/descriptors"
	pluginv1 "github.com/nucleus-runtime/nucleus/sdk/proto/nucleus/plugin/v1"
)

type networkServer struct {
	pluginv1.UnimplementedNetworkServer
	network     network.Network
	descriptors *descriptors.Receiver
	// gc is for GC alone: what is made beside it would seem to be nobody's.
	gc gate
	// sandbox is for those that change one: a host that did not wait for the end of
	// Attach calls Detach, and what Attach makes after that would stay for ever.
	sandbox turns
}

func newNetworkServer(n network.Network, d *descriptors.Receiver) *networkServer {
	return &networkServer{network: n, descriptors: d}
}

// enter is called before a sandbox is changed.
func (s *networkServer) enter(ctx context.Context, c *pluginv1.Call) (leave func(), err error) {
	// In this order: one who waits for a sandbox's turn is in nobody's way.
	done, err := s.sandbox.enter(ctx, c.GetSandboxId()+"\x00"+c.GetInstanceId())
	if err != nil {
		return nil, err
	}
	out, err := s.gc.enter(ctx, false)
	if err != nil {
		done()
		return nil, err
	}
	return func() { out(); done() }, nil
}

func (s *networkServer) Prepare(ctx context.Context, r *pluginv1.NetworkPrepareRequest) (*pluginv1.NetworkPrepareResponse, error) {
	p, ok := s.network.(network.Preparer)
	if !ok {
		return nil, unimplemented(network.FeaturePrepare)
	}
	req, err := wire.FromNetworkPrepare(r)
	if err != nil {
		return nil, malformed(err)
	}
	leave, err := s.enter(ctx, r.GetCall())
	if err != nil {
		return nil, err
	}
	defer leave()
	resp, err := p.Prepare(ctx, req)
	if err != nil {
		return nil, err
	}
	return wire.NetworkPrepared(orZero(resp)), nil
}

func (s *networkServer) Attach(ctx context.Context, r *pluginv1.AttachRequest) (_ *pluginv1.AttachResponse, err error) {
	req, err := wire.FromAttach(r)
	if err != nil {
		return nil, malformed(err)
	}
	leave, err := s.enter(ctx, r.GetCall())
	if err != nil {
		return nil, err
	}
	defer leave()
	files, err := take(ctx, s.descriptors, r.GetCall(), r.GetDescriptors())
	if err != nil {
		return nil, err
	}
	attached := false // an Attach that panics has failed, too
	defer func() {
		if !attached {
			closeAll(files)
		}
	}()
	req.Files = files
	resp, err := s.network.Attach(ctx, req)
	if err != nil {
		return nil, err
	}
	attached = true
	return wire.Attached(orZero(resp)), nil
}

func (s *networkServer) Detach(ctx context.Context, r *pluginv1.DetachRequest) (*pluginv1.DetachResponse, error) {
	leave, err := s.enter(ctx, r.GetCall())
	if err != nil {
		return nil, err
	}
	defer leave()
	removed, err := s.network.Detach(ctx, wire.FromDetach(r))
	if err != nil {
		return nil, err
	}
	return wire.Detached(removed), nil
}

func (s *networkServer) Status(ctx context.Context, r *pluginv1.NetworkStatusRequest) (*pluginv1.NetworkStatusResponse, error) {
	p, ok := s.network.(network.Checker)
	if !ok {
		return nil, unimplemented(network.FeatureStatus)
	}
	st, err := p.Status(ctx, wire.FromNetworkStatus(r))
	if err != nil {
		return nil, err
	}
	return wire.NetworkState(orZero(st)), nil
}

func (s *networkServer) Watch(r *pluginv1.NetworkWatchRequest, to grpc.ServerStreamingServer[pluginv1.NetworkWatchResponse]) error {
	w, ok := s.network.(network.Watcher)
	if !ok {
		return unimplemented(network.FeatureWatch)
	}
	out := &sender[pluginv1.NetworkWatchResponse]{send: to.Send}
	defer out.close()
	return w.Watch(to.Context(), wire.FromNetworkWatch(r), func(d network.Denial) error { return out.put(wire.NetworkDenial(d)) })
}

func (s *networkServer) GC(ctx context.Context, r *pluginv1.GCRequest) (*pluginv1.GCResponse, error) {
	p, ok := s.network.(network.Collector)
	if !ok {
		return nil, unimplemented(network.FeatureGC)
	}
	leave, err := s.gc.enter(ctx, true)
	if err != nil {
		return nil, err
	}
	defer leave()
	got, err := p.GC(ctx, wire.FromGC(r))
	if err != nil {
		return nil, err
	}
	return wire.Collected(orZero(got)), nil
}

// sender lets several threads of an author's send, and none after the handler has
// returned, which gRPC does not allow.
type sender[M any] struct {
	send func(*M) error
	mu   sync.Mutex
	over bool
}

func (s *sender[M]) put(m *M) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return io.ErrClosedPipe
	}
	return s.send(m)
}

func (s *sender[M]) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
}

func unimplemented(feature string) error {
	return &errs.Error{Code: errs.Unimplemented, Text: "this plugin has not the feature " + feature}
}

func malformed(err error) error { return &errs.Error{Code: errs.Config, Err: err} }

// orZero spares an author an empty answer.
func orZero[T any](v *T) *T {
	if v == nil {
		return new(T)
	}
	return v
}

// takeFor is time for the thread that reads the side channel: what comes with a
// request is sent before it.
const takeFor = 2 * time.Second

// take gets the descriptors that come with a request.
func take(ctx context.Context, r *descriptors.Receiver, c *pluginv1.Call, names []string) ([]*os.File, error) {
	switch {
	case len(names) == 0:
		return nil, nil
	case r == nil:
		return nil, errs.Preconditionf("the request comes with %d descriptors, and the host has started this plugin without a side channel for them", len(names))
	}
	ctx, cancel := context.WithTimeoutCause(ctx, takeFor, fmt.Errorf("they have not within %s", takeFor))
	defer cancel()
	files, err := r.Take(ctx, c.GetRequestId(), names)
	if err != nil {
		return nil, errs.Preconditionf("%w", err)
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
