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
	"sync"
	"time"

	goplugin "github.com/hashicorp/go-plugin"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"

	"github.com/nucleus-runtime/nucleus/internal/tail"
	"github.com/nucleus-runtime/nucleus/sdk/errs"
)

// Options of New.
type Options struct {
	Finder *Finder
	// RunDirs are where sockets may be made: in the first whose path is short enough
	// for one. They are the caller's, and made if they are missing.
	RunDirs []string
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

	closing sync.Once
	threads sync.WaitGroup
}

// maxSocketDir leaves room for what go-plugin appends, within the 108 bytes of a
// socket's address (unix(7)).
const maxSocketDir = 108 - len("/plugin-dir1234567890/plugin1234567890") - 1

// Start finds, verifies and starts a plugin, and shakes hands. The caller closes it.
func (h *Host) Start(ctx context.Context, name string) (*Plugin, error) {
	program, err := h.o.Finder.Find(name)
	if err != nil {
		return nil, err
	}
	return h.start(ctx, program)
}

// start takes the program over.
func (h *Host) start(ctx context.Context, program *Program) (_ *Plugin, err error) {
	name := program.Name
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
	p.proc = &process{
		launch: launch{program: program, uid: uid, gid: gid, switchU: switchTo, caps: program.Host.Caps},
		done:   make(chan struct{}),
	}
	p.client = p.handshake()
	if err := p.connect(ctx, h.o.StartTime); err != nil {
		p.Close()
		return nil, p.notReady(err)
	}
	return p, nil
}

// failed adds what happened to the process, if that is why, and what it printed last.
func (p *Plugin) failed(what string, err error) error {
	switch errs.Of(err).Code {
	case errs.Deadline:
		err = fmt.Errorf("no answer in time: %w", err)
	case errs.Unavailable:
		if p.ending(context.Background()); p.proc.fate() != "" {
			err = fmt.Errorf("it ended (%s): %w", p.proc.fate(), err)
		}
	}
	e := &Error{Plugin: p.Name, Err: fmt.Errorf("%s: %w", what, err)}
	if s := lastLine(p.said.String()); s != "" {
		e.Hint = "it said: " + s
	}
	return e
}

// ending gives a process whose connection may be broken the time to end, and to have
// its last words read: the connection is closed a little earlier.
func (p *Plugin) ending(ctx context.Context) {
	soon, cancel := context.WithTimeout(ctx, breakTime)
	defer cancel()
	if p.conn == nil || p.conn.GetState() == connectivity.Ready && !p.conn.WaitForStateChange(soon, connectivity.Ready) {
		return
	}
	ctx, cancel = context.WithTimeout(ctx, deathTime)
	defer cancel()
	if _ = p.proc.Wait(ctx); p.proc.fate() != "" {
		p.proc.drained(ctx)
	}
}

const (
	// breakTime is how long a connection may take to be known as broken.
	breakTime = 100 * time.Millisecond
	// deathTime is how long a process may take to end after it closed what it had.
	deathTime = 300 * time.Millisecond
)

// Conn is the connection, for the adapters of sdk/plugin/client.
func (p *Plugin) Conn() grpc.ClientConnInterface { return p.conn }

// Pid is its process.
func (p *Plugin) Pid() int { return p.proc.pid() }

// Gone is closed when the process has ended.
func (p *Plugin) Gone() <-chan struct{} { return p.proc.done }

// Close ends the plugin, whatever state it is in, and removes its socket.
func (p *Plugin) Close() {
	p.closing.Do(func() {
		if p.conn != nil {
			_ = p.conn.Close()
			p.threads.Wait()
		}
		if p.proc != nil {
			p.proc.end()
		}
		if p.dir != "" {
			_ = os.RemoveAll(p.dir)
		}
		_ = p.Program.Close()
	})
}

// socketDir makes a directory for one plugin's socket.
func (h *Host) socketDir() (string, error) {
	var b [4]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", err
	}
	dir := ""
	for _, parent := range h.o.RunDirs {
		dir = filepath.Join(parent, hex.EncodeToString(b[:]))
		if len(dir) > maxSocketDir {
			continue
		}
		if err := ownDir(parent); err != nil {
			return "", err
		}
		return dir, os.Mkdir(dir, 0o700)
	}
	return "", fmt.Errorf("the path of its socket would be too long: %s", dir)
}

// ownDir makes a directory that nobody else can write to, or finds it so.
func ownDir(path string) error {
	if err := os.MkdirAll(path, 0o711); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return &os.PathError{Op: "lstat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || st.Mode&0o022 != 0 || st.Uid != uint32(os.Geteuid()) {
		return fmt.Errorf("%s is not a directory that only the caller can write to (mode %04o, owner %d): remove it", path, st.Mode&0o7777, st.Uid)
	}
	if os.Geteuid() == 0 && st.Mode&0o011 != 0o011 {
		// Plugins of other users pass through, whatever the umask was.
		return os.Chmod(path, 0o711)
	}
	return nil
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
