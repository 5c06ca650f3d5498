package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc"

	"github.com/nucleus-runtime/nucleus/sdk/internal/wire"
	pluginv1 "github.com/nucleus-runtime/nucleus/sdk/proto/nucleus/plugin/v1"
	"github.com/nucleus-runtime/nucleus/sdk/runtime"
)

type execStream = grpc.BidiStreamingClient[pluginv1.ExecRequest, pluginv1.ExecResponse]

// Exec returns when the process has ended. A Read of s.Stdin that is at work then
// cannot be interrupted; what it reads is lost.
func (r *runtimeClient) Exec(ctx context.Context, req *runtime.ExecRequest, s runtime.Streams) (runtime.Exit, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	var resizing sync.WaitGroup
	defer resizing.Wait()
	defer cancel(nil) // ends the stream
	stream, err := r.rpc.Exec(ctx)
	if err != nil {
		return runtime.Exit{}, wire.Error(err)
	}
	in := &input{stream: stream}
	if err := in.put(&pluginv1.ExecRequest{Part: &pluginv1.ExecRequest_Setup{Setup: wire.Exec(req)}}); err != nil && !errors.Is(err, io.EOF) {
		return runtime.Exit{}, wire.Error(err)
	}
	in.open.Store(2)
	go func() {
		defer in.end()
		if err := in.copy(s.Stdin); err != nil {
			cancel(fmt.Errorf("what the process is to read: %w", err))
		}
	}()
	resizing.Go(func() {
		defer in.end()
		in.resize(ctx, s.Resize)
	})
	exit, err := outputs(stream, s)
	if cause := context.Cause(ctx); err != nil && cause != nil && !errors.Is(cause, ctx.Err()) {
		return runtime.Exit{}, cause // why it was cancelled, rather than that
	}
	return exit, err
}

// input is the half that goes to the plugin, from several threads.
type input struct {
	open   atomic.Int32 // of its parts
	mu     sync.Mutex
	stream execStream
}

// end closes it with the last of its parts.
func (i *input) end() {
	if i.open.Add(-1) == 0 {
		i.mu.Lock()
		defer i.mu.Unlock()
		_ = i.stream.CloseSend() // outputs tells what is wrong with the stream
	}
}

// put fails with io.EOF where the stream has ended: outputs tells why.
func (i *input) put(m *pluginv1.ExecRequest) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.stream.Send(m)
}

const maxChunk = 32 << 10

// copy fails only for what is wrong with r.
func (i *input) copy(r io.Reader) error {
	b := make([]byte, maxChunk)
	for r != nil {
		n, err := r.Read(b)
		if n > 0 && i.put(&pluginv1.ExecRequest{Part: &pluginv1.ExecRequest_Stdin{Stdin: b[:n]}}) != nil {
			return nil
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	_ = i.put(&pluginv1.ExecRequest{Part: &pluginv1.ExecRequest_StdinEnd{StdinEnd: &pluginv1.StdinEnd{}}}) // as put says
	return nil
}

func (i *input) resize(ctx context.Context, sizes <-chan runtime.Size) {
	for sizes != nil {
		select {
		case s, ok := <-sizes:
			if !ok || i.put(&pluginv1.ExecRequest{Part: &pluginv1.ExecRequest_Resize{Resize: wire.Size(s)}}) != nil {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// outputs writes what the process writes, until it has ended.
func outputs(stream execStream, s runtime.Streams) (runtime.Exit, error) {
	for {
		m, err := stream.Recv()
		if err != nil {
			return runtime.Exit{}, streamError(err)
		}
		switch part := m.GetPart().(type) {
		case *pluginv1.ExecResponse_Stdout:
			err = write(s.Stdout, part.Stdout)
		case *pluginv1.ExecResponse_Stderr:
			err = write(s.Stderr, part.Stderr)
		case *pluginv1.ExecResponse_Exit:
			return wire.FromExit(part.Exit), nil
		}
		if err != nil {
			return runtime.Exit{}, fmt.Errorf("what the process wrote: %w", err)
		}
	}
}

func write(w io.Writer, b []byte) error {
	if w == nil {
		return nil
	}
	_, err := w.Write(b)
	return err
}
