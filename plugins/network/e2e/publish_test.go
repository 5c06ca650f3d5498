package e2e

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/netlab"
	"github.com/nucleus-runtime/nucleus/plugins/network/internal/probe"
)

// try connects from a namespace of the laboratory, and wants an echo of what it sends.
func try(ns *netlab.Namespace, protocol, address string, wait time.Duration) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	conn, err := ns.Dial(ctx, protocol, address)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(wait))
	if _, err := conn.Write([]byte("hello\n")); err != nil {
		return "", err
	}
	lines := bufio.NewReader(conn)
	line, err := lines.ReadString('\n')
	if err != nil {
		return "", err
	}
	if back, err := lines.ReadString('\n'); err != nil || back != "hello\n" {
		return "", fmt.Errorf("echoed %q: %w", back, err)
	}
	return strings.TrimSpace(line), nil
}

// eventually is try for a server that has only just been started.
func eventually(ns *netlab.Namespace, protocol, address string) (line string, err error) {
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if line, err = try(ns, protocol, address, time.Second); err == nil {
			return line, nil
		}
	}
	return "", err
}

// published is a block of a network.
func published(at string, container int, protocol string) string {
	return fmt.Sprintf("publish {\nhost = %q\ncontainer = %d\nprotocol = %q\n}\n", at, container, protocol)
}

// server runs until the test ends it.
func (s *site) server(network string) *running {
	r := s.start(job{network: network, probes: []probe.Probe{
		{ID: "self", Kind: probe.Self, Alone: true},
		{ID: "open", Kind: probe.Serve, To: "[::]:8080", Wait: patience},
		{ID: "not published", Kind: probe.Serve, To: "[::]:9999", Wait: patience},
	}})
	r.result("self")
	return r
}

func (r *running) stop() outcome {
	r.s.t.Helper()
	_ = r.cmd.Process.Signal(unix.SIGTERM)
	return r.wait()
}

func TestPublishedPorts(t *testing.T) { sites(t, publishedPorts) }

func publishedPorts(t *testing.T, s *site) {
	text := policy
	for _, protocol := range []string{"tcp", "udp"} {
		text += published("127.0.0.1:8081", 8080, protocol) + published("[::1]:8082", 8080, protocol) +
			published("0.0.0.0:8083", 8080, protocol) + published("[::]:8084", 8080, protocol)
	}
	r := s.server(text)
	for _, c := range []struct {
		from *netlab.Namespace
		at   string
		open bool
	}{
		{s.lab.Host, "127.0.0.1:8081", true},
		{s.lab.Host, "[::1]:8082", true},
		{s.lab.Host, "127.0.0.1:8083", true},
		{s.lab.Host, "[::1]:8084", true},
		{s.lab.Host, "151.101.7.2:8083", true},
		{s.lab.Host, "[2a04:4e42:7::2]:8084", true},
		{s.lab.Internet, "151.101.7.2:8083", true},
		{s.lab.Internet, "[2a04:4e42:7::2]:8084", true},
		{s.lab.Internet, "151.101.7.2:8081", false},
		{s.lab.Internet, "[2a04:4e42:7::2]:8082", false},
		{s.lab.Host, "151.101.7.2:8081", false},
		{s.lab.Internet, "151.101.7.2:9999", false},
		{s.lab.Host, "127.0.0.1:9999", false},
	} {
		for _, protocol := range []string{"tcp", "udp"} {
			var err error
			if c.open {
				_, err = eventually(c.from, protocol, c.at)
			} else {
				_, err = try(c.from, protocol, c.at, 500*time.Millisecond)
			}
			if (err == nil) != c.open {
				t.Errorf("%s %s from the %s: reached: %t, want %t (%v)", protocol, c.at, c.from.Name, err == nil, c.open, err)
			}
		}
	}
	r.stop()
	if line, err := try(s.lab.Host, "tcp", "127.0.0.1:8081", time.Second); err == nil {
		t.Errorf("still published after the end: %s", line)
	}
}

