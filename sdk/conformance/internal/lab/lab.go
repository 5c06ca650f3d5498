package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Uplink is the host's one link.
const Uplink = "uplink0"

// The ends of the uplink. All addresses are public ones, so that a policy that denies
// them does so since no rule names them.
var (
	hostV4    = netip.MustParsePrefix("151.101.7.2/24")
	hostV6    = netip.MustParsePrefix("2a04:4e42:7::2/64")
	gatewayV4 = netip.MustParsePrefix("151.101.7.1/24")
	gatewayV6 = netip.MustParsePrefix("2a04:4e42:7::1/64")
)

// Somewhere is behind the uplink, with a server at each of Ports; so is Elsewhere.
var (
	SomewhereV4 = netip.MustParseAddr("93.184.216.34")
	SomewhereV6 = netip.MustParseAddr("2606:2800:220::34")
	ElsewhereV4 = netip.MustParseAddr("93.184.216.99")
	ElsewhereV6 = netip.MustParseAddr("2606:2800:220::99")
)

// Ports of the servers behind the uplink.
const (
	Port      = 8080
	OtherPort = 8081
)

// Lab is a host, and what is behind its uplink.
type Lab struct {
	Host    *Namespace
	Uplink  *Capture // sees all that leaves the host
	beyond  *Namespace
	servers []net.Listener
}

// New makes a laboratory. Forwarding is the operator's part of a network that forwards
// packets.
func New(forwarding bool) (_ *Lab, err error) {
	l := &Lab{}
	defer func() {
		if err != nil {
			l.Close()
		}
	}()
	if l.Host, err = newNamespace(); err != nil {
		return nil, fmt.Errorf("making a network namespace: %w", err)
	}
	if l.beyond, err = newNamespace(); err != nil {
		return nil, fmt.Errorf("making a network namespace: %w", err)
	}
	if err := l.cable(forwarding); err != nil {
		return nil, fmt.Errorf("connecting network namespaces: %w", err)
	}
	if l.Uplink, err = Listen(l.beyond, Uplink); err != nil {
		return nil, err
	}
	for _, port := range []int{Port, OtherPort} {
		for _, at := range []string{"0.0.0.0", "::"} {
			s, err := l.beyond.Serve(at, port, Greeting)
			if err != nil {
				return nil, err
			}
			l.servers = append(l.servers, s)
		}
	}
	return l, l.ready()
}

// ready waits for IPv6, which the kernel has on a link some time after it is up.
func (l *Lab) ready() (err error) {
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if _, err = l.Host.Ask(netip.AddrPortFrom(gatewayV6.Addr(), Port), time.Second); err == nil {
			return nil
		}
	}
	return fmt.Errorf("the uplink is not ready: %w", err)
}

// hostIndex is not the number of the other end in its namespace: the kernel takes a
// link whose other end has the same number for one without, and lets it wait up to a
// second to be up (linkwatch_urgent_event).
const hostIndex = 7

func (l *Lab) cable(forwarding bool) error {
	if err := l.beyond.Do(func() error { return AddVeth(Uplink, Uplink, l.Host.file, hostIndex) }); err != nil {
		return err
	}
	if err := l.Host.Do(func() error {
		err := errors.Join(Here.AddAddr(Uplink, hostV4), Here.AddAddr(Uplink, hostV6), Up(Uplink))
		if forwarding {
			err = errors.Join(err, SetSysctl("ipv4/ip_forward", "1"), SetSysctl("ipv6/conf/all/forwarding", "1"))
		}
		return errors.Join(err, everything(gatewayV4.Addr()), everything(gatewayV6.Addr()))
	}); err != nil {
		return err
	}
	return l.beyond.Do(func() error {
		err := errors.Join(Here.AddAddr(Uplink, gatewayV4), Here.AddAddr(Uplink, gatewayV6), Up(Uplink))
		for _, a := range []netip.Addr{SomewhereV4, SomewhereV6, ElsewhereV4, ElsewhereV6} {
			err = errors.Join(err, Here.AddAddr("lo", netip.PrefixFrom(a, a.BitLen())))
		}
		// Back to the host whatever the source: translating addresses is no part of the
		// contract.
		return errors.Join(err, everything(hostV4.Addr()), everything(hostV6.Addr()))
	})
}

