package pluginhost

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"github.com/hashicorp/go-plugin/runner"
	"google.golang.org/grpc"

	"os/exec"

	"github.com/nucleus-runtime/nucleus/internal/tail"
	"github.com/nucleus-runtime/nucleus/sdk/plugin/handshake"
)

// Options of New.
type Options struct {
	Finder *Finder
	// RunDir is where sockets are made, below the state root. It is the caller's.
	RunDir string
	// StartTime bounds the time from exec to handshake; 0 is ten seconds.
	StartTime time.Duration
	// Version of the core.
	Version string
}

// Host starts plugins and ends them.
type Host struct{ o Options }

// New makes a Host. Nothing is started.
func New(o Options) *Host {
	if o.StartTime == 0 {
		o.StartTime = 10 * time.Second
	}
	return &Host{o}
}

// Plugin is a running plugin.
type Plugin struct {
	Name    string
	Program *Program

	client *goplugin.Client
	proc   *process
	conn   *grpc.ClientConn
	dir    string
	said   *tail.Tail
}

// maxSocketDir leaves room for what go-plugin appends, within the 108 bytes of a
// socket's address (unix(7)).
const maxSocketDir = 108 - len("/plugin-dir1234567890/plugin1234567890") - 1

// Start finds, verifies and starts a plugin, and shakes hands. The caller closes it.
func (h *Host) Start(ctx context.Context, name string) (_ *Plugin, err error) {
	program, err := h.o.Finder.Find(name)
	if err != nil {
		return nil, err
	}
	p := &Plugin{Name: name, Program: program, said: &tail.Tail{}}
	defer func() {
		if err != nil {
			p.Close()
		}
	}()
	if p.dir, err = h.socketDir(); err != nil {
		return nil, &Error{Plugin: name, Err: err}
	}
	uid, gid, switchTo, err := account(program)
	if err != nil {
		return nil, err
	}
	if switchTo {
		// It makes its socket in here, and so must be able to pass.
		if err := os.Chmod(p.dir, 0o711); err != nil {
			return nil, &Error{Plugin: name, Err: err}
		}
	}
	p.proc = &process{launch: launch{program: program, uid: uid, gid: gid, switchU: switchTo, caps: program.Host.Caps}}
	p.client = goplugin.NewClient(&goplugin.ClientConfig{
		HandshakeConfig: handshake.Config(), Plugins: goplugin.PluginSet{handshake.PluginName: wire{}},
		AllowedProtocols: []goplugin.Protocol{goplugin.ProtocolGRPC}, SkipHostEnv: true, StartTimeout: h.o.StartTime,
		UnixSocketConfig: &goplugin.UnixSocketConfig{TempDir: p.dir}, Logger: hclog.NewNullLogger(), Stderr: p.said,
		GRPCDialOptions: []grpc.DialOption{grpc.WithTransportCredentials(handshake.Credentials(handshake.Only(func() (int, uint32) {
			return p.proc.proc.Pid, uid
		})))},
		RunnerFunc: func(_ hclog.Logger, cmd *exec.Cmd, dir string) (runner.Runner, error) {
			p.proc.socketDir = dir
			p.proc.launch.env = environment(append(cmd.Env, fmt.Sprintf("%s=%d", handshake.EnvPeerUID, os.Geteuid())), program.Host.Env)
			return p.proc, nil
		},
	})
	if err := p.connect(ctx); err != nil {
		return nil, p.failed("starting it", err)
	}
	return p, nil
}

// connect gives up with the context, which go-plugin knows nothing of.
func (p *Plugin) connect(ctx context.Context) error {
	done := make(chan error, 1)
	go func() {
		c, err := p.client.Client()
		if err == nil {
			var raw any
			if raw, err = c.Dispense(handshake.PluginName); err == nil {
				p.conn = raw.(*grpc.ClientConn)
			}
		}
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		if p.proc.proc != nil {
			_ = p.proc.Kill(context.Background())
		}
		return errors.Join(context.Cause(ctx), <-done)
	}
}

// failed adds what a plugin printed last.
func (p *Plugin) failed(what string, err error) error {
	e := &Error{Plugin: p.Name, Err: fmt.Errorf("%s: %w", what, err)}
	if s := p.said.String(); s != "" {
		lines := strings.Split(s, "\n")
		e.Hint = "it said: " + lines[len(lines)-1]
	}
	return e
}

// Conn is the connection, for the adapters of sdk/plugin/client.
func (p *Plugin) Conn() grpc.ClientConnInterface { return p.conn }

// Pid is its process.
func (p *Plugin) Pid() int { return p.proc.proc.Pid }

// Gone is closed when the process has ended.
func (p *Plugin) Gone() <-chan struct{} { return p.proc.done }

// Close ends the plugin, whatever state it is in, and removes its socket.
func (p *Plugin) Close() {
	if p.conn != nil {
		_ = p.conn.Close()
	}
	if p.proc != nil && p.proc.proc != nil {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		_ = p.proc.Kill(ctx)
		cancel()
		p.client.Kill() // go-plugin's own threads of the connection
	}
	if p.dir != "" {
		_ = os.RemoveAll(p.dir)
	}
	_ = p.Program.Close()
}

// socketDir makes a directory for one plugin's socket.
func (h *Host) socketDir() (string, error) {
	parent := filepath.Join(h.o.RunDir, "p")
	if err := os.MkdirAll(parent, 0o711); err != nil {
		return "", err
	}
	var b [4]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", err
	}
	dir := filepath.Join(parent, hex.EncodeToString(b[:]))
	if len(dir) > maxSocketDir {
		return "", fmt.Errorf("the path of its socket would be too long: %s", dir)
	}
	return dir, os.Mkdir(dir, 0o700)
}

func within(dir, path string) error {
	if rel, err := filepath.Rel(dir, path); err != nil || rel == ".." || strings.HasPrefix(rel, "../") || filepath.Clean(path) != path {
		return fmt.Errorf("it listens at %q, outside of the directory that was made for it", path)
	}
	return nil
}

// wire is go-plugin's idea of a plugin: one connection, for all services.
type wire struct {
	goplugin.NetRPCUnsupportedPlugin
}

func (wire) GRPCServer(*goplugin.GRPCBroker, *grpc.Server) error {
	return errors.New("a host serves nothing")
}

func (wire) GRPCClient(_ context.Context, _ *goplugin.GRPCBroker, c *grpc.ClientConn) (any, error) {
	return c, nil
}
