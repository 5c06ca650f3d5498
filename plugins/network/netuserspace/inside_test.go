package netuserspace

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/netlab"
	"github.com/nucleus-runtime/nucleus/plugins/network/netuserspace/internal/inside"
	"github.com/nucleus-runtime/nucleus/sdk/errs"
	"github.com/nucleus-runtime/nucleus/sdk/network"
)

// serve answers each connection with who it seems to be.
func serve(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			_, _ = io.WriteString(c, c.RemoteAddr().String()+"\n")
			_, _ = io.Copy(c, c)
		}()
	}
}

func TestProgramsOfTheSandboxReachEachOther(t *testing.T) {
	netlab.Needs(t)
	lab := netlab.New(t)
	s := attach(t, lab, options{})
	go serve(s.listenAt("tcp", ":9000"))
	for _, a := range []string{"127.0.0.1", "127.9.9.9", "::1", inside.Address4.String(), inside.Address6.String(), "0.0.0.0"} {
		if got, err := s.ask("tcp", net.JoinHostPort(a, "9000")); err != nil {
			t.Errorf("%s: %q, %v", a, got, err)
		}
		if _, err := s.dial("tcp", net.JoinHostPort(a, "9001")); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s: %v where nobody listens", a, err)
		}
	}
	// What is bound to an address of lo does not leave, and is told so at once.
	for _, to := range []string{"93.184.216.34:443", "198.51.100.7:443"} {
		c, err := s.dialBy(net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}, Timeout: 3 * time.Second}, "tcp", to)
		if !errors.Is(err, syscall.EINVAL) {
			t.Errorf("from 127.0.0.1 to %s: %v", to, err)
		}
		if err == nil {
			c.Close()
		}
	}
	// The plugin's own port is no way around anything.
	for _, a := range []string{"127.0.0.54:1", "[::1]:1"} {
		if got, err := s.ask("tcp", a); err == nil {
			t.Errorf("%s: %q", a, got)
		}
	}
	if n := s.askStatus().Denied; n != 0 {
		t.Errorf("%d denials", n)
	}
}

func publish(at string, container uint16, proto string) network.PortMap {
	a := netip.MustParseAddrPort(at)
	return network.PortMap{HostIP: a.Addr(), HostPort: a.Port(), ContainerPort: container, Protocol: proto}
}

// clientSeen is as whom a server sees a client of the internet.
func clientSeen() string {
	if !byNetstack() {
		return "151.101.7.1"
	}
	return inside.Gateway4.String() // of the stack in user space
}

func TestPublishedPorts(t *testing.T) {
	netlab.Needs(t)
	lab := netlab.New(t)
	s := attach(t, lab, options{ports: []network.PortMap{
		publish("0.0.0.0:8080", 80, "tcp"), publish("[::]:8080", 80, "tcp"), publish("127.0.0.1:0", 80, "tcp"),
		publish("0.0.0.0:8080", 80, "udp"), publish("[::]:8080", 80, "udp"),
	}})
	go serve(s.listenAt("tcp", ":80"))
	s.do(func() {
		pc, err := net.ListenPacket("udp", ":80")
		if err != nil {
			t.Error(err)
			return
		}
		t.Cleanup(func() { pc.Close() })
		go func() {
			b := make([]byte, 65536)
			for {
				n, from, err := pc.ReadFrom(b)
				if err != nil {
					return
				}
				_, _ = pc.WriteTo(append([]byte(from.String()+"\n"), b[:n]...), from)
			}
		}()
	})
	anyPort := s.attached.Ports[2].HostPort
	if anyPort == 0 {
		t.Fatal("the host's port is not known")
	}
	for _, c := range []struct {
		from *netlab.Namespace
		at   string
		seen string // as whom the server sees the client
	}{
		{lab.Internet, "151.101.7.2:8080", clientSeen()},
		{lab.Internet, "[2a04:4e42:7::2]:8080", "192.0.0.1"},
		{lab.Host, "127.0.0.1:8080", "192.0.0.1"},
		{lab.Host, "[::1]:8080", "192.0.0.1"},
		{lab.Host, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), anyPort).String(), "192.0.0.1"},
	} {
		for _, proto := range []string{"tcp", "udp"} {
			if proto == "udp" && strings.HasSuffix(c.at, "8080") == false {
				continue
			}
			for range 3 { // sockets are used again
				conn, err := c.from.Dial(t.Context(), proto, c.at)
				if err != nil {
					t.Errorf("%s %s: %v", proto, c.at, err)
					continue
				}
				_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
				_, _ = io.WriteString(conn, "hello")
				line, err := bufio.NewReader(conn).ReadString('\n')
				if host, _, _ := net.SplitHostPort(strings.TrimSpace(line)); err != nil || strings.TrimPrefix(host, "::ffff:") != c.seen {
					t.Errorf("%s %s: seen as %q, want %s: %v", proto, c.at, line, c.seen, err)
				}
				conn.Close()
			}
		}
	}
	if _, err := lab.Internet.Dial(t.Context(), "tcp", netip.AddrPortFrom(netlab.HostV4, anyPort).String()); err == nil {
		t.Error("a port of the host's loopback is open to others")
	}
}

