package pluginhost

import (
	"context"
	"errors"
	"time"

	"github.com/nucleus-runtime/nucleus/core/network"
	"github.com/nucleus-runtime/nucleus/internal/procid"
	"github.com/nucleus-runtime/nucleus/sdk/errs"
	"github.com/nucleus-runtime/nucleus/sdk/manifest"
	sdknet "github.com/nucleus-runtime/nucleus/sdk/network"
	"github.com/nucleus-runtime/nucleus/sdk/plugin/client"
)

// Time that calls to a backend may take, unless the context ends before.
const (
	prepareTime = 5 * time.Second
	attachTime  = 10 * time.Second
	detachTime  = 10 * time.Second
)

// Networks connects sandboxes by plugins. It is a network.Source.
type Networks struct{ Host *Host }

// Open starts a backend and configures it for one sandbox.
func (n *Networks) Open(ctx context.Context, sandbox string, w network.Want) (network.Link, error) {
	l := &link{host: n.Host, sandbox: sandbox, want: w}
	l.record = network.Record{Backend: w.Backend, Pinned: n.Host.o.Finder.PinnedOnly, IfName: network.IfName}
	err := l.open(ctx, func(p *Plugin, s *Schema) (err error) {
		l.record.Config, err = n.Host.settle(ctx, p, s, w.Config, w.Eval, l.instance())
		return err
	})
	if err != nil {
		return nil, err
	}
	return l, nil
}

// Detach starts a backend for what the record of a sandbox tells.
func (n *Networks) Detach(ctx context.Context, sandbox string, r network.Record) error {
	if err := n.Host.o.Finder.pinned(r.Backend, r.Pinned); err != nil {
		return backendError(r.Backend, err)
	}
	l := &link{host: n.Host, sandbox: sandbox, record: r}
	defer l.Close()
	return l.Detach(ctx)
}

// link is one sandbox's use of a backend.
type link struct {
	host    *Host
	sandbox string
	want    network.Want
	record  network.Record

	p      *Plugin // nil once it has been ended
	n      client.Network
	schema *Schema
	dials  bool
	gone   <-chan struct{} // of the process that has attached it
}

func (l *link) instance() string { return instance(l.sandbox, l.record.Backend) }

func (l *link) open(ctx context.Context, configure func(*Plugin, *Schema) error) error {
	p, d, err := l.host.open(ctx, l.record.Backend, manifest.Network, func(p *Plugin, s *Schema) error {
		l.schema = s
		return configure(p, s)
	})
	if err != nil {
		return backendError(l.record.Backend, err)
	}
	if i := l.want.JobsRule(); i >= 0 && !d.JoinsStacks() {
		p.Retire()
		return &network.Error{Backend: l.record.Backend, Origin: network.JobsOrigin(i), Hint: joinHint, Err: errors.New(noJoin)}
	}
	l.dials = d.DialsMembers()
	if i, job := l.want.Initless(); l.dials && job != "" {
		p.Retire()
		return &network.Error{Backend: l.record.Backend, Origin: network.JobsOrigin(i), Hint: initHint(job), Err: errors.New(noInit(job))}
	}
	l.p, l.n = p, p.Client().Network(d.Info.Features)
	return nil
}

// backendError keeps the remedy.
func backendError(backend string, err error) error {
	var known *network.Error
	if errors.As(err, &known) {
		return err
	}
	e := &network.Error{Backend: backend, Err: err}
	var pe *Error
	if errors.As(err, &pe) {
		e.Hint = pe.Hint
	}
	return e
}

// call identifies a request. The same id each time: whatever a first try has done is
// not done twice.
func (l *link) call(verb string) sdknet.Call {
	boot, _ := procid.Boot() // "" is a boot that nobody knows
	return sdknet.Call{RequestID: l.sandbox + "-" + verb, SandboxID: l.sandbox, InstanceID: l.instance(), Attempt: 1, BootID: boot}
}

// failed gives an error of a call its place in the job's configuration, if it has one.
func (l *link) failed(what string, err error) error {
	if e := errs.Of(err); len(e.Diagnostics) > 0 {
		if diags := l.schema.Diagnose(l.want.Config, e.Diagnostics); diags.HasErrors() {
			return backendError(l.record.Backend, &ConfigError{l.p.Name, diags})
		}
	}
	return backendError(l.record.Backend, l.p.failed(what, err))
}

