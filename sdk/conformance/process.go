package conformance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"

	"github.com/nucleus-runtime/nucleus/sdk/conformance/internal/lab"
	"github.com/nucleus-runtime/nucleus/sdk/plugin/descriptors"
	"github.com/nucleus-runtime/nucleus/sdk/plugin/handshake"
	pluginv1 "github.com/nucleus-runtime/nucleus/sdk/proto/nucleus/plugin/v1"
)

// launch is how a process is started that is not started as usual.
type launch struct {
	args   []string
	byHand bool   // without anything of a host
	bare   bool   // standard input is closed, and no variable is there but the handshake's
	dir    string // for the socket; "" makes one
	work   string // for state, run and temporary files; "" makes one
	uid    uint32 // 0 for the caller's
	orphan bool   // by a shell, so that its parent is not us
	// at is the host whose network it is in; nil for that of the rules of every plugin.
	at   *lab.Lab
	caps []uintptr // of another user, which has none else
}

// process is one process of the plugin, and its host.
type process struct {
	pid      int
	uid      uint32
	dir      string // where it makes its socket
	work     string // with its state directory, its run directory, and TMPDIR
	socket   string
	line     string // of the handshake
	lifeline *os.File
	stdout   *transcript
	stderr   *transcript

	conn    *grpc.ClientConn
	base    pluginv1.BaseClient
	secrets pluginv1.SecretsClient
	hooks   pluginv1.HooksClient
	sender  *descriptors.Sender // nil for who is given none

	proc    *os.Process
	done    chan struct{} // closed when it has ended; it is reaped by close
	fate    fate
	readers sync.WaitGroup
	pipes   []*os.File
	closing sync.Once
}

// transcript keeps what a process prints, up to a limit.
type transcript struct {
	mu    sync.Mutex
	b     []byte
	lines chan struct{} // closed after the first line
	once  sync.Once
}

const maxTranscript = 1 << 20

func (t *transcript) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p[:min(len(p), maxTranscript-len(t.b))]...)
	if bytes.IndexByte(t.b, '\n') >= 0 {
		t.once.Do(func() { close(t.lines) })
	}
	return len(p), nil
}

func (t *transcript) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.b)
}

// newDir makes a directory in the Checker's.
func (k *Checker) newDir(name string) (string, error) {
	dir := filepath.Join(k.dir, fmt.Sprintf("%s%d", name, k.nextID.Add(1)))
	return dir, os.Mkdir(dir, 0o700)
}

// newWork makes the directories that a plugin is told of.
func (k *Checker) newWork() (string, error) {
	work, err := k.newDir("w")
	for _, d := range []string{"state", "run", "tmp"} {
		if err == nil {
			err = os.Mkdir(filepath.Join(work, d), 0o700)
		}
	}
	return work, err
}

