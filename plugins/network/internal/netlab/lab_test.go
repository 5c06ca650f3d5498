package netlab

import (
	"bufio"
	"context"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func ctx(t *testing.T) context.Context {
	t.Helper()
	c, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	return c
}

func lookup(t *testing.T, l *Lab, network, server, name string, qtype uint16) *dns.Msg {
	t.Helper()
	m := new(dns.Msg)
	m.SetQuestion(dns.Fqdn(name), qtype)
	conn, err := l.Host.Dial(ctx(t), network, net.JoinHostPort(server, "53"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	answer, _, err := new(dns.Client).ExchangeWithConn(m, &dns.Conn{Conn: conn})
	if err != nil {
		t.Fatalf("asking %s for %s: %v", server, name, err)
	}
	return answer
}

func reach(t *testing.T, l *Lab, network, address string) string {
	t.Helper()
	conn, err := l.Host.Dial(ctx(t), network, address)
	if err != nil {
		t.Fatalf("%s %s: %v", network, address, err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := conn.Write([]byte("hello\n")); err != nil {
		t.Fatal(err)
	}
	var got []string
	lines := bufio.NewReader(conn)
	for range 2 {
		line, err := lines.ReadString('\n')
		if err != nil {
			t.Fatalf("%s %s: %v after %q", network, address, err, got)
		}
		got = append(got, strings.TrimSpace(line))
	}
	if got[1] != "hello" {
		t.Errorf("%s %s: no echo: %q", network, address, got)
	}
	return got[0]
}

func TestEchoTellsWhereItWasReached(t *testing.T) {
	Needs(t)
	l := New(t)
	l.Echo(t, 443, 8080)
	for _, at := range []string{
		"93.184.216.34:443", "93.184.216.35:8080", "10.77.0.9:443", "169.254.169.254:8080", "100.64.9.1:443",
		"[2606:2800:220::7]:443", "[fd77::9]:8080", "[fd00:ec2::254]:443", "151.101.7.1:443", "[2620:fe::fe]:443",
	} {
		for _, protocol := range []string{"tcp", "udp"} {
			got, reached, from, err := ParseEcho(reach(t, l, protocol, at))
			host := HostV4
			if reached.Addr().Is6() {
				host = HostV6
			}
			if err != nil || got != protocol || reached.String() != at || from.Addr() != host {
				t.Errorf("%s %s: reached as %s %s from %s, %v", protocol, at, got, reached, from, err)
			}
		}
	}
}

func TestAnswersRotateAndAreCounted(t *testing.T) {
	Needs(t)
	l := New(t)
	l.DNS.Rotate("rotate.example", "93.184.216.1", "93.184.216.2", "2606:2800:220::1")
	var got []string
	for i := range 4 {
		network := []string{"udp", "tcp"}[i%2]
		server := []string{DNSV4.String(), DNSV6.String()}[i/2]
		got = append(got, lookup(t, l, network, server, "Rotate.Example", dns.TypeA).Answer[0].(*dns.A).A.String())
	}
	if want := []string{"93.184.216.1", "93.184.216.2", "93.184.216.1", "93.184.216.2"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if a := lookup(t, l, "udp", OtherV4.String(), "rotate.example", dns.TypeAAAA).Answer; len(a) != 1 || a[0].Header().Ttl != 0 {
		t.Errorf("the other family: %v", a)
	}
	if n := l.DNS.Queries("rotate.example"); n != 5 {
		t.Errorf("%d queries were counted, want 5", n)
	}
	if n := l.DNS.Queries("never.example"); n != 0 {
		t.Errorf("%d queries for a name that nobody asked for", n)
	}
}

func TestNamesAnswerAsProgrammed(t *testing.T) {
	Needs(t)
	l := New(t)
	l.DNS.Set("real.example", "93.184.216.9", "fd77::1")
	l.DNS.Alias("alias.example", "real.example")
	l.DNS.Set("*.wild.example", "10.77.0.1")
	l.DNS.Handle("broken.example", func(Query) Reply { return Reply{RCode: dns.RcodeServerFailure} })
	for _, c := range []struct {
		name    string
		qtype   uint16
		rcode   int
		answers int
	}{
		{"real.example", dns.TypeA, dns.RcodeSuccess, 1},
		{"real.example", dns.TypeAAAA, dns.RcodeSuccess, 1},
		{"real.example", dns.TypeTXT, dns.RcodeSuccess, 0},
		{"alias.example", dns.TypeA, dns.RcodeSuccess, 2},
		{"a.b.wild.example", dns.TypeA, dns.RcodeSuccess, 1},
		{"wild.example", dns.TypeA, dns.RcodeNameError, 0},
		{"broken.example", dns.TypeA, dns.RcodeServerFailure, 0},
		{"unknown.example", dns.TypeA, dns.RcodeNameError, 0},
	} {
		m := lookup(t, l, "udp", DNSV4.String(), c.name, c.qtype)
		if m.Rcode != c.rcode || len(m.Answer) != c.answers {
			t.Errorf("%s %s: %s", c.name, dns.TypeToString[c.qtype], m)
		}
	}
}

func TestCaptureSeesWhatLeaves(t *testing.T) {
	Needs(t)
	l := New(t)
	l.Echo(t, 443)
	reach(t, l, "tcp4", "93.184.216.34:443")
	reach(t, l, "udp6", "[2606:2800:220::7]:443")
	if conn, err := l.Host.Dial(ctx(t), "tcp4", "10.77.0.9:81"); err == nil {
		conn.Close()
		t.Error("nobody listens on port 81")
	}
	packets := l.Packets(t)
	sent := func(protocol uint8, dst string) int {
		n := 0
		for _, p := range packets {
			if p.Protocol == protocol && p.Dst == netip.MustParseAddrPort(dst) {
				n++
			}
		}
		return n
	}
	if sent(unix.IPPROTO_TCP, "93.184.216.34:443") < 3 || sent(unix.IPPROTO_UDP, "[2606:2800:220::7]:443") != 1 {
		t.Errorf("the capture has not what was sent: %v", packets)
	}
	// What is refused at the other end has left all the same.
	if sent(unix.IPPROTO_TCP, "10.77.0.9:81") != 1 {
		t.Errorf("the capture has not the SYN that was answered with a reset: %v", packets)
	}
	for _, p := range packets {
		if a := p.Src.Addr(); a != HostV4 && a != HostV6 {
			t.Errorf("not from the host: %v", p)
		}
	}
	l.ForgetPackets(t)
	if packets := l.Packets(t); len(packets) != 0 {
		t.Errorf("after all was forgotten, and nothing sent: %v", packets)
	}
}

func TestCensusTellsWhatChanged(t *testing.T) {
	Needs(t)
	l := New(t)
	before := l.Host.Census(t)
	if again := before.Changed(l.Host.Census(t)); len(again) != 0 {
		t.Fatalf("changed by itself: %v", again)
	}
	err := l.Host.handle(func(h *netlink.Handle) error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "left0"
		if err := h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			return err
		}
		return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0)
	})
	if err != nil {
		t.Fatal(err)
	}
	after := l.Host.Census(t)
	changed := strings.Join(before.Changed(after), "\n")
	for _, want := range []string{"+ link left0 bridge", "+ sysctl ipv4/ip_forward 1", "- sysctl ipv4/ip_forward 0"} {
		if !strings.Contains(changed, want) {
			t.Errorf("the change lacks %q:\n%s", want, changed)
		}
	}
	if !after.Has("link", "left0") || before.Has("link", "left0") {
		t.Error("Has does not see the link")
	}
}

func TestCommandsRunOnTheHost(t *testing.T) {
	Needs(t)
	l := New(t)
	out, err := l.Host.Command("sh", "-c", "cat /etc/resolv.conf; ls /proc/self/ns -l; cat /proc/net/dev; pwd").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, want := range []string{"nameserver 93.184.216.53", Uplink + ":", "\n/\n"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("no %q in %s", want, out)
		}
	}
	out, err = l.Host.CommandAs(t.Context(), 65534, 65534, "sh", "-c", "id -u; id -G; grep CapEff /proc/self/status").CombinedOutput()
	if want := "65534\n65534\nCapEff:\t0000000000000000\n"; err != nil || string(out) != want {
		t.Errorf("as another user: %q, %v; want %q", out, err, want)
	}
}

func TestAnotherNetworkOfTheHost(t *testing.T) {
	Needs(t)
	l := New(t)
	lan := l.Join(t, "lan0")
	lan.Echo(t, 443)
	for _, a := range []netip.Addr{LanV4, LanV6} {
		reach(t, l, "tcp", netip.AddrPortFrom(a, 443).String())
	}
	// A host is no router until something makes it one.
	l.Internet.Route(t, netip.PrefixFrom(LanV4, 32), HostV4)
	c, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if conn, err := l.Internet.Dial(c, "tcp", netip.AddrPortFrom(LanV4, 443).String()); err == nil {
		conn.Close()
		t.Error("the host forwards")
	}
	l.Host.Sysctl(t, "ipv4/ip_forward", "1")
	conn, err := l.Internet.Dial(ctx(t), "tcp", netip.AddrPortFrom(LanV4, 443).String())
	if err != nil {
		t.Fatalf("the host does not forward: %v", err)
	}
	conn.Close()
}

// Nothing but this test's laboratory has a link of that name.
func TestMachineIsLeftAlone(t *testing.T) {
	Needs(t)
	New(t).Echo(t, 443)
	if l, err := netlink.LinkByName(Uplink); err == nil {
		t.Errorf("the machine has got a link: %v", l.Attrs())
	}
}
