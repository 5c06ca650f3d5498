package netbridge

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/netlab"
	"github.com/nucleus-runtime/nucleus/plugins/network/internal/probe"
	"github.com/nucleus-runtime/nucleus/sdk/config"
	"github.com/nucleus-runtime/nucleus/sdk/errs"
	"github.com/nucleus-runtime/nucleus/sdk/network"
)

// role makes this program init of a sandbox, or the plugin's process.
const role = "NETBRIDGE_TEST_ROLE"

func TestMain(m *testing.M) {
	run := map[string]func() error{"init": initMain, "plugin": pluginMain}[os.Getenv(role)]
	if run == nil {
		code := m.Run()
		if copied != "" {
			_ = os.RemoveAll(copied)
		}
		os.Exit(code)
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, os.Getenv(role)+":", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func sendFiles(sock int, files []*os.File) error {
	names := []string{}
	var fds []int
	for _, f := range files {
		names = append(names, f.Name())
		fds = append(fds, int(f.Fd()))
	}
	b, err := json.Marshal(names)
	if err != nil {
		return err
	}
	return unix.Sendmsg(sock, b, unix.UnixRights(fds...), nil, 0)
}

func receiveFiles(sock int) ([]*os.File, error) {
	buf, oob := make([]byte, 4096), make([]byte, 4096)
	n, on, _, _, err := unix.Recvmsg(sock, buf, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return nil, err
	}
	var names []string
	if err := json.Unmarshal(buf[:n], &names); err != nil {
		return nil, err
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:on])
	if err != nil || len(msgs) == 0 {
		return nil, fmt.Errorf("no descriptors came: %w", err)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil {
		return nil, err
	}
	var out []*os.File
	for i, fd := range fds {
		out = append(out, os.NewFile(uintptr(fd), names[i]))
	}
	return out, nil
}

// initMain opens what the plugin asks for, as init does in a namespace of its own, and
// then tries what comes on standard input.
func initMain() error {
	in := json.NewDecoder(os.Stdin)
	var r network.PrepareResponse
	if err := in.Decode(&r); err != nil {
		return err
	}
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		return err
	}
	s, err := open(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	h := &host{batch: s}
	if err := h.up(context.Background(), lo.Index); err != nil {
		return err
	}
	_ = os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 0"), 0)
	var files []*os.File
	for _, o := range r.Openings {
		f, err := opening1(o)
		if err != nil {
			return fmt.Errorf("%s: %w", o.Name, err)
		}
		files = append(files, f)
	}
	if err := sendFiles(3, files); err != nil {
		return err
	}
	for _, f := range files {
		f.Close()
	}
	out := json.NewEncoder(os.Stdout)
	for {
		var ps []probe.Probe
		if err := in.Decode(&ps); err != nil {
			return nil
		}
		probe.Run(context.Background(), ps, func(r probe.Result) { _ = out.Encode(r) })
	}
}

func opening1(o network.Opening) (*os.File, error) {
	named := func(f *os.File, err error) (*os.File, error) {
		if err != nil {
			return nil, err
		}
		defer f.Close()
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 10)
		return os.NewFile(uintptr(fd), o.Name), err
	}
	switch o.Kind {
	case network.NetNS:
		return named(os.Open("/proc/self/ns/net"))
	case network.RouteSocket:
		s, err := open(unix.NETLINK_ROUTE)
		return os.NewFile(uintptr(s.fd), o.Name), err
	case network.ListenTCP:
		l, err := net.Listen("tcp", o.Address.String())
		if err != nil {
			return nil, err
		}
		defer l.Close()
		return named(l.(*net.TCPListener).File())
	case network.ListenUDP:
		u, err := net.ListenPacket("udp", o.Address.String())
		if err != nil {
			return nil, err
		}
		defer u.Close()
		return named(u.(*net.UDPConn).File())
	default:
		return nil, fmt.Errorf("an opening of kind %d", o.Kind)
	}
}

// command is what the plugin's process is told, and answer what it says.
type command struct {
	Verb     string
	Config   *Config
	Instance *Instance
	ID       string
	Attach   *network.AttachRequest
	Detach   *network.DetachRequest
	Status   *network.StatusRequest
	GC       *network.GCRequest
}

type answer struct {
	Error    string
	Code     errs.Code
	Reason   string
	Port     int
	Attached *network.AttachResponse
	Removed  []string
	Status   *network.Status
	GC       *network.GCResponse
	Denied   *network.Denial
	Took     time.Duration
}

func pluginMain() error {
	n := New()
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	var mu sync.Mutex
	tell := func(a answer) {
		mu.Lock()
		defer mu.Unlock()
		_ = out.Encode(a)
	}
	for {
		var c command
		if err := in.Decode(&c); err != nil {
			return nil
		}
		var files []*os.File
		if c.Verb == "attach" {
			var err error
			if files, err = receiveFiles(3); err != nil {
				return err
			}
		}
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		var a answer
		var err error
		start := time.Now()
		switch c.Verb {
		case "configure":
			err = n.Configure(ctx, config.Instance{}, *c.Config)
		case "instance":
			err = n.ConfigureInstance(ctx, config.Instance{ID: c.ID}, *c.Instance)
		case "attach":
			c.Attach.Files = files
			a.Attached, err = n.Attach(ctx, c.Attach)
			if err == nil {
				go func() {
					_ = n.Watch(context.Background(), &network.WatchRequest{SandboxID: c.Attach.Call.SandboxID, InstanceID: c.Attach.Call.InstanceID},
						func(d network.Denial) error { tell(answer{Denied: &d}); return nil })
				}()
			} else {
				for _, f := range files {
					f.Close()
				}
			}
		case "detach":
			a.Removed, err = n.Detach(ctx, c.Detach)
		case "status":
			a.Status, err = n.Status(ctx, c.Status)
		case "gc":
			a.GC, err = n.GC(ctx, c.GC)
		}
		a.Took = time.Since(start)
		cancel()
		if err != nil {
			e := errs.Of(err)
			a.Error, a.Code, a.Reason, a.Port = err.Error(), e.Code, e.Reason, network.PortOf(err)
		}
		tell(a)
	}
}

// process is the plugin as the core runs it: a user without privileges, but for two
// capabilities, in the host's network namespace.
type process struct {
	t       testing.TB
	cmd     *exec.Cmd
	in      *json.Encoder
	sock    int
	answers chan answer
	denials chan network.Denial
	kept    []network.Denial // those that nobody has waited for yet
	mu      sync.Mutex
}

// copied is the directory of readable's copy.
var copied string

// readable is this program where any user may execute it.
var readable = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "netbridge")
	if err != nil {
		return "", err
	}
	copied = dir
	if err := os.Chmod(dir, 0o755); err != nil {
		return "", err
	}
	b, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "test")
	return path, os.WriteFile(path, b, 0o755)
})