func TestMorePublishedConnectionsThanSockets(t *testing.T) {
	netlab.Needs(t)
	lab := netlab.New(t)
	s := attach(t, lab, options{ports: []network.PortMap{publish("127.0.0.1:8080", 80, "tcp")}})
	go serve(s.listenAt("tcp4", ":80"))
	data := random(100000)
	failed := make(chan error)
	const n = 1000
	slots := make(chan struct{}, inside.Pool+40)
	for range n {
		go func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			failed <- func() error {
				c, err := lab.Host.Dial(t.Context(), "tcp", "127.0.0.1:8080")
				if err != nil {
					return err
				}
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(20 * time.Second))
				go func() {
					_, _ = c.Write(data)
					_ = c.(*net.TCPConn).CloseWrite()
				}()
				b, err := io.ReadAll(c)
				if err == nil && !bytes.HasSuffix(b, data) {
					err = io.ErrUnexpectedEOF
				}
				return err
			}()
		}()
	}
	bad := 0
	for range n {
		if err := <-failed; err != nil {
			if bad++; bad < 5 {
				t.Error(err)
			}
		}
	}
	if bad > 0 {
		t.Errorf("%d of %d failed", bad, n)
	}
}

func TestAPortInUseIsNamed(t *testing.T) {
	netlab.Needs(t)
	lab := netlab.New(t)
	if _, err := lab.Host.Listen("tcp4", "127.0.0.1:8080"); err != nil {
		t.Fatal(err)
	}
	_, err := tryAttach(t, lab, options{ports: []network.PortMap{publish("127.0.0.1:8080", 80, "tcp")}})
	if err == nil || !strings.Contains(err.Error(), "127.0.0.1:8080") || !strings.Contains(err.Error(), "in use") {
		t.Errorf("error %v", err)
	}
	if _, err := tryAttach(t, lab, options{ports: []network.PortMap{publish("127.0.0.1:80", 80, "tcp")}}); err == nil || !strings.Contains(err.Error(), "127.0.0.1:80: ports below") {
		t.Errorf("error %v", err)
	}
}

