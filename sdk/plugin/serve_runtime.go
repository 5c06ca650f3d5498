package plugin

import (
	"context"
	"errors"
	"io"
	"sync"

	"google.golang.org/grpc"

	"github.com/nucleus-runtime/nucleus/sdk/errs"
	"github.com/nucleus-runtime/nucleus/sdk/internal/wire"
	"github.com/nucleus-runtime/nucleus/sdk/plugin/descriptors"
	pluginv1 "github.com/nucleus-runtime/nucleus/sdk/proto/nucleus/plugin/v1"
	"github.com/nucleus-runtime/nucleus/sdk/runtime"
)

type runtimeServer struct {
	pluginv1.UnimplementedRuntimeServer
	runtime     runtime.Runtime
	descriptors *descriptors.Receiver
}

func (s *runtimeServer) Capabilities(ctx context.Context, r *pluginv1.CapabilitiesRequest) (*pluginv1.CapabilitiesResponse, error) {
	c, err := s.runtime.Capabilities(ctx, r.GetInstanceId())
	if err != nil {
		return nil, err
	}
	return wire.Capabilities(c), nil
}

func (s *runtimeServer) Prepare(ctx context.Context, r *pluginv1.RuntimePrepareRequest) (*pluginv1.RuntimePrepareResponse, error) {
	req := wire.FromRuntimePrepare(r)
	files, err := take(ctx, s.descriptors, r.GetCall(), r.GetDescriptors())
	if err != nil {
		return nil, err
	}
	prepared := false // a Prepare that panics has failed, too
	defer func() {
		if !prepared {
			closeAll(files)
		}
	}()
	req.Files = files
	h, err := s.runtime.Prepare(ctx, req)
	if err != nil {
		return nil, err
	}
	prepared = true
	return &pluginv1.RuntimePrepareResponse{Handle: wire.Handle(h)}, nil
}

func (s *runtimeServer) Start(ctx context.Context, r *pluginv1.StartRequest) (*pluginv1.StartResponse, error) {
	got, err := s.runtime.Start(ctx, wire.FromStart(r))
	if err != nil {
		return nil, err
	}
	return wire.Started(got), nil
}

func (s *runtimeServer) Wait(r *pluginv1.WaitRequest, to grpc.ServerStreamingServer[pluginv1.WaitResponse]) error {
	out := &sender[pluginv1.WaitResponse]{send: to.Send}
	defer out.close()
	exit, err := s.runtime.Wait(to.Context(), wire.FromWait(r), func(e runtime.Event) error { return out.put(wire.RuntimeEvent(e)) })
	if err != nil {
		return err
	}
	e := wire.Exit(exit)
	return out.put(&pluginv1.WaitResponse{Kind: pluginv1.WaitResponse_KIND_EXITED, At: e.GetAt(), Exit: e})
}

func (s *runtimeServer) Signal(ctx context.Context, r *pluginv1.SignalRequest) (*pluginv1.SignalResponse, error) {
	if err := s.runtime.Signal(ctx, wire.FromSignal(r)); err != nil {
		return nil, err
	}
	return &pluginv1.SignalResponse{}, nil
}

func (s *runtimeServer) Stats(r *pluginv1.StatsRequest, to grpc.ServerStreamingServer[pluginv1.StatsResponse]) error {
	p, ok := s.runtime.(runtime.Statser)
	if !ok {
		return unimplemented(runtime.FeatureStats)
	}
	out := &sender[pluginv1.StatsResponse]{send: to.Send}
	defer out.close()
	return p.Stats(to.Context(), wire.FromStats(r), func(x runtime.Sample) error { return out.put(wire.Sample(x)) })
}

func (s *runtimeServer) Stop(ctx context.Context, r *pluginv1.StopRequest) (*pluginv1.StopResponse, error) {
	if err := s.runtime.Stop(ctx, wire.FromStop(r)); err != nil {
		return nil, err
	}
	return &pluginv1.StopResponse{}, nil
}

func (s *runtimeServer) Delete(ctx context.Context, r *pluginv1.DeleteRequest) (*pluginv1.DeleteResponse, error) {
	if err := s.runtime.Delete(ctx, wire.FromDelete(r)); err != nil {
		return nil, err
	}
	return &pluginv1.DeleteResponse{}, nil
}