// Prepare says what is to be opened inside; nothing, for a backend that does not.
func (l *link) Prepare(ctx context.Context, ownStack bool) (*sdknet.PrepareResponse, error) {
	if l.n.Preparer == nil {
		return &sdknet.PrepareResponse{}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, prepareTime)
	defer cancel()
	got, err := l.n.Preparer.Prepare(ctx, &sdknet.PrepareRequest{Call: l.call("prepare"), Ports: l.want.Ports, DNS: l.want.DNS, Egress: l.want.Egress, OwnStack: ownStack})
	if err != nil {
		return nil, l.failed("preparing", err)
	}
	l.record.Prepared = got.Handle
	return got, nil
}

// Attach connects the sandbox.
func (l *link) Attach(ctx context.Context, at network.Place) (*sdknet.AttachResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, attachTime)
	defer cancel()
	got, err := l.n.Attach(ctx, &sdknet.AttachRequest{
		Call: l.call("attach"), NetNS: at.NetNS, UserNS: at.UserNS, IfName: l.record.IfName, Ports: l.want.Ports, DNS: l.want.DNS, Hostname: l.want.Hostname,
		Prepared: l.record.Prepared, Egress: l.want.Egress, Files: at.Files, Missing: at.Missing, OwnStack: at.OwnStack, Member: l.want.Member,
	})
	if err != nil {
		return nil, l.failed("attaching", err)
	}
	l.record.Handle, l.gone = got.Handle, l.p.Gone()
	return got, nil
}

// Detach undoes what there is, by another process if the plugin has ended.
func (l *link) Detach(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, detachTime)
	defer cancel()
	var err error
	for range tries {
		if err = l.detach(ctx); err == nil || errs.Of(err).Code != errs.Unavailable {
			break
		}
		l.Close()
	}
	return err
}

func (l *link) detach(ctx context.Context) error {
	if l.p != nil && l.p.proc.ended() {
		l.Close()
	}
	if l.p == nil {
		if err := l.reopen(ctx); err != nil {
			return err
		}
	}
	_, err := l.n.Detach(ctx, &sdknet.DetachRequest{Call: l.call("detach"), Handle: l.record.Handle, Prepared: l.record.Prepared, IfName: l.record.IfName, Force: true})
	if err != nil {
		return l.failed("detaching", err)
	}
	return nil
}

// reopen starts the backend for what the record tells.
func (l *link) reopen(ctx context.Context) error {
	return l.open(ctx, func(p *Plugin, s *Schema) error {
		if l.record.Config == nil {
			return nil
		}
		return l.host.remind(ctx, p, s, l.record.Config, l.instance())
	})
}

// DialsMembers tells whether it asks the core for connections to other jobs.
func (l *link) DialsMembers() bool { return l.dials }

// Record is for a Detach that somebody else may have to make.
func (l *link) Record() network.Record { return l.record }

// Watch tells what the policy refuses.
func (l *link) Watch(ctx context.Context, tell func(sdknet.Denial)) error {
	if l.n.Watcher == nil {
		<-ctx.Done()
		return nil
	}
	return l.n.Watcher.Watch(ctx, &sdknet.WatchRequest{SandboxID: l.sandbox, InstanceID: l.instance(), Handle: l.record.Handle}, func(d sdknet.Denial) error {
		tell(d)
		return nil
	})
}

// Status tells how the attachment fares.
func (l *link) Status(ctx context.Context) (*sdknet.Status, error) {
	if l.n.Checker == nil {
		return nil, nil
	}
	return l.n.Checker.Status(ctx, &sdknet.StatusRequest{SandboxID: l.sandbox, InstanceID: l.instance(), Handle: l.record.Handle, IfName: l.record.IfName})
}

// Gone is closed when the process that has attached the sandbox has ended.
func (l *link) Gone() <-chan struct{} { return l.gone }

// Close ends the plugin.
func (l *link) Close() {
	if l.p != nil {
		l.p.Retire()
		l.p = nil
	}
}