func TestNoFlowOutlivesThePlugin(t *testing.T) {
	netlab.Needs(t)
	lab := netlab.New(t)
	lab.Echo(t, 443)
	for name, end := range map[string]func(*sandbox){
		"detached": (*sandbox).detach,
		"killed": func(s *sandbox) {
			_ = s.plugin.Process.Kill()
			<-s.ended
		},
	} {
		s := attach(t, lab, options{egress: anywhere()})
		c := s.mustDial("tcp", "93.184.216.34:443")
		u := s.mustDial("udp", "93.184.216.34:443")
		_, _ = u.Write([]byte("x"))
		_ = u.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := u.Read(make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
		end(s)
		lab.ForgetPackets(t)
		_ = c.SetDeadline(time.Now().Add(2 * time.Second))
		// A stack in user space that is gone can tell nobody.
		if _, err := io.ReadAll(c); errors.Is(err, os.ErrDeadlineExceeded) && !byNetstack() {
			t.Errorf("%s: the connection is still there", name)
		}
		_, _ = u.Write([]byte("x"))
		s.do(func() {
			d := net.Dialer{Timeout: time.Second}
			if c, err := d.Dial("tcp", "93.184.216.34:443"); err == nil {
				t.Errorf("%s: a new connection to %s", name, c.RemoteAddr())
			}
		})
		for _, p := range lab.Packets(t) {
			if p.Flags&(4|1) == 0 && p.Payload > 0 {
				t.Errorf("%s: %s", name, p)
			}
		}
	}
}

func TestWhatWasDeniedIsToldBeforeTheEnd(t *testing.T) {
	netlab.Needs(t)
	s := attach(t, netlab.New(t), options{})
	const n = 100 // at the rate of a watch it would take 4 s
	for i := range n {
		if _, err := s.ask("tcp", fmt.Sprintf("93.184.216.%d:443", i)); !refused(err) {
			t.Fatal(err)
		}
	}
	start := time.Now()
	all := s.toldUntilTheEnd()
	if took := time.Since(start); len(all) != n || took > 3*time.Second {
		t.Errorf("%d of %d are told after %s", len(all), n, took)
	}
}

// Without a tap device TCP is accepted first and dialled then.
func TestWithoutATapDevice(t *testing.T) {
	netlab.Needs(t)
	lab := netlab.New(t)
	lab.Echo(t, 443)
	s := attach(t, lab, options{egress: network.Egress{Default: network.Public}, without: []string{inside.Tap}})
	for _, at := range []string{"93.184.216.34:443", "[2606:2800:220::7]:443"} {
		for _, proto := range []string{"tcp", "udp"} {
			if got, err := s.ask(proto, at); err != nil || !strings.HasPrefix(got, proto+" "+at) {
				t.Errorf("%s %s: %q, %v", proto, at, got, err)
			}
		}
	}
	start := time.Now()
	for _, at := range []string{"93.184.216.34:81", "10.77.0.9:443", "[fd77::9]:443"} {
		if got, err := s.ask("tcp", at); err == nil || time.Since(start) > quickly {
			t.Errorf("%s: %q, %v after %s", at, got, err, time.Since(start))
		}
	}
}

func TestPing(t *testing.T) {
	netlab.Needs(t)
	lab := netlab.New(t)
	s := attach(t, lab, options{egress: network.Egress{Allow: []network.Rule{
		{CIDRs: cidrs("93.184.216.0/24", "2606:2800:220::/48"), Protocols: []string{"icmp"}},
	}}})
	lab.Host.Do(func() {
		if err := os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 2147483647"), 0); err != nil {
			t.Error(err)
		}
	})
	for _, c := range []struct {
		to string
		ok bool
	}{{"93.184.216.34", true}, {"2606:2800:220::7", true}, {"9.9.9.9", false}} {
		for _, network := range []string{"raw", "raw again"} {
			got, err := s.ping(c.to)
			if c.ok && (err != nil || !got) || !c.ok && got {
				t.Errorf("%s %s: answered %t, %v", network, c.to, got, err)
			}
		}
	}
}

