package pluginhost

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	goplugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"

	"github.com/nucleus-runtime/nucleus/core/cgroups"
	"github.com/nucleus-runtime/nucleus/core/pluginhost/rundir"
	"github.com/nucleus-runtime/nucleus/internal/tail"
	"github.com/nucleus-runtime/nucleus/sdk/errs"
	"github.com/nucleus-runtime/nucleus/sdk/manifest"
	"github.com/nucleus-runtime/nucleus/sdk/plugin/client"
	"github.com/nucleus-runtime/nucleus/sdk/plugin/descriptors"
)

// Options of New.
type Options struct {
	Finder *Finder
	// Schemas may be nil.
	Schemas *SchemaCache
	// RunDirs are where sockets may be made: in the first whose path is short enough
	// for one. They are the caller's, and made if they are missing.
	RunDirs []string
	// StateRoot is the directory of the sandboxes that plugins are started for.
	StateRoot string
	// StartTime bounds the time from exec to handshake; 0 is ten seconds.
	StartTime time.Duration
	// Version of the core.
	Version string
	// CgroupParent is the operator's choice of where control groups are made, as in
	// core.Options.
	CgroupParent string
}

// Host starts plugins and ends them.
type Host struct {
	o       Options
	cgroups func() (cgroups.Facts, error)
	greet   time.Duration // greetTime

	mu       sync.Mutex
	expected map[expectedAs]*expectation
	retiring sync.WaitGroup
}

// New makes a Host. Nothing is started.
func New(o Options) *Host {
	if o.StartTime == 0 {
		o.StartTime = 10 * time.Second
	}
	return &Host{o: o, greet: greetTime, cgroups: sync.OnceValues(func() (cgroups.Facts, error) { return cgroups.Detect(o.CgroupParent) })}
}

// Plugin is a running plugin.
type Plugin struct {
	Name    string
	Program *Program
	Service manifest.Service // that it was started for

	client *goplugin.Client
	proc   *process
	conn   *grpc.ClientConn
	wiper  *wiper // of conn, nil for one that nothing confidential comes by
	socket string
	sender *descriptors.Sender // nil for a service that is handed none
	closes bool                // it wants to be told of its end
	// selected are the versions of its services that both sides know.
	selected []manifest.Version
	kept     bool // it has a record for other hosts
	spoilt   atomic.Bool
	known    *Description // of one that was found
	at       *place
	dir      *rundir.Dir
	group    *group
	said     *tail.Tail

	closing sync.Once
	threads sync.WaitGroup
}

// maxSocketDir leaves room for what go-plugin appends, within the 108 bytes of a
// socket's address (unix(7)).
const maxSocketDir = 108 - len("/plugin-dir1234567890/plugin1234567890") - 1

// Start finds, verifies and starts a plugin, and shakes hands. The caller closes it.
// as is the service that it is started for, whatever else it may serve: its box
// follows from it. "" is for one that is only asked what it is.
func (h *Host) Start(ctx context.Context, name string, as manifest.Service) (*Plugin, error) {
	if e := h.take(name, as); e != nil {
		return e.wait(ctx)
	}
	return h.begin(ctx, name, as)
}

func (h *Host) begin(ctx context.Context, name string, as manifest.Service) (*Plugin, error) {
	if host, _ := h.o.Finder.Host.Plugin(name); wanted(host, as) {
		program, err := h.o.Finder.Find(name)
		if err != nil {
			return nil, err
		}
		if p := h.attach(ctx, program, as); p != nil {
			return p, nil
		}
		return h.start(ctx, program, as, h.prepare(name, as))
	}
	at := h.prepare(name, as)
	program, err := h.o.Finder.Find(name)
	if err != nil {
		at.leave()
		return nil, err
	}
	return h.start(ctx, program, as, at)
}

// start takes the program and the place over.
func (h *Host) start(ctx context.Context, program *Program, as manifest.Service, at *place) (_ *Plugin, err error) {
	name := program.Name
	p := &Plugin{Name: name, Program: program, Service: as, said: &tail.Tail{}, at: at, group: &at.group}
	defer func() {
		if err != nil {
			p.Close()
		}
	}()
	if p.dir, err = at.directory(); err != nil {
		e := &Error{Plugin: name, Err: err}
		if te := (*rundir.TakenError)(nil); errors.As(err, &te) {
			e.Hint = te.Remedy()
		}
		return nil, e
	}
	uid, gid, switchTo, err := account(program)
	if err != nil {
		return nil, err
	}
	if switchTo {
		// It makes its socket in here, and so must be able to pass.
		if err := os.Chmod(p.dir.Path, 0o711); err != nil {
			return nil, &Error{Plugin: name, Err: err}
		}
	}
	p.proc = &process{
		launch: launch{program: program, uid: uid, gid: gid, switchU: switchTo, caps: program.Host.Caps, box: boxOf(as, program.Host), apart: apart(as, switchTo, program.Host.Caps)},
		group:  p.group,
		done:   make(chan struct{}),
	}
	if as == manifest.Network {
		if p.sender, p.proc.launch.side, err = descriptors.Pair(); err != nil {
			return nil, &Error{Plugin: name, Err: err}
		}
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
	p.spoil(err)
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
	if p.proc.hungry() {
		e.Hint = fmt.Sprintf("if it is to have more: memory = \"%dMiB\" in its block of the host configuration", 2*p.group.memory>>20)
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
	deathTime = 500 * time.Millisecond
)

// Conn is the connection, for the adapters of sdk/plugin/client.
func (p *Plugin) Conn() grpc.ClientConnInterface { return p.conn }

// Client calls the plugin. What its service may be handed goes over the side channel.
func (p *Plugin) Client() *client.Client { return client.New(p.Conn()).WithDescriptors(p.sender) }

// Pid is its process.
func (p *Plugin) Pid() int { return p.proc.pid() }

// Gone is closed when the process has ended.
func (p *Plugin) Gone() <-chan struct{} { return p.proc.done }

// closeTime is how long a plugin may take to undo what it took for itself; the SDK
// gives it five seconds.
const closeTime = 6 * time.Second

// Retire ends the plugin, and lets one that says so undo what it took for itself, such
// as a login. One that is kept does that when it ends.
func (p *Plugin) Retire() {
	if p.closes && !p.kept {
		ctx, cancel := context.WithTimeout(context.Background(), closeTime)
		defer cancel()
		if client.New(p.Conn()).Shutdown(ctx) == nil {
			p.hangUp()           // or it waits for the rest of our calls
			_ = p.proc.Wait(ctx) // else it is killed
		}
	}
	p.Close()
}

// retire is Retire that nobody waits for, but Forget.
func (h *Host) retire(p *Plugin) { h.retiring.Go(p.Retire) }

// Close ends the plugin, whatever state it is in, and removes its socket; unless it is
// kept.
func (p *Plugin) Close() {
	p.closing.Do(func() {
		p.hangUp()
		if p.sender != nil {
			_ = p.sender.Close()
			_ = p.proc.launch.side.Close() // of a process that was never started
		}
		p.leave()
		_ = p.Program.Close()
	})
}
