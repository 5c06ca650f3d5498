package netbridge

import (
	"bufio"
	"context"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/netlab"
	"github.com/nucleus-runtime/nucleus/plugins/network/internal/probe"
	"github.com/nucleus-runtime/nucleus/sdk/errs"
	"github.com/nucleus-runtime/nucleus/sdk/network"
)

// echoes connects from a namespace and reads the echo server's line.
func echoes(ns *netlab.Namespace, proto string, to netip.AddrPort) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	c, err := ns.Dial(ctx, proto, to.String())
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Second))
	if _, err := c.Write([]byte("hello\n")); err != nil {
		return "", err
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	return strings.TrimSpace(line), err
}

func TestPublishedPorts(t *testing.T) {
	netlab.Needs(t)
	lab := netlab.New(t)
	before := lab.Host.Census(t)
	p, b := start(t, lab), newBox(t, "sb1")
	local := netip.MustParseAddr("127.0.0.1")
	a := p.attach(b, network.AttachRequest{Ports: []network.PortMap{
		{HostPort: 80, ContainerPort: 8000, Protocol: "tcp"},
		{HostPort: 80, ContainerPort: 8000, Protocol: "udp"},
		{HostIP: local, HostPort: 81, ContainerPort: 8000, Protocol: "tcp"},
		{HostIP: netlab.HostV4, HostPort: 82, ContainerPort: 8000, Protocol: "tcp"},
		{HostIP: netlab.HostV6, HostPort: 82, ContainerPort: 8000, Protocol: "udp"},
		{ContainerPort: 8000, Protocol: "tcp"},
	}})
	chosen := a.Attached.Ports[5].HostPort
	if chosen == 0 {
		t.Fatal("no port was chosen")
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		b.try(probe.Probe{Kind: probe.Serve, To: ":8000", Wait: 8 * time.Second}, probe.Probe{Kind: probe.Serve, To: ":9000", Wait: 8 * time.Second})
	}()
	time.Sleep(300 * time.Millisecond)
	own4, own6 := a.Attached.IPs[0].Address.Addr(), a.Attached.IPs[1].Address.Addr()
	if err := lab.Internet.Command("sh", "-c", "ip route replace "+own4.String()+" via "+netlab.HostV4.String()+"; ip -6 route replace "+own6.String()+" via "+netlab.HostV6.String()).Run(); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		from   *netlab.Namespace
		proto  string
		ip     netip.Addr
		port   uint16
		passes bool
	}{
		{lab.Internet, "tcp", netlab.HostV4, 80, true},
		{lab.Internet, "tcp", netlab.HostV6, 80, true},
		{lab.Internet, "udp", netlab.HostV4, 80, true},
		{lab.Internet, "udp", netlab.HostV6, 80, true},
		{lab.Internet, "tcp", netlab.HostV4, 81, false},
		{lab.Internet, "tcp", netlab.HostV4, 82, true},
		{lab.Internet, "tcp", netlab.HostV6, 82, false},
		{lab.Internet, "udp", netlab.HostV6, 82, true},
		{lab.Internet, "tcp", netlab.HostV4, chosen, true},
		{lab.Internet, "tcp", netlab.HostV4, 8000, false},
		{lab.Internet, "tcp", own4, 8000, false}, // around the host's address
		{lab.Internet, "tcp", own6, 8000, false},
		{lab.Host, "tcp", local, 80, true},
		{lab.Host, "tcp", netip.IPv6Loopback(), 80, true},
		{lab.Host, "udp", local, 80, true},
		{lab.Host, "udp", netip.IPv6Loopback(), 80, true},
		{lab.Host, "tcp", netlab.HostV4, 80, true},
		{lab.Host, "tcp", local, 81, true},
		{lab.Host, "tcp", own4, 9000, false}, // it is not published
		{lab.Host, "udp", own6, 9000, false},
	} {
		name := tc.from.Name + " " + tc.proto + " " + net.JoinHostPort(tc.ip.String(), strconv.Itoa(int(tc.port)))
		line, err := echoes(tc.from, tc.proto, netip.AddrPortFrom(tc.ip, tc.port))
		if (err == nil) != tc.passes {
			t.Errorf("%s: %q, %v; want passes %v", name, line, err, tc.passes)
		}
		if tc.passes && tc.from == lab.Internet && !strings.Contains(line, netlab.GatewayV4.String()) && !strings.Contains(line, netlab.GatewayV6.String()) {
			t.Errorf("%s: the sandbox does not see who has connected: %q", name, line)
		}
	}
	second := newBox(t, "sb2")
	r := p.tryAttach(second, network.AttachRequest{Ports: []network.PortMap{{ContainerPort: 1, Protocol: "tcp"}, {HostPort: 80, ContainerPort: 1, Protocol: "tcp"}}})
	if r.Code != errs.Exists || r.Reason != "PORT_IN_USE" || r.Port != 1 {
		t.Errorf("a port in use: %v %q %s", r.Code, r.Reason, r.Error)
	}
	t.Log(r.Error)
	r = p.tryAttach(second, network.AttachRequest{Ports: []network.PortMap{{HostIP: netip.MustParseAddr("192.0.2.1"), HostPort: 80, ContainerPort: 1, Protocol: "tcp"}}})
	if r.Code != errs.Precondition {
		t.Errorf("an address that the host has not: %v %s", r.Code, r.Error)
	}
	<-done
	p.detach(b)
	clean(t, lab, before)
}
