package netuserspace

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/netlab"
	"github.com/nucleus-runtime/nucleus/plugins/network/netuserspace/internal/fakeinit"
	"github.com/nucleus-runtime/nucleus/plugins/network/netuserspace/internal/inside"
	"github.com/nucleus-runtime/nucleus/sdk/network"
)

// role makes this program init of a sandbox, or the plugin's process.
const role = "NETUSERSPACE_TEST_ROLE"

func TestMain(m *testing.M) {
	run := map[string]func() error{"init": initMain, "plugin": pluginMain}[os.Getenv(role)]
	if run == nil {
		os.Exit(m.Run())
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, os.Getenv(role)+":", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// opened is what init answers, with the files beside it.
type opened struct{ Names, Missing []string }

// initMain does init's part in a user and network namespace of its own, which stays
// until standard input ends.
func initMain() error {
	in := json.NewDecoder(os.Stdin)
	var r network.PrepareResponse
	if err := in.Decode(&r); err != nil {
		return err
	}
	files, missing, err := fakeinit.Do(&r)
	if err != nil {
		return err
	}
	o := opened{Missing: missing}
	var fds []int
	for _, f := range files {
		o.Names = append(o.Names, f.Name())
		fds = append(fds, int(f.Fd()))
	}
	b, err := json.Marshal(o)
	if err != nil {
		return err
	}
	if err := unix.Sendmsg(3, b, unix.UnixRights(fds...), nil, 0); err != nil {
		return err
	}
	for _, f := range files {
		f.Close()
	}
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// attaching is what the plugin's process is told; its files are those from 4.
type attaching struct {
	Request network.AttachRequest
	Names   []string
	Files   uint64 // how many descriptors the process may have, if it is said
}

// said is what the plugin's process tells, a line each.
type said struct {
	Error    string
	Attached *network.AttachResponse
	Denied   *network.Denial
	Status   *network.Status
}

// pluginMain attaches one sandbox in the host's namespace, and tells its status for
// each line that comes.
func pluginMain() error {
	lines := bufio.NewReader(os.Stdin)
	var a attaching
	line, err := lines.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &a)
	}
	if err != nil {
		return err
	}
	if a.Files > 0 {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: a.Files, Max: a.Files}); err != nil {
			return err
		}
	}
	for i, name := range a.Names {
		a.Request.Files = append(a.Request.Files, os.NewFile(uintptr(4+i), name))
	}
	var mu sync.Mutex
	out := json.NewEncoder(os.Stdout)
	tell := func(s said) {
		mu.Lock()
		defer mu.Unlock()
		_ = out.Encode(s)
	}
	n := New()
	ctx := context.Background()
	resp, err := n.Attach(ctx, &a.Request)
	if err != nil {
		tell(said{Error: err.Error()})
		return nil
	}
	tell(said{Attached: resp})
	watched := make(chan error, 1)
	go func() {
		watched <- n.Watch(ctx, &network.WatchRequest{SandboxID: "sb"}, func(d network.Denial) error { tell(said{Denied: &d}); return nil })
	}()
	for {
		if _, err := lines.ReadString('\n'); err != nil {
			_, err := n.Detach(ctx, &network.DetachRequest{Call: a.Request.Call})
			return errors.Join(err, <-watched)
		}
		st, err := n.Status(ctx, &network.StatusRequest{SandboxID: "sb"})
		if err != nil {
			return err
		}
		tell(said{Status: st})
	}
}

// sandbox is a network namespace with a user namespace of its own, and the plugin that
// serves it, as a user without privileges.
type sandbox struct {
	t        testing.TB
	net      *os.File
	plugin   *exec.Cmd
	stdin    io.WriteCloser
	attached *network.AttachResponse
	denials  chan network.Denial
	told     []network.Denial // of denials, what wantDenial has taken
	status   chan *network.Status
	ended    chan struct{}
}

type options struct {
	egress  network.Egress
	ports   []network.PortMap
	without []string // openings and setups that this kernel is to lack
	files   uint64   // how many descriptors the plugin may have
	network *Network
}

// What holds for all sandboxes of a test: lacks is what its kernel has not, and with taken
// all that the plugin is told of is a device that somebody takes over. The kernel can be
// that somebody as well.
var (
	lacks []string
	taken bool
)

// byNetstack tells whether flows come by the tap device, and a stack in user space.
func byNetstack() bool { return taken || contains(lacks, inside.Capture) }

