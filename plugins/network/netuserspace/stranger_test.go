package netuserspace

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/netlab"
	"github.com/nucleus-runtime/nucleus/plugins/network/netuserspace/internal/inside"
)

// shortly is long enough for an answer from within the sandbox.
const shortly = 400 * time.Millisecond

func TestNoProgramPosesAsAFarEnd(t *testing.T) {
	netlab.Needs(t)
	lab := netlab.New(t)
	s := attach(t, lab, options{egress: anywhere()})
	for _, c := range []struct {
		own           netip.Addr
		stranger      string
		level, option int
	}{
		{inside.Address4, "93.184.216.34", unix.IPPROTO_IP, unix.IP_FREEBIND},
		{inside.Address6, "2606:2800:220::7", unix.IPPROTO_IPV6, unix.IPV6_FREEBIND},
	} {
		l := s.listenAt("tcp", net.JoinHostPort(c.own.String(), "9443"))
		own, err := s.dialBy(net.Dialer{Timeout: 5 * time.Second}, "tcp", l.Addr().String())
		if err != nil {
			t.Fatalf("with its own address: %v", err)
		}
		own.Close()
		got, err := s.dialBy(net.Dialer{
			Timeout: shortly, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(c.stranger), 9000)),
			Control: withOption(c.level, c.option, 1),
		}, "tcp", l.Addr().String())
		if err == nil {
			t.Errorf("%s was taken for %s", got.LocalAddr(), c.stranger)
			got.Close()
		}
	}
}

func TestNoProgramStandsInForThePlugin(t *testing.T) {
	netlab.Needs(t)
	lab := netlab.New(t)
	s := attach(t, lab, options{egress: anywhere()})
	s.listenAt("tcp", "[::]:9443")
	var heard net.PacketConn
	var err error
	s.do(func() { heard, err = (&net.ListenConfig{}).ListenPacket(context.Background(), "udp", "[::]:9443") })
	if err != nil {
		t.Fatal(err)
	}
	defer heard.Close()
	s.detach()
	for _, host := range []string{"93.184.216.34", "2606:2800:220::7"} {
		at := net.JoinHostPort(host, "9443")
		if c, err := s.dialBy(net.Dialer{Timeout: shortly}, "tcp", at); err == nil {
			t.Errorf("%s was answered from within", at)
			c.Close()
		}
		if c, err := s.dialBy(net.Dialer{}, "udp", at); err == nil {
			_, _ = c.Write([]byte("hello")) // an error is as good
			c.Close()
		}
		_ = heard.SetReadDeadline(time.Now().Add(shortly))
		if n, from, err := heard.ReadFrom(make([]byte, 16)); err == nil {
			t.Errorf("%d bytes from %s for %s were heard within", n, from, at)
		}
	}
	c, err := s.dialBy(net.Dialer{Timeout: 5 * time.Second}, "tcp", netip.AddrPortFrom(inside.Address6, 9443).String())
	if err != nil {
		t.Fatalf("what is the sandbox's own: %v", err)
	}
	c.Close()
}
