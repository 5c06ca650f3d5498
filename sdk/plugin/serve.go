package plugin

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"

	"github.com/nucleus-runtime/nucleus/sdk/plugin/descriptors"
	"github.com/nucleus-runtime/nucleus/sdk/plugin/handshake"
	"github.com/nucleus-runtime/nucleus/sdk/plugin/internal/guard"
	"github.com/nucleus-runtime/nucleus/sdk/plugin/internal/launch"
)

const (
	drainFor = 5 * time.Second
	closeFor = 5 * time.Second
	// flushFor is time for the last answer to leave: gRPC writes behind the
	// handler's back, and go-plugin's own streams never end by themselves.
	flushFor = 50 * time.Millisecond
	// maxMessage is room for the handles of a thousand sandboxes, of which GC is told.
	maxMessage = 64 << 20
	// sun_path has 108 bytes with its NUL, see unix(7).
	maxSocketPath = 107
)

// Serve is a plugin's main. It does not return.
func Serve(p Plugin) {
	os.Exit(main(p, &launch.This, os.Args[1:], os.Stdout, os.Stderr)) //nolint:forbidigo // it is what a plugin's main is
}

func main(p Plugin, proc *launch.Process, args []string, stdout, stderr io.Writer) int {
	complain := func(err error) int {
		fmt.Fprintf(stderr, "nucleus plugin %s: error: %v\n", p.Name, err)
		return 1
	}
	if err := p.check(); err != nil {
		return complain(err)
	}
	if proc.Err != nil {
		return complain(proc.Err)
	}
	s := &server{plugin: p, proc: proc, stdout: stdout, log: p.Logger, drain: guard.NewDrain(), scrub: guard.NewScrubber()}
	if s.log == nil {
		s.log = NewLogger(p.Name)
	}
	if !proc.ByHost {
		switch {
		case slices.Equal(args, []string{"--version"}):
			fmt.Fprintf(stdout, "%s %s (sdk %s)\n", p.Name, p.Version, SDKVersion)
			return 0
		case slices.Equal(args, []string{"--schema"}):
			return s.printSchema(complain)
		case slices.Equal(args, []string{"--debug"}):
			s.debug = true
		default:
			fmt.Fprintf(stderr, "this is a Nucleus plugin, which nucleus starts by itself; try: nucleus plugin check %s\n"+
				"flags: --version, --schema (its configuration, as JSON), --debug (serve, and print where)\n", p.calledAs())
			return 1
		}
	}
	if err := s.serve(); err != nil {
		return complain(err)
	}
	return 0
}

// calledAs is what other commands find this program by: by the path that it was
// started with, or else by its plugin's name.
func (p *Plugin) calledAs() string {
	if path := os.Args[0]; strings.Contains(path, "/") {
		return path
	}
	return p.Name
}

// NewLogger writes to the host, which reads standard error line by line.
func NewLogger(name string) hclog.Logger {
	return hclog.New(&hclog.LoggerOptions{Name: name, Level: hclog.Info, Output: os.Stderr, JSONFormat: true}) //nolint:forbidigo // the host reads it there
}

type server struct {
	plugin Plugin
	proc   *launch.Process
	log    hclog.Logger
	stdout io.Writer
	debug  bool // started by hand

	drain       *guard.Drain
	scrub       *guard.Scrubber
	descriptors *descriptors.Receiver // nil if the host gave no side channel
	stop        context.CancelFunc
	once        sync.Once
	warm        *warm // nil unless the process may outlive its host

	mu     sync.Mutex
	grpc   *grpc.Server
	socket string // its path, when it is there
	ownDir string // made by us, "" if the host gave one
}

func (s *server) printSchema(complain func(error) int) int {
	schema, err := s.plugin.schema()
	if err != nil {
		return complain(err)
	}
	b, err := json.MarshalIndent(schema, "", "  ")
	if err != nil {
		return complain(err)
	}
	fmt.Fprintf(s.stdout, "%s\n", b)
	return 0
}

