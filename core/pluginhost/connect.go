package pluginhost

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"github.com/hashicorp/go-plugin/runner"
	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"

	"github.com/nucleus-runtime/nucleus/sdk/manifest"
	"github.com/nucleus-runtime/nucleus/sdk/plugin/client"
	"github.com/nucleus-runtime/nucleus/sdk/plugin/handshake"
	pluginv1 "github.com/nucleus-runtime/nucleus/sdk/proto/nucleus/plugin/v1"
)

const (
	// maxMessage bounds what one answer can make this process hold: go-plugin would
	// take two gigabytes. It is room for some sixty of the largest secrets.
	maxMessage = 64 << 20
	// maxHeaders bounds an error, which travels in headers.
	maxHeaders = 1 << 20
)

// connect starts the process, shakes hands, and connects. It gives up with the
// context, which go-plugin knows nothing of: what it waits for ends with the process.
func (p *Plugin) connect(ctx context.Context, limit time.Duration) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("it was not ready within %s", limit))
	defer cancel()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	stop := context.AfterFunc(ctx, func() { _ = p.proc.Kill(context.Background()) })
	defer stop()
	addr, err := p.client.Start()
	if err == nil {
		p.socket = addr.String()
		if err = p.dial(ctx, p.Service == manifest.Secrets); err != nil {
			p.ending(ctx)
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil && p.proc.stdout != nil {
		if why := p.proc.stdout.why.get(); why != nil {
			return why
		}
	}
	return err
}

// handshake is go-plugin's part: how to start it, and where it listens. The
// connection is made here, since go-plugin's own has services that nobody uses, no
// limits, and threads that outlive a plugin that ends at the wrong moment.
func (p *Plugin) handshake() *goplugin.Client {
	return goplugin.NewClient(&goplugin.ClientConfig{
		HandshakeConfig: handshake.Config(), Plugins: client.PluginSet(),
		AllowedProtocols: []goplugin.Protocol{goplugin.ProtocolGRPC}, SkipHostEnv: true,
		// connect has a limit of its own, which says what it was.
		StartTimeout:     24 * time.Hour,
		UnixSocketConfig: &goplugin.UnixSocketConfig{TempDir: p.dir.Path}, Logger: hclog.NewNullLogger(), Stderr: p.said,
		RunnerFunc: func(_ hclog.Logger, cmd *exec.Cmd, dir string) (runner.Runner, error) {
			p.proc.launch.socketDir = dir
			env := append(cmd.Env, fmt.Sprintf("%s=%d", handshake.EnvPeerUID, os.Geteuid()))
			if p.sender != nil {
				env = append(env, fmt.Sprintf("%s=%d", handshake.EnvDescriptorsFD, sideFD))
			}
			p.proc.launch.env = environment(env, dir, p.Program.Host.Env)
			return p.proc, nil
		},
	})
}

// dial connects, and returns when the two have greeted each other. With wipe nothing
// of what the plugin answers outlasts the connection.
func (p *Plugin) dial(ctx context.Context, wipe bool) (err error) {
	var refused firstError
	want := handshake.Only(func() (int, uint32) { return p.proc.pid(), p.proc.launch.uid })
	peers := handshake.Credentials(func(peer handshake.Peer) error { return refused.note(want(peer)) })
	options := []grpc.DialOption{
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			conn, err := (&net.Dialer{}).DialContext(ctx, "unix", p.socket)
			return conn, refused.note(err)
		}),
		grpc.WithTransportCredentials(peers),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)), grpc.WithMaxHeaderListSize(maxHeaders),
		grpc.WithDisableServiceConfig(), grpc.WithDisableRetry(),
		grpc.WithUnaryInterceptor(checkAnswer),
	}
	if p.wiper = nil; wipe {
		p.wiper = &wiper{}
		options = append(options, p.wiper.options(peers)...)
	}
	p.conn, err = grpc.NewClient("passthrough:///plugin", options...)
	if err != nil {
		return err
	}
	p.conn.Connect()
	for {
		switch state := p.conn.GetState(); state {
		case connectivity.Ready:
			p.threads.Go(p.discard)
			return nil
		case connectivity.TransientFailure, connectivity.Shutdown:
			if err := refused.get(); err != nil {
				return fmt.Errorf("connecting: %w", err)
			}
			return errors.New("connecting: what answers at its socket speaks no HTTP/2")
		default:
			if !p.conn.WaitForStateChange(ctx, state) {
				return ctx.Err()
			}
		}
	}
}

// hangUp closes the connection, and overwrites what came through it.
func (p *Plugin) hangUp() {
	if p.conn == nil {
		return
	}
	_ = p.conn.Close()
	p.threads.Wait()
	if p.wiper != nil {
		p.wiper.wipe()
	}
}

// forget is for a plugin that stays after it has given what this process must not
// keep: it is called by another connection from now on.
func (p *Plugin) forget(ctx context.Context) error {
	p.hangUp()
	if err := p.dial(ctx, false); err != nil {
		return p.failed("connecting once more", err)
	}
	return nil
}

// discard takes what go-plugin's server makes of a plugin's standard output: one
// that was not made with the SDK would block if nobody did. It ends with the
// connection.
func (p *Plugin) discard() {
	var nothing pluginv1.HealthRequest // any message without fields will do
	stream, err := p.conn.NewStream(context.Background(), &grpc.StreamDesc{ServerStreams: true}, "/plugin.GRPCStdio/StreamStdio")
	if err != nil || stream.SendMsg(&nothing) != nil || stream.CloseSend() != nil {
		return
	}
	for stream.RecvMsg(&nothing) == nil {
	}
}

// firstError keeps the first error: gRPC shows none to who waits for a connection.
type firstError struct {
	mu  sync.Mutex
	err error
}

func (f *firstError) note(err error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		f.err = err
	}
	return err
}

func (f *firstError) get() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

// notReady is the error of a start. The process has ended, and all that it said is
// read.
func (p *Plugin) notReady(err error) error {
	if fate := p.proc.fate(); fate != "" && !errors.Is(err, errLong) && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("it ended before it was ready (%s)", fate)
	}
	e := p.failed("starting it", err)
	var made *apartError
	var known *Error
	if errors.As(err, &made) && errors.As(e, &known) {
		known.Hint = made.remedy
	}
	return e
}