// attach fails where Attach does.
func attach(t testing.TB, lab *netlab.Lab, o options) *sandbox {
	t.Helper()
	s, err := tryAttach(t, lab, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func tryAttach(t testing.TB, lab *netlab.Lab, o options) (*sandbox, error) {
	t.Helper()
	if o.network == nil {
		o.network = New()
	}
	r, err := o.network.Prepare(t.Context(), &network.PrepareRequest{Egress: o.egress, Ports: o.ports, OwnStack: taken})
	if err != nil {
		return nil, err
	}
	o.without = append(o.without, lacks...)
	var lacking []string
	var openings []network.Opening
	for _, op := range r.Openings {
		if contains(o.without, op.Name) {
			lacking = append(lacking, op.Name)
		} else {
			openings = append(openings, op)
		}
	}
	r.Openings = openings
	var setups []network.Setup
	for _, st := range r.Setups {
		if contains(o.without, st.Name) {
			lacking = append(lacking, st.Name)
		} else {
			setups = append(setups, st)
		}
	}
	r.Setups = setups
	s := &sandbox{t: t, denials: make(chan network.Denial, 4096), status: make(chan *network.Status, 1), ended: make(chan struct{})}
	files, got := s.startInit(r)
	a := attaching{Names: got.Names, Files: o.files, Request: network.AttachRequest{
		Call: network.Call{SandboxID: "sb"}, IfName: "eth0", Ports: o.ports, Egress: o.egress, Prepared: r.Handle, Missing: append(got.Missing, lacking...), OwnStack: taken,
	}}
	if taken {
		s.do(takeOver)
	}
	return s, s.startPlugin(lab, a, files)
}

func contains(all []string, one string) bool {
	for _, s := range all {
		if s == one {
			return true
		}
	}
	return false
}

func (s *sandbox) startInit(r *network.PrepareResponse) ([]*os.File, opened) {
	t := s.t
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "init")
	defer unix.Close(pair[0])
	c := exec.Command("/proc/self/exe")
	c.Env = append(os.Environ(), role+"=init")
	c.ExtraFiles, c.Stderr = []*os.File{theirs}, os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET, Credential: &syscall.Credential{}, Pdeathsig: syscall.SIGKILL,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}, GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
	}
	in, err := c.StdinPipe()
	if err == nil {
		err = c.Start()
	}
	theirs.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); _ = c.Wait() })
	if err := json.NewEncoder(in).Encode(r); err != nil {
		t.Fatal(err)
	}
	b, oob := make([]byte, 64<<10), make([]byte, unix.CmsgSpace(4*253))
	n, noob, _, _, err := unix.Recvmsg(pair[0], b, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil || n == 0 {
		t.Fatalf("init: %v", err)
	}
	var o opened
	if err := json.Unmarshal(b[:n], &o); err != nil {
		t.Fatal(err)
	}
	if s.net, err = os.Open(fmt.Sprintf("/proc/%d/ns/net", c.Process.Pid)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.net.Close() })
	ms, err := unix.ParseSocketControlMessage(oob[:noob])
	if err != nil {
		t.Fatal(err)
	}
	var files []*os.File
	for _, m := range ms {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			t.Fatal(err)
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "opening"))
		}
	}
	return files, o
}

// takeOver has the kernel look for whom it sends to, as everybody does but who was told
// not to, and know its address of IPv6 for its own. It would by itself, but later.
func takeOver() {
	link, err := netlink.LinkByName(inside.IfName)
	if err != nil {
		panic(err)
	}
	if err := netlink.LinkSetARPOn(link); err != nil {
		panic(err)
	}
	addrs, err := netlink.AddrList(link, unix.AF_INET6)
	if err != nil {
		panic(err)
	}
	for _, a := range addrs {
		own := netlink.Route{LinkIndex: 1, Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST, Dst: a.IPNet}
		if err := netlink.RouteReplace(&own); err != nil {
			panic(err)
		}
	}
}

const nobody = 65534

func (s *sandbox) startPlugin(lab *netlab.Lab, a attaching, files []*os.File) error {
	t := s.t
	t.Helper()
	self, err := os.Open("/proc/self/exe") // its directory is not nobody's to enter
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	s.plugin = lab.Host.CommandAs(context.Background(), nobody, nobody, "/proc/self/fd/3")
	s.plugin.Env = append(os.Environ(), role+"=plugin")
	s.plugin.ExtraFiles, s.plugin.Stderr = append([]*os.File{self}, files...), os.Stderr
	out, err := s.plugin.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if s.stdin, err = s.plugin.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := s.plugin.Start(); err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		f.Close()
	}
	t.Cleanup(s.detach)
	if err := json.NewEncoder(s.stdin).Encode(a); err != nil {
		t.Fatal(err)
	}
	answers := json.NewDecoder(out)
	var first said
	if err := answers.Decode(&first); err != nil {
		t.Fatalf("the plugin: %v", err)
	}
	go s.listen(answers)
	s.attached = first.Attached
	if first.Error != "" {
		return errors.New(first.Error)
	}
	return nil
}