func (s *server) serve() error {
	if err := s.refuseOtherTransports(); err != nil {
		return err
	}
	if s.plugin.Secrets != nil || s.plugin.Network != nil { // those of other sandboxes may have the same user
		if err := launch.Undumpable(); err != nil {
			return err
		}
	}
	if s.proc.Descriptors != nil {
		r, err := descriptors.Receive(s.proc.Descriptors)
		s.proc.Descriptors.Close()
		if err != nil {
			return err
		}
		defer r.Close()
		s.descriptors = r
	}
	if err := s.socketDir(); err != nil {
		return err
	}
	defer s.removeFiles()
	if s.plugin.Lifetime == WarmOK {
		s.warm = newWarm(s.end)
	}
	s.proc.Watch(func(keep time.Duration) {
		if s.warm != nil && keep > 0 && s.warm.begin(keep) == nil {
			return
		}
		// At once: whoever would want an answer is gone, and a call that hangs must
		// not keep us.
		s.removeFiles()
		os.Exit(1) //nolint:forbidigo // nothing is left to undo, and nobody to return to
	})

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	s.stop = cancel
	s.signals()

	at := make(chan *goplugin.ReattachConfig, 1)
	closed := make(chan struct{})
	// go-plugin's test mode is its server without its grip on the process: it would
	// print the handshake to whatever os.Stdout is by then, replace os.Stdout and
	// os.Stderr behind the author's back, and leave the socket behind on SIGTERM.
	go goplugin.Serve(&goplugin.ServeConfig{
		HandshakeConfig: handshake.Config(),
		Plugins:         goplugin.PluginSet{handshake.PluginName: &services{server: s}},
		GRPCServer:      s.newGRPC,
		Logger:          s.log,
		Test:            &goplugin.ServeTestConfig{Context: ctx, ReattachConfigCh: at, CloseCh: closed},
	})
	select {
	case r := <-at:
		if err := s.announce(r); err != nil {
			cancel()
			<-closed
			return err
		}
	case <-closed:
		return fmt.Errorf("the server did not start: see the log before this line")
	}
	<-closed
	s.close()
	return nil
}

// refuseOtherTransports turns down what a host may ask go-plugin for by variables.
func (s *server) refuseOtherTransports() error {
	if os.Getenv("PLUGIN_CLIENT_CERT") != "" {
		return fmt.Errorf("the host wants AutoMTLS; the kernel tells both sides who the other is, so switch it off")
	}
	// Only the broker would use it, and nothing here uses the broker.
	return os.Unsetenv("PLUGIN_MULTIPLEX_GRPC")
}

func (s *server) socketDir() error {
	dir := os.Getenv(handshake.EnvSocketDir)
	if dir == "" {
		// A shared directory is no place for a socket: go-plugin makes a file there,
		// removes it and listens under its name.
		own, err := os.MkdirTemp("", "nucleus-plugin")
		if err != nil {
			return err
		}
		s.ownDir, dir = own, own
		if err := os.Setenv(handshake.EnvSocketDir, own); err != nil {
			return err
		}
	}
	if longest := filepath.Join(dir, "plugin4294967295"); len(longest) > maxSocketPath {
		s.removeFiles()
		return fmt.Errorf("a socket in %q would have a path of %d bytes, and the kernel takes %d: set %s to a shorter one", dir, len(longest), maxSocketPath, handshake.EnvSocketDir)
	}
	return nil
}

func (s *server) removeFiles() {
	s.mu.Lock()
	defer s.mu.Unlock()
	// Gone already, most of the time.
	if s.socket != "" {
		_ = os.Remove(s.socket)
	}
	if s.ownDir != "" {
		_ = os.Remove(s.ownDir)
	}
}