func (s *runtimeServer) Recover(ctx context.Context, r *pluginv1.RecoverRequest) (*pluginv1.RecoverResponse, error) {
	p, ok := s.runtime.(runtime.Recoverer)
	if !ok {
		return nil, unimplemented(runtime.FeatureRecover)
	}
	c, err := p.Recover(ctx, wire.FromRecover(r))
	if err != nil {
		return nil, err
	}
	return wire.Condition(c), nil
}

func (s *runtimeServer) List(ctx context.Context, r *pluginv1.ListRequest) (*pluginv1.ListResponse, error) {
	p, ok := s.runtime.(runtime.Lister)
	if !ok {
		return nil, unimplemented(runtime.FeatureList)
	}
	got, err := p.List(ctx, r.GetInstanceId())
	if err != nil {
		return nil, err
	}
	return wire.Sandboxes(got), nil
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

func (s *runtimeServer) Exec(stream grpc.BidiStreamingServer[pluginv1.ExecRequest, pluginv1.ExecResponse]) error {
	p, ok := s.runtime.(runtime.Execer)
	if !ok {
		return unimplemented(runtime.FeatureExec)
	}
	first, err := stream.Recv()
	switch {
	case errors.Is(err, io.EOF):
		return malformed(errors.New("the stream has no setup"))
	case err != nil:
		return wire.Error(err)
	case first.GetSetup() == nil:
		return malformed(errors.New("the first message of the stream is no setup"))
	}
	out := &sender[pluginv1.ExecResponse]{send: stream.Send}
	defer out.close()
	stdin, feed := io.Pipe()
	defer stdin.Close() // what still comes is for nobody, and must not wait
	resize := make(chan runtime.Size, 1)
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	// It ends with the stream, and so after we return: gRPC ends no Recv before.
	go func() {
		err := receive(stream, feed, resize)
		feed.CloseWithError(err)
		close(resize)
		if err != nil {
			cancel(err)
		}
	}()
	exit, err := p.Exec(ctx, wire.FromExec(first.GetSetup()), runtime.Streams{
		Stdin: stdin,
		Stdout: output{func(b []byte) error {
			return out.put(&pluginv1.ExecResponse{Part: &pluginv1.ExecResponse_Stdout{Stdout: b}})
		}},
		Stderr: output{func(b []byte) error {
			return out.put(&pluginv1.ExecResponse{Part: &pluginv1.ExecResponse_Stderr{Stderr: b}})
		}},
		Resize: resize,
	})
	if err != nil {
		return err
	}
	return out.put(&pluginv1.ExecResponse{Part: &pluginv1.ExecResponse_Exit{Exit: wire.Exit(exit)}})
}

// receive gives what the host sends to the process, until there is nothing more.
func receive(stream grpc.BidiStreamingServer[pluginv1.ExecRequest, pluginv1.ExecResponse], stdin *io.PipeWriter, resize chan runtime.Size) error {
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return wire.Error(err)
		}
		switch part := m.GetPart().(type) {
		case *pluginv1.ExecRequest_Stdin:
			// A process that reads nothing more is no error; what is for it is dropped.
			_, _ = stdin.Write(part.Stdin)
		case *pluginv1.ExecRequest_StdinEnd:
			_ = stdin.Close() // it always succeeds
		case *pluginv1.ExecRequest_Resize:
			// Only the latest counts.
			select {
			case <-resize:
			default:
			}
			resize <- wire.FromSize(part.Resize)
		case *pluginv1.ExecRequest_Setup:
			return &errs.Error{Code: errs.Config, Text: "a stream has one setup"}
		}
	}
}

// maxChunk bounds one message of output.
const maxChunk = 32 << 10

// output is a stream of a process as a writer.
type output struct{ send func([]byte) error }

func (o output) Write(b []byte) (int, error) {
	for sent := 0; sent < len(b); {
		n := min(len(b)-sent, maxChunk)
		if err := o.send(b[sent : sent+n]); err != nil {
			return sent, err
		}
		sent += n
	}
	return len(b), nil
}
