package pluginhost

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"time"

	"github.com/nucleus-runtime/nucleus/core/job/hostconfig"
	"github.com/nucleus-runtime/nucleus/core/pluginhost/rundir"
	"github.com/nucleus-runtime/nucleus/internal/tail"
	"github.com/nucleus-runtime/nucleus/sdk/errs"
	"github.com/nucleus-runtime/nucleus/sdk/manifest"
	"github.com/nucleus-runtime/nucleus/sdk/plugin/client"
	"github.com/nucleus-runtime/nucleus/sdk/plugin/handshake"
)

// greetTime is how long a plugin that was kept may take to say that it is well. A new
// process takes less than a tenth of it.
const greetTime = time.Second

// wanted tells whether an operator wants a plugin to be kept for later runs. What
// changes the host, a backend of networks say, ends with its sandbox.
func wanted(host hostconfig.Plugin, as manifest.Service) bool {
	return host.KeepWarm > 0 && (as == manifest.Secrets || as == manifest.Hooks)
}

// warmKey is all that decides what a process is and knows, but for the jobs that have
// used it: two hosts share one only if they would start the same. Self is the operator's
// configuration as the plugin gets it.
func (h *Host) warmKey(p *Program, as manifest.Service, self []byte) (string, error) {
	uid, gid, _, err := account(p)
	if err != nil {
		return "", err
	}
	b, err := json.Marshal([]any{
		p.Name, p.Digest, as, self, p.Host.Env, p.Host.Caps, p.Host.Writable, p.Host.Network, p.Host.Memory, p.Host.KeepWarm,
		uid, gid, h.o.CgroupParent, h.stateRoot(), h.o.Version,
	})
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:]), nil
}

// keep lets other hosts find a plugin that has its operator's configuration, if it is
// one to keep. It tells the plugin last: one whose host is killed before ends with it,
// so that none stays that nobody can find.
func (h *Host) keep(p *Plugin, d *Description, self []byte) {
	host := p.Program.Host
	if !wanted(host, p.Service) || d.Info.Lifetime != manifest.WarmOK {
		return
	}
	key, err := h.warmKey(p.Program, p.Service, self)
	if err != nil {
		return // it ends with this host, as others do
	}
	if p.dir.Keep(rundir.Warm{
		Name: p.Name, Service: string(p.Service), Digest: p.Program.Digest, Key: key,
		PID: p.proc.pid(), UID: p.proc.launch.uid, Socket: p.socket, Keep: host.KeepWarm,
	}) != nil {
		return
	}
	p.kept = true
	if p.proc.say(handshake.Keep(host.KeepWarm)) != nil {
		p.spoilt.Store(true)
	}
}

// attach gives a plugin that an earlier run has left, if there is one that is the same
// in all that matters, and answers; else nil, and a new one has to be started. What
// seems to be it and is not is never touched.
func (h *Host) attach(ctx context.Context, program *Program, as manifest.Service) *Plugin {
	d := h.remembered(ctx, program)
	if d == nil || d.Info.Lifetime != manifest.WarmOK {
		return nil
	}
	schema, err := NewSchema(d.Schema.Plugin)
	if err != nil {
		return nil
	}
	self, diags := schema.Decode(program.Host.Config, h.o.Finder.Host.EvalContext())
	if diags.HasErrors() {
		return nil
	}
	key, err := h.warmKey(program, as, self)
	if err != nil {
		return nil
	}
	dir, w, proc := rundir.Attach(h.o.RunDirs, key)
	if dir == nil {
		return nil
	}
	p := &Plugin{
		Name: program.Name, Program: program, Service: as, said: &tail.Tail{}, dir: dir, socket: w.Socket, kept: true, known: d,
		proc: &process{launch: launch{program: program, uid: w.UID, box: boxOf(as, program.Host)}, group: &group{}, found: proc, done: make(chan struct{})},
	}
	if uid, _, _, err := account(program); err == nil && uid == w.UID && w.Digest == program.Digest && within(dir.Path, w.Socket) == nil && p.greet(ctx, h.greet) == nil {
		return p
	}
	// Unless it is only that nobody waits for it.
	p.spoilt.Store(ctx.Err() == nil)
	p.hangUp()
	p.leave()
	return nil
}

// greet connects to a plugin that was found, and asks how it is.
func (p *Plugin) greet(ctx context.Context, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if err := p.dial(ctx, p.Service == manifest.Secrets); err != nil {
		return err
	}
	state, err := client.New(p.Conn()).Health(ctx)
	if err == nil && state.State == manifest.Failed {
		err = errs.Preconditionf("it is not well: %s", state.Message)
	}
	return err
}

// spoil notes an error that may say something of the process, and not only of what it
// was asked for: who comes later gets another. That nobody waited says nothing: it is
// how a renewal ends when its sandbox does.
func (p *Plugin) spoil(err error) {
	switch errs.Of(err).Code {
	case errs.Config, errs.NotFound, errs.Exists, errs.Precondition, errs.Denied, errs.Unimplemented, errs.Canceled:
	default:
		p.spoilt.Store(true)
	}
}

// leave ends the process and removes its place, or leaves both for others.
func (p *Plugin) leave() {
	if p.kept && p.dir.Release(p.spoilt.Load() || p.proc.ended()) {
		p.proc.letGo()
		return
	}
	if p.proc == nil || p.proc.found == nil {
		if p.proc != nil {
			p.proc.end()
		}
		if p.at != nil {
			p.at.leave()
		}
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	_ = p.dir.End(ctx) // the next start sweeps what is left
	p.proc.found.Close()
}
