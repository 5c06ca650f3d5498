package netbridge

import (
	"net"
	"net/netip"
	"testing"
	"time"
)

// The resolver on the host hears its sandbox, and none of the host's programs, whose
// packets meet no rule of the sandbox's.
func TestResolverOutsideHearsItsGuest(t *testing.T) {
	guest := netip.MustParseAddr("127.0.0.2")
	p, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := sockets{&guestPackets{p, guest}, &guestConns{l, guest}}
	defer s.close()
	for _, from := range []string{"127.0.0.3", "127.0.0.2"} {
		for network, to := range map[string]net.Addr{"udp4": p.LocalAddr(), "tcp4": l.Addr()} {
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
			if network == "udp4" {
				d.LocalAddr = &net.UDPAddr{IP: net.ParseIP(from)}
			}
			c, err := d.Dial(network, to.String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := c.Write([]byte(from)); err != nil {
				t.Fatal(err)
			}
		}
	}
	buf := make([]byte, 16)
	if err := s.udp.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if n, from, err := s.udp.ReadFrom(buf); err != nil || string(buf[:n]) != "127.0.0.2" {
		t.Errorf("heard %q from %v: %v", buf[:n], from, err)
	}
	c, err := s.tcp.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if n, err := c.Read(buf); err != nil || string(buf[:n]) != "127.0.0.2" {
		t.Errorf("heard %q from %v: %v", buf[:n], c.RemoteAddr(), err)
	}
}