func everything(via netip.Addr) error {
	return Here.AddRoute(netip.PrefixFrom(map[bool]netip.Addr{true: netip.IPv4Unspecified(), false: netip.IPv6Unspecified()}[via.Is4()], 0), via, Uplink, 0)
}

// End stops all that is at work in it.
func (l *Lab) End() {
	for _, s := range l.servers {
		s.Close()
	}
	l.servers = nil
	if l.Uplink != nil {
		l.Uplink.Close()
		l.Uplink = nil
	}
}

// Close ends it, with its namespaces.
func (l *Lab) Close() {
	l.End()
	for _, n := range []*Namespace{l.Host, l.beyond} {
		if n != nil {
			n.Close()
		}
	}
}

// Greeting is what the servers behind the uplink say.
const Greeting = "behind the uplink"

// Serve greets who connects to a port, until it is closed.
func (n *Namespace) Serve(at string, port int, greeting string) (net.Listener, error) {
	var s net.Listener
	err := n.Do(func() (err error) {
		network := "tcp4"
		if strings.Contains(at, ":") {
			network = "tcp6"
		}
		var c net.ListenConfig
		s, err = c.Listen(context.Background(), network, net.JoinHostPort(at, fmt.Sprint(port)))
		return err
	})
	if err != nil {
		return nil, err
	}
	go func() { // it ends with the listener
		for {
			c, err := s.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = fmt.Fprintln(c, greeting)
				// Until the other end closes: what is in between may be slow to see it.
				_ = c.SetReadDeadline(time.Now().Add(time.Second))
				_, _ = io.Copy(io.Discard, c)
			}()
		}
	}()
	return s, nil
}

// Ask connects, and gives the greeting.
func (n *Namespace) Ask(to netip.AddrPort, limit time.Duration) (string, error) {
	var c net.Conn
	err := n.Do(func() (err error) {
		d := net.Dialer{Timeout: limit}
		c, err = d.DialContext(context.Background(), "tcp", to.String())
		return err
	})
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.SetReadDeadline(time.Now().Add(limit)); err != nil {
		return "", err
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	return strings.TrimSuffix(line, "\n"), err
}

// Sandbox is a process in a user namespace and a network namespace of its own.
type Sandbox struct {
	*Namespace
	Pid int

	proc   *os.Process
	life   *os.File
	ending sync.Once
}

// Outside is the first id outside of a sandbox's user namespace, which has Count.
const (
	Outside = 200000
	Count   = 65536
)

// NewSandbox starts one. It ends with this process at the latest.
func NewSandbox() (*Sandbox, error) {
	wait, life, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer wait.Close()
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: Outside, Size: Count}}
	proc, err := os.StartProcess("/bin/sh", []string{"sh", "-c", "read x"}, &os.ProcAttr{ //nolint:forbidigo // what has namespaces is a process
		Dir: "/", Env: []string{}, Files: []*os.File{wait},
		Sys: &syscall.SysProcAttr{
			Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET, UidMappings: ids, GidMappings: ids,
			GidMappingsEnableSetgroups: true, Credential: &syscall.Credential{},
		},
	})
	if err != nil {
		life.Close()
		return nil, fmt.Errorf("starting a process in namespaces of its own: %w", err)
	}
	s := &Sandbox{Namespace: &Namespace{}, Pid: proc.Pid, proc: proc, life: life}
	if s.file, err = os.Open(fmt.Sprintf("/proc/%d/ns/net", proc.Pid)); err == nil {
		err = s.Do(func() error { return Up("lo") })
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// End ends the process, and keeps the namespaces.
func (s *Sandbox) End() {
	s.ending.Do(func() {
		s.life.Close()
		_ = s.proc.Kill() // it is ending
		_, _ = s.proc.Wait()
	})
}

// Close ends it, with its namespaces.
func (s *Sandbox) Close() {
	s.End()
	s.Namespace.Close()
}