// What can be reached is what is published: neither does the sandbox have another way in,
// nor the host one through what the backend needed for its own.
func TestPublishingOpensNothingElse(t *testing.T) {
	sites(t, func(t *testing.T, s *site) {
		r := s.server(policy + published("127.0.0.1:8081", 8080, "tcp"))
		if _, err := eventually(s.lab.Host, "tcp", "127.0.0.1:8081"); err != nil {
			t.Fatal(err)
		}
		s.lab.Host.Echo(t, 7777) // stands for a service that trusts its host's loopback
		self := r.result("self")
		s.lab.Internet.Do(func() {
			if err := routeAt(s.lab, append(self.Addresses, self.Gateways...)); err != nil {
				t.Fatal(err)
			}
		})
		for _, a := range self.Addresses {
			for _, port := range []string{"8080", "9999"} {
				if _, err := try(s.lab.Internet, "tcp", net.JoinHostPort(a, port), 500*time.Millisecond); err == nil {
					t.Errorf("the internet reaches port %s of the sandbox at %s", port, a)
				}
			}
		}
		// CVE-2020-8558: route_localnet on the host lets its neighbours at its loopback.
		for _, port := range []string{"7777", "8081"} {
			if _, err := try(s.lab.Internet, "tcp", "127.0.0.1:"+port, 500*time.Millisecond); err == nil {
				t.Errorf("the internet reaches port %s of the host's loopback", port)
			}
		}
		r.stop()
	})
}

// routeAt has the internet send what is for the addresses, and for loopback, to the host.
func routeAt(l *netlab.Lab, targets []string) error {
	for _, name := range []string{"all", "default", "lo", netlab.Uplink} {
		if err := os.WriteFile("/proc/sys/net/ipv4/conf/"+name+"/route_localnet", []byte("1"), 0); err != nil {
			return err
		}
	}
	link, err := netlink.LinkByName(netlab.Uplink)
	if err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	// Else the internet's own loopback answers.
	for _, own := range []string{"127.0.0.1/32", "127.0.0.0/8"} {
		dst, err := netlink.ParseIPNet(own)
		if err != nil {
			return err
		}
		_ = netlink.RouteDel(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: dst, Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST})
	}
	for _, target := range append([]string{"127.0.0.1"}, targets...) {
		a, err := netip.ParseAddr(target)
		if err != nil {
			return err
		}
		if a.IsLinkLocalUnicast() {
			continue
		}
		via := netlab.HostV4
		if a.Is6() {
			via = netlab.HostV6
		}
		dst, err := netlink.ParseIPNet(fmt.Sprintf("%s/%d", a, a.BitLen()))
		if err != nil {
			return err
		}
		err = netlink.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: dst, Gw: via.AsSlice(), Flags: unix.RTNH_F_ONLINK})
		if err != nil {
			return fmt.Errorf("route to %s: %w", target, err)
		}
	}
	return nil
}

func TestPortInUse(t *testing.T) {
	sites(t, func(t *testing.T, s *site) {
		for _, c := range []struct{ at, protocol string }{
			{"127.0.0.1:8081", "tcp"}, {"127.0.0.1:8081", "udp"}, {"0.0.0.0:8081", "tcp"}, {"[::]:8081", "tcp"},
		} {
			var err error
			var held interface{ Close() error }
			if c.protocol == "tcp" {
				held, err = s.lab.Host.Listen("tcp", c.at)
			} else {
				held, err = s.lab.Host.ListenPacket("udp", c.at)
			}
			if err != nil {
				t.Fatal(err)
			}
			before := s.lab.Host.Census(t)
			o := s.start(job{network: policy + published(c.at, 8080, c.protocol), probes: []probe.Probe{{ID: "self", Kind: probe.Self}}}).wait()
			if o.code != 125 || !strings.Contains(o.stderr, "8081") || !strings.Contains(o.stderr, "in use") {
				t.Errorf("%s %s: exit code %d, want 125 and a word about the port that is in use: %s", c.protocol, c.at, o.code, o.stderr)
			}
			if len(o.results) > 0 {
				t.Errorf("%s %s: the workload ran", c.protocol, c.at)
			}
			s.gc()
			if changed := before.Changed(s.lab.Host.Census(t)); len(changed) > 0 {
				t.Errorf("%s %s: left behind: %q", c.protocol, c.at, changed)
			}
			if err := held.Close(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// Two sandboxes want one port: the first keeps it.
func TestPortOfAnotherSandbox(t *testing.T) {
	sites(t, func(t *testing.T, s *site) {
		r := s.server(policy + published("127.0.0.1:8081", 8080, "tcp"))
		o := s.start(job{network: policy + published("127.0.0.1:8081", 8080, "tcp"), probes: []probe.Probe{{ID: "self", Kind: probe.Self}}}).wait()
		if o.code != 125 || !strings.Contains(o.stderr, "8081") {
			t.Errorf("exit code %d, want 125 and a word about the port: %s", o.code, o.stderr)
		}
		if _, err := eventually(s.lab.Host, "tcp", "127.0.0.1:8081"); err != nil {
			t.Errorf("the first sandbox has lost its port: %v", err)
		}
		r.stop()
	})
}