func start(t testing.TB, lab *netlab.Lab) *process {
	t.Helper()
	exe, err := readable()
	if err != nil {
		t.Fatal(err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	const caps = "+net_admin,+net_bind_service"
	p := &process{t: t, sock: pair[0], answers: make(chan answer, 1), denials: make(chan network.Denial, 4096)}
	p.cmd = lab.Host.Command("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all,"+caps, "--inh-caps=-all,"+caps, "--ambient-caps=-all,"+caps,
		"--no-new-privs", exe)
	p.cmd.Env = append(os.Environ(), role+"=plugin")
	other := os.NewFile(uintptr(pair[1]), "files")
	p.cmd.ExtraFiles = []*os.File{other}
	p.cmd.Stderr = os.Stderr
	stdin, err := p.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	other.Close()
	p.in = json.NewEncoder(stdin)
	go func() {
		defer close(p.answers)
		dec := json.NewDecoder(stdout)
		for {
			var a answer
			if dec.Decode(&a) != nil {
				return
			}
			if a.Denied != nil {
				p.denials <- *a.Denied
				continue
			}
			p.answers <- a
		}
	}()
	t.Cleanup(func() { p.kill(); unix.Close(p.sock) })
	return p
}

// kill ends the process as the core does.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

func (p *process) do(c command, files ...*os.File) answer {
	p.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if files != nil {
		if err := sendFiles(p.sock, files); err != nil {
			p.t.Error(err)
		}
	}
	if err := p.in.Encode(c); err != nil {
		p.t.Error(err)
	}
	a, ok := <-p.answers
	if !ok {
		p.t.Error("the plugin's process has ended")
	}
	return a
}

// box is a sandbox: a user and a network namespace with a process in it.
type box struct {
	t     testing.TB
	id    string
	cmd   *exec.Cmd
	stdin io.WriteCloser
	out   *json.Decoder
	files []*os.File
}

func newBox(t testing.TB, id string) *box {
	t.Helper()
	prep, err := New().Prepare(t.Context(), &network.PrepareRequest{})
	if err != nil {
		t.Fatal(err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	b := &box{t: t, id: id}
	b.cmd = exec.Command("/proc/self/exe")
	b.cmd.Env = append(os.Environ(), role+"=init")
	b.cmd.Stderr = os.Stderr
	b.cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 100000, Size: 1000}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 100000, Size: 1000}},
		Credential:  &syscall.Credential{Uid: 0, Gid: 0, NoSetGroups: true},
	}
	exe, err := readable()
	if err != nil {
		t.Fatal(err)
	}
	b.cmd.Path = exe
	other := os.NewFile(uintptr(pair[1]), "files")
	b.cmd.ExtraFiles = []*os.File{other}
	if b.stdin, err = b.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	stdout, err := b.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	other.Close()
	b.out = json.NewDecoder(bufio.NewReader(stdout))
	t.Cleanup(b.end)
	if err := json.NewEncoder(b.stdin).Encode(prep); err != nil {
		t.Fatal(err)
	}
	b.files, err = receiveFiles(pair[0])
	unix.Close(pair[0])
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// end ends the sandbox, and its namespaces.
func (b *box) end() {
	_ = b.cmd.Process.Kill()
	_ = b.cmd.Wait()
	b.closeFiles()
}

func (b *box) closeFiles() {
	for _, f := range b.files {
		f.Close()
	}
	b.files = nil
}

// try tries inside.
func (b *box) try(ps ...probe.Probe) map[string]probe.Result {
	b.t.Helper()
	for i := range ps {
		if ps[i].ID == "" {
			ps[i].ID = fmt.Sprintf("%s%s %s%s", ps[i].Kind, ps[i].Family, ps[i].To, ps[i].Name)
		}
	}
	if err := json.NewEncoder(b.stdin).Encode(ps); err != nil {
		b.t.Fatal(err)
	}
	out := make(map[string]probe.Result)
	for range ps {
		var r probe.Result
		if err := b.out.Decode(&r); err != nil {
			b.t.Fatal(err)
		}
		out[r.ID] = r
	}
	return out
}

func (b *box) call() network.Call { return network.Call{RequestID: "r-" + b.id, SandboxID: b.id} }

// attach fails where Attach does.
func (p *process) attach(b *box, r network.AttachRequest) answer {
	p.t.Helper()
	a := p.tryAttach(b, r)
	if a.Error != "" {
		p.t.Fatalf("attaching %s: %s", b.id, a.Error)
	}
	return a
}

func (p *process) tryAttach(b *box, r network.AttachRequest) answer {
	p.t.Helper()
	if r.Call.SandboxID == "" {
		r.Call = b.call()
	}
	a := p.do(command{Verb: "attach", Attach: &r}, b.files...)
	// The namespace would stay as long as this process has it open.
	if a.Error == "" {
		b.closeFiles()
	}
	return a
}

func (p *process) detach(b *box) answer {
	p.t.Helper()
	a := p.do(command{Verb: "detach", Detach: &network.DetachRequest{Call: b.call()}})
	if a.Error != "" {
		p.t.Errorf("detaching %s: %s", b.id, a.Error)
	}
	return a
}

func (p *process) status(b *box) *network.Status {
	p.t.Helper()
	a := p.do(command{Verb: "status", Status: &network.StatusRequest{SandboxID: b.id}})
	if a.Error != "" {
		p.t.Fatal(a.Error)
	}
	return a.Status
}

// denied waits for a denial that is like this.
func (p *process) denied(like func(network.Denial) bool) (network.Denial, error) {
	after := time.After(5 * time.Second)
	for i, d := range p.kept {
		if like(d) {
			p.kept = slices.Delete(p.kept, i, i+1)
			return d, nil
		}
	}
	for {
		select {
		case d := <-p.denials:
			if like(d) {
				return d, nil
			}
			p.kept = append(p.kept, d)
		case <-after:
			return network.Denial{}, fmt.Errorf("no such denial, but %+v", p.kept)
		}
	}
}

// clean fails if the host has changed.
func clean(t testing.TB, lab *netlab.Lab, before netlab.Census) {
	t.Helper()
	var changed []string
	for range 50 {
		if changed = before.Changed(lab.Host.Census(t)); len(changed) == 0 {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Errorf("left on the host: %q", changed)
}
