package netbridge

import (
	"net"
	"net/netip"
	"testing"
	"time"
)

// The resolver on the host hears its sandbox, and none of the host's programs, whose
// packets meet no rule of the sandbox's, however many they send.
func TestResolverOutsideHearsItsGuest(t *testing.T) {
	guest := netip.MustParseAddr("127.0.0.2")
	hear := net.ListenConfig{Control: only(guest)}
	p, err := hear.ListenPacket(t.Context(), "udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l, err := hear.Listen(t.Context(), "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := sockets{p, l}
	defer s.close()
	dial := func(from, network string, to net.Addr) (net.Conn, error) {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: 300 * time.Millisecond}
		if network == "udp4" {
			d.LocalAddr = &net.UDPAddr{IP: net.ParseIP(from)}
		}
		return d.Dial(network, to.String())
	}
	flood, err := dial("127.0.0.3", "udp4", p.LocalAddr())
	if err != nil {
		t.Fatal(err)
	}
	defer flood.Close()
	for range 10_000 { // more than a socket has room for, while nobody reads
		_, _ = flood.Write(make([]byte, 1000))
	}
	if c, err := dial("127.0.0.3", "tcp4", l.Addr()); err == nil {
		c.Close()
		t.Error("a program of the host has connected")
	}
	for network, to := range map[string]net.Addr{"udp4": p.LocalAddr(), "tcp4": l.Addr()} {
		c, err := dial(guest.String(), network, to)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write([]byte(guest.String())); err != nil {
			t.Fatal(err)
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