func (s *sandbox) listen(answers *json.Decoder) {
	defer close(s.ended)
	for {
		var x said
		if answers.Decode(&x) != nil {
			return
		}
		switch {
		case x.Denied != nil:
			s.denials <- *x.Denied
		case x.Status != nil:
			s.status <- x.Status
		}
	}
}

// detach ends the plugin as a host would, once.
func (s *sandbox) detach() {
	s.stdin.Close()
	<-s.ended
	_ = s.plugin.Wait()
}

// toldUntilTheEnd detaches, and gives what was told of since the start.
func (s *sandbox) toldUntilTheEnd() (all []network.Denial) {
	go func() {
		s.detach()
		close(s.denials)
	}()
	for d := range s.denials {
		all = append(all, d)
	}
	return all
}

func (s *sandbox) askStatus() *network.Status {
	s.t.Helper()
	if _, err := io.WriteString(s.stdin, "\n"); err != nil {
		s.t.Fatal(err)
	}
	select {
	case st := <-s.status:
		return st
	case <-time.After(10 * time.Second):
		s.t.Fatal("no status")
		return nil
	}
}

// do calls f on a thread in the sandbox.
func (s *sandbox) do(f func()) {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for ever: the thread ends with this goroutine
		err := os.NewSyscallError("setns", unix.Setns(int(s.net.Fd()), unix.CLONE_NEWNET))
		if err == nil {
			f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		s.t.Error(err)
	}
}

// dial connects from the sandbox to a literal address.
func (s *sandbox) dial(proto, to string) (c net.Conn, err error) {
	return s.dialBy(net.Dialer{Timeout: 15 * time.Second}, proto, to)
}

func (s *sandbox) dialBy(d net.Dialer, proto, to string) (c net.Conn, err error) {
	s.do(func() { c, err = d.Dial(proto, to) })
	return c, err
}

// withOption has a dialer's sockets have an option.
func withOption(level, name, value int) func(_, _ string, raw syscall.RawConn) error {
	return func(_, _ string, raw syscall.RawConn) error {
		var set error
		err := raw.Control(func(fd uintptr) { set = unix.SetsockoptInt(int(fd), level, name, value) })
		return errors.Join(err, set)
	}
}

func (s *sandbox) mustDial(proto, to string) net.Conn {
	s.t.Helper()
	c, err := s.dial(proto, to)
	if err != nil {
		s.t.Fatalf("%s %s: %v", proto, to, err)
	}
	s.t.Cleanup(func() { c.Close() })
	return c
}

func (s *sandbox) listenAt(proto, at string) net.Listener {
	s.t.Helper()
	var l net.Listener
	var err error
	s.do(func() { l, err = net.Listen(proto, at) })
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { l.Close() })
	return l
}

// ask gives the echo server's line: where it was reached, as what.
func (s *sandbox) ask(proto, to string) (string, error) {
	c, err := s.dial(proto, to)
	if err != nil {
		return "", err
	}
	defer c.Close()
	return answer(c)
}

// answer gives what the echo server says to a connection.
func answer(c net.Conn) (string, error) {
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := c.Write([]byte("hello")); err != nil {
		return "", err
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	return strings.TrimSpace(line), err
}

// resolve asks the sandbox's resolver for one address.
func (s *sandbox) resolve(name string, v6 bool) (netip.Addr, error) {
	return s.resolveBy("udp", name, v6)
}

func (s *sandbox) resolveBy(proto, name string, v6 bool) (netip.Addr, error) {
	c, err := s.dial(proto, netip.AddrPortFrom(s.attached.DNS.Servers[0], 53).String())
	if err != nil {
		return netip.Addr{}, err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	m := new(dns.Msg).SetQuestion(dns.Fqdn(name), dns.TypeA)
	if v6 {
		m.Question[0].Qtype = dns.TypeAAAA
	}
	answer, _, err := new(dns.Client).ExchangeWithConn(m, &dns.Conn{Conn: c})
	if err != nil {
		return netip.Addr{}, err
	}
	for _, rr := range answer.Answer {
		switch rr := rr.(type) {
		case *dns.A:
			return netip.AddrFrom4([4]byte(rr.A.To4())), nil
		case *dns.AAAA:
			return netip.AddrFrom16([16]byte(rr.AAAA)), nil
		}
	}
	return netip.Addr{}, fmt.Errorf("%s: %s", name, dns.RcodeToString[answer.Rcode])
}