// ping reports whether an answer to an echo request came, with its data.
func (s *sandbox) ping(to string) (answered bool, err error) {
	a := netip.MustParseAddr(to)
	network, at, proto := "ip4:icmp", "0.0.0.0", 1
	var kind, reply icmp.Type = ipv4.ICMPTypeEcho, ipv4.ICMPTypeEchoReply
	if a.Is6() {
		network, at, proto = "ip6:ipv6-icmp", "::", 58
		kind, reply = ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply
	}
	var c *icmp.PacketConn
	s.do(func() { c, err = icmp.ListenPacket(network, at) })
	if err != nil {
		return false, err
	}
	defer c.Close()
	m := icmp.Message{Type: kind, Body: &icmp.Echo{ID: 77, Seq: 3, Data: []byte("who is there?")}}
	var pseudo []byte
	if a.Is6() {
		pseudo = icmp.IPv6PseudoHeader(inside.Address6.AsSlice(), a.AsSlice())
	}
	b, err := m.Marshal(pseudo)
	if err != nil {
		return false, err
	}
	if _, err := c.WriteTo(b, &net.IPAddr{IP: a.AsSlice()}); err != nil {
		return false, err
	}
	_ = c.SetReadDeadline(time.Now().Add(2 * time.Second))
	for {
		in := make([]byte, 1500)
		n, from, err := c.ReadFrom(in)
		if err != nil {
			return false, err
		}
		got, err := icmp.ParseMessage(proto, in[:n])
		if err != nil {
			return false, err
		}
		if e, ok := got.Body.(*icmp.Echo); ok && got.Type == reply {
			return from.String() == to && e.ID == 77 && e.Seq == 3 && string(e.Data) == "who is there?", nil
		}
	}
}

func TestPrepareChecksWhatItCan(t *testing.T) {
	n := New()
	for _, r := range []*network.PrepareRequest{
		{Egress: network.Egress{Allow: []network.Rule{{Names: []string{"Upper.example"}}}}},
		{Ports: []network.PortMap{{Protocol: "sctp", HostIP: netip.MustParseAddr("127.0.0.1")}}},
		{Ports: []network.PortMap{{Protocol: "tcp"}}},
	} {
		if _, err := n.Prepare(t.Context(), r); errs.CodeOf(err) != errs.Config {
			t.Errorf("%+v: %v", r, err)
		}
	}
}

func TestTheNetstackPathIsTheSame(t *testing.T) {
	netlab.Needs(t)
	lacks = []string{inside.Capture, inside.Capture6}
	defer func() { lacks = nil }()
	theSame(t)
}

// A kernel that leads packets by marks alone.
func TestWithoutTheShortcutItIsTheSame(t *testing.T) {
	netlab.Needs(t)
	lacks = []string{inside.Shortcut, inside.Shortcut6}
	defer func() { lacks = nil }()
	for name, f := range map[string]func(*testing.T){
		"connect": TestConnectTellsTheTruth, "bytes": TestBytesArriveAndHalvesClose, "order": TestBytesStayInOrderHoweverTheyCome, "resets": TestResetsArePassedOn,
		"many": TestManyFlowsAtOnce, "published": TestPublishedPorts, "each other": TestProgramsOfTheSandboxReachEachOther,
	} {
		t.Run(name, f)
	}
}

// theSame are tests that have the same outcome however packets come.
func theSame(t *testing.T) {
	for name, f := range map[string]func(*testing.T){
		"literals": TestLiteralsNeedARuleOrThePublicDefault, "host": TestNoRuleReachesTheHost, "denied": TestNothingOfADeniedFlowLeavesTheHost, "connect": TestConnectTellsTheTruth,
		"names": TestNamesAreReachedWhereverTheyAre, "rotation": TestANameThatRotatesIsNeverDenied, "bytes": TestBytesArriveAndHalvesClose, "order": TestBytesStayInOrderHoweverTheyCome, "pieces": TestManyPiecesBehindAClosedWindow, "resets": TestResetsArePassedOn,
		"backpressure": TestBackpressureIsPassedOn, "many": TestManyFlowsAtOnce, "datagrams": TestDatagramsOfAllSizes,
		"end": TestNoFlowOutlivesThePlugin, "ping": TestPing, "published": TestPublishedPorts, "many published": TestMorePublishedConnectionsThanSockets, "port in use": TestAPortInUseIsNamed,
		"each other": TestProgramsOfTheSandboxReachEachOther,
	} {
		t.Run(name, f)
	}
}