// spawn starts a process and waits for nothing.
func (k *Checker) spawn(l launch) (_ *process, err error) {
	p := &process{
		uid: uint32(os.Geteuid()), dir: l.dir, done: make(chan struct{}),
		stdout: &transcript{lines: make(chan struct{})}, stderr: &transcript{lines: make(chan struct{})},
	}
	if p.dir == "" {
		if p.dir, err = k.newDir("s"); err != nil {
			return nil, err
		}
	}
	if p.work = l.work; p.work == "" {
		if p.work, err = k.newWork(); err != nil {
			return nil, err
		}
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, err
	}
	program, err := os.Open(k.conf.Binary)
	if err != nil {
		null.Close()
		return nil, err
	}
	theirs := []*os.File{null, program}
	defer func() {
		for _, f := range theirs {
			f.Close()
		}
	}()
	pipe := func() (r, w *os.File) {
		if err == nil {
			r, w, err = os.Pipe()
		}
		return r, w
	}
	outR, outW := pipe()
	errR, errW := pipe()
	lifeR, lifeW := pipe()
	if err != nil {
		return nil, err
	}
	theirs = append(theirs, outW, errW, lifeR)
	p.pipes, p.lifeline = []*os.File{outR, errR}, lifeW

	if l.at == nil {
		l.at = k.home
	}
	var side *os.File
	if k.network {
		if p.sender, side, err = descriptors.Pair(); err != nil {
			return nil, err
		}
		theirs = append(theirs, side)
	}
	attr := &os.ProcAttr{Dir: "/", Env: k.environment(l, p), Files: []*os.File{null, outW, errW, lifeR, program}, Sys: &syscall.SysProcAttr{Setsid: true}}
	if side != nil {
		attr.Files = append(attr.Files, side)
	}
	if l.bare {
		attr.Files[0] = nil
	}
	path, argv := k.conf.Binary, append([]string{k.conf.Binary}, l.args...)
	if l.uid != 0 {
		p.uid = l.uid
		// By descriptor, as the core does: that user may not be able to walk there.
		path = "/proc/self/fd/4"
		attr.Sys.Credential = &syscall.Credential{Uid: l.uid, Gid: l.uid}
		attr.Sys.AmbientCaps = l.caps
		for _, d := range []string{p.dir, p.work, filepath.Join(p.work, "state"), filepath.Join(p.work, "run"), filepath.Join(p.work, "tmp")} {
			if err := os.Chown(d, int(l.uid), int(l.uid)); err != nil {
				return nil, err
			}
		}
	}
	if l.orphan {
		path, argv = "/bin/sh", append([]string{"sh", "-c", `"$@" & wait`, "sh"}, argv...)
	}
	run := func() (err error) {
		p.proc, err = os.StartProcess(path, argv, attr) //nolint:forbidigo // starting plugins is what this file is for
		return err
	}
	if l.at != nil {
		err = l.at.Host.Do(run)
	} else {
		err = run()
	}
	if err != nil {
		p.lifeline.Close()
		outR.Close()
		errR.Close()
		p.hangUp()
		return nil, fmt.Errorf("executing %s: %w", k.conf.Binary, err)
	}
	p.pid = p.proc.Pid
	for r, t := range map[*os.File]*transcript{outR: p.stdout, errR: p.stderr} {
		p.readers.Go(func() {
			_, _ = io.Copy(t, r) // it ends with the process, or with its deadline
		})
	}
	go func() {
		p.fate = await(p.pid)
		close(p.done)
	}()
	return p, nil
}

// environment is what a host gives.
func (k *Checker) environment(l launch, p *process) []string {
	var env []string
	if !l.bare {
		env = append(env, "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "HOME=/")
		// A directory of its own, so that what is left in it is seen.
		env = append(env, "TMPDIR="+filepath.Join(p.work, "tmp"))
	}
	if !l.byHand {
		c := handshake.Config()
		env = append(
			env, c.MagicCookieKey+"="+c.MagicCookieValue, handshake.EnvLifelineFD+"=3", handshake.EnvSocketDir+"="+p.dir,
			fmt.Sprintf("PLUGIN_PROTOCOL_VERSIONS=%d", c.ProtocolVersion), "PLUGIN_MIN_PORT=10000", "PLUGIN_MAX_PORT=25000",
			fmt.Sprintf("%s=%d", handshake.EnvPeerUID, os.Geteuid()),
		)
		if p.sender != nil {
			env = append(env, handshake.EnvDescriptorsFD+"=5")
		}
	}
	return append(env, k.conf.Env...)
}

// greet waits for the handshake's line and takes it apart.
func (p *process) greet(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	select {
	case <-p.stdout.lines:
	case <-p.done:
		p.drain()
		if !strings.Contains(p.stdout.String(), "\n") {
			return broken("it ended (%s) before it had shaken hands%s", p.fate, p.said())
		}
	case <-ctx.Done():
		return broken("no line on standard output within %s%s", startLimit, p.said())
	}
	p.line, _, _ = strings.Cut(p.stdout.String(), "\n")
	parts := strings.Split(strings.TrimSpace(p.line), "|")
	switch {
	case len(parts) < 5 || parts[0] != "1":
		return &fault{
			fmt.Sprintf("the first line on its standard output is %q, which is no handshake", p.line),
			"print nothing before it: not in init functions, not in libraries; give descriptor 1 to the log as the first act, and keep the original for the handshake",
		}
	case parts[1] != fmt.Sprint(handshake.AppProtocol):
		return broken("it speaks version %s of the protocol: %q", parts[1], p.line)
	case parts[2] != "unix":
		return &fault{fmt.Sprintf("it listens on %s: %q", parts[2], p.line), "listen on a Unix socket, never on a network: anybody could connect"}
	case parts[4] != "grpc":
		return broken("it speaks %s and not grpc: %q", parts[4], p.line)
	case filepath.Dir(parts[3]) != p.dir:
		return &fault{fmt.Sprintf("its socket is %s, and %s=%s", parts[3], handshake.EnvSocketDir, p.dir), "make the socket in the directory that the host names"}
	}
	p.socket = parts[3]
	return nil
}

// said is the end of what it printed, for an error.
func (p *process) said() string {
	text := strings.TrimSpace(p.stderr.String())
	if text == "" {
		return ""
	}
	lines := strings.Split(text, "\n")
	return "; it said: " + lines[len(lines)-1]
}

// connect speaks to it, and makes sure that it is who answers.
func (p *process) connect(ctx context.Context) error {
	var err error
	want := handshake.Only(func() (int, uint32) { return p.pid, p.uid })
	p.conn, err = grpc.NewClient("passthrough:///plugin",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", p.socket)
		}),
		grpc.WithTransportCredentials(handshake.Credentials(want)),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)), grpc.WithDisableServiceConfig(), grpc.WithDisableRetry(),
	)
	if err != nil {
		return err
	}
	p.base, p.secrets, p.hooks = pluginv1.NewBaseClient(p.conn), pluginv1.NewSecretsClient(p.conn), pluginv1.NewHooksClient(p.conn)
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	p.conn.Connect()
	for {
		switch s := p.conn.GetState(); s {
		case connectivity.Ready:
			p.readers.Go(p.discard)
			return nil
		case connectivity.TransientFailure, connectivity.Shutdown:
			return broken("its socket accepts no connection of its host%s", p.said())
		default:
			if !p.conn.WaitForStateChange(ctx, s) {
				return broken("no greeting at its socket within %s%s", startLimit, p.said())
			}
		}
	}
}