func (s *server) newGRPC(opts []grpc.ServerOption) *grpc.Server {
	replay, handles := guard.NewReplay(), guard.NewHandles(s.plugin.HandleVersions)
	var unary []grpc.UnaryServerInterceptor
	for _, i := range []grpc.UnaryServerInterceptor{
		s.drain.Intercept,
		guard.Deadline,
		replay.Intercept,
		guard.Teardown,
		guard.Errors(s.plugin.Name, s.scrub),
		handles.Intercept,
	} {
		unary = append(unary, guard.Only(i))
	}
	var stream []grpc.StreamServerInterceptor
	for _, i := range []grpc.StreamServerInterceptor{
		s.drain.Stream,
		guard.ErrorsStream(s.plugin.Name, s.scrub),
		handles.Stream,
	} {
		stream = append(stream, guard.OnlyStream(i))
	}
	options := append(opts, grpc.Creds(handshake.Credentials(s.checkPeer)), grpc.MaxRecvMsgSize(maxMessage),
		grpc.ChainUnaryInterceptor(unary...), grpc.ChainStreamInterceptor(stream...))
	if s.warm != nil {
		options = append(options, grpc.StatsHandler(s.warm))
	}
	srv := grpc.NewServer(options...)
	s.mu.Lock()
	s.grpc = srv
	s.mu.Unlock()
	return srv
}

func (s *server) checkPeer(p handshake.Peer) error {
	err := s.peerError(p)
	if err != nil {
		s.log.Warn("connection refused", "pid", p.PID, "uid", p.UID, "error", err)
	}
	return err
}

func (s *server) peerError(p handshake.Peer) error {
	if !slices.Contains(s.proc.PeerUIDs(), p.UID) {
		return fmt.Errorf("%w: user %d", handshake.ErrPeer, p.UID)
	}
	// Later hosts of a warm plugin, and whoever debugs, are other processes.
	if s.plugin.Lifetime != WarmOK && !s.debug && p.PID != s.proc.Parent {
		return fmt.Errorf("%w: pid %d, and pid %d started this plugin", handshake.ErrPeer, p.PID, s.proc.Parent)
	}
	return nil
}

// announce tells where we are.
func (s *server) announce(r *goplugin.ReattachConfig) error {
	if r.Addr.Network() != "unix" {
		return fmt.Errorf("listening on %s, and only unix sockets are allowed", r.Addr.Network())
	}
	s.mu.Lock()
	s.socket = r.Addr.String()
	s.mu.Unlock()
	if s.debug {
		b, err := json.Marshal(map[string]handshake.Reattach{s.plugin.Name: {
			Protocol: string(r.Protocol), ProtocolVersion: r.ProtocolVersion, Pid: r.Pid, Network: "unix", Addr: r.Addr.String(),
		}})
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(s.stdout, "%s='%s'\n", handshake.EnvReattach, b)
		return err
	}
	if _, err := fmt.Fprintf(s.proc.Handshake, "%d|%d|unix|%s|%s|\n", goplugin.CoreProtocolVersion, r.ProtocolVersion, r.Addr, r.Protocol); err != nil {
		return fmt.Errorf("telling the host where the socket is: %w", err)
	}
	return s.proc.Handshake.Close()
}

// signals: SIGTERM ends; ^C reaches the whole group of a terminal, and it is the
// host that decides what it means.
func (s *server) signals() {
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		for sig := range ch {
			if sig == syscall.SIGTERM || s.debug {
				s.end()
			}
		}
	}()
}

// end takes no new calls, lets those at work finish, and stops the server. It
// returns at once.
func (s *server) end() {
	s.once.Do(func() {
		go func() {
			select {
			case <-s.drain.Close():
			case <-time.After(drainFor):
			}
			s.mu.Lock()
			srv := s.grpc
			s.mu.Unlock()
			flushed := make(chan struct{})
			go func() {
				srv.GracefulStop()
				close(flushed)
			}()
			select {
			case <-flushed:
			case <-time.After(flushFor):
			}
			s.stop()
		}()
	})
}

// close runs the author's Close. Whoever ended the plugin waits for the process, so
// this takes no longer than it may, whatever that does.
func (s *server) close() {
	if s.plugin.Close == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeFor)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		defer func() {
			if p := recover(); p != nil {
				done <- fmt.Errorf("panic: %v", p)
			}
		}()
		done <- s.plugin.Close(ctx)
	}()
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		s.log.Warn("closing", "error", s.scrub.Error(err))
	}
}