// discard takes what go-plugin's server makes of a plugin's standard output: one that
// was not made with the SDK would block if nobody did.
func (p *process) discard() {
	var nothing pluginv1.HealthRequest // any message without fields will do
	stream, err := p.conn.NewStream(context.Background(), &grpc.StreamDesc{ServerStreams: true}, "/plugin.GRPCStdio/StreamStdio")
	if err != nil || stream.SendMsg(&nothing) != nil || stream.CloseSend() != nil {
		return
	}
	for stream.RecvMsg(&nothing) == nil {
	}
}

// start starts it as a host does, and connects.
func (k *Checker) start(ctx context.Context, l launch) (*process, error) {
	p, err := k.spawn(l)
	if err != nil {
		return nil, err
	}
	if err = p.greet(ctx); err == nil {
		err = p.connect(ctx)
	}
	if err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

// ended waits for the end, and tells whether it came.
func (p *process) ended(limit time.Duration) bool {
	select {
	case <-p.done:
		return true
	case <-time.After(limit):
		return false
	}
}

// drain waits until what an ended process has printed is read. Somebody else may
// hold its pipes.
func (p *process) drain() {
	for _, r := range p.pipes {
		_ = r.SetReadDeadline(time.Now().Add(time.Second)) // then it is read for longer
	}
	if p.conn != nil {
		_ = p.conn.Close() // or its stream would never end
	}
	p.readers.Wait()
}

// close ends it, whatever state it is in.
func (p *process) close() {
	p.closing.Do(func() {
		p.kill()
		<-p.done
		_, _ = p.proc.Wait() // its fate is known
		p.drain()
		p.hangUp()
		for _, f := range append(p.pipes, p.lifeline) {
			f.Close()
		}
	})
}

// hangUp closes the side channel.
func (p *process) hangUp() {
	if p.sender != nil {
		p.sender.Close()
	}
}

// kill kills it, with its process group, as a host does. As long as it is not reaped
// the number is nobody else's.
func (p *process) kill() {
	if err := syscall.Kill(-p.proc.Pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		_ = p.proc.Kill() // it has ended already
	}
}

// socketGone tells whether the socket was removed.
func (p *process) socketGone() error {
	if _, err := os.Lstat(p.socket); !errors.Is(err, os.ErrNotExist) {
		return broken("its socket %s is still there", p.socket)
	}
	return nil
}
