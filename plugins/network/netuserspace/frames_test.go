package netuserspace

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/netlab"
	"github.com/nucleus-runtime/nucleus/plugins/network/netuserspace/internal/inside"
	"github.com/nucleus-runtime/nucleus/sdk/network"
)

// Who takes the tap device over finds all behind it: neighbours, and the resolver.
func TestADeviceThatIsTakenOverIsTheSame(t *testing.T) {
	netlab.Needs(t)
	taken = true
	defer func() { taken = false }()
	theSame(t)
	t.Run("neighbours", gatewaysAnswer)
	t.Run("resolver", resolverAtTheGateway)
}

func gatewaysAnswer(t *testing.T) {
	lab := netlab.New(t)
	lab.Echo(t, 443)
	s := attach(t, lab, options{egress: network.Egress{Default: network.Public}})
	for _, to := range []string{"93.184.216.34:443", "[2606:2800:220::7]:443"} {
		if got, err := s.ask("tcp", to); err != nil {
			t.Errorf("%s: %q, %v", to, got, err)
		}
	}
	s.do(func() {
		link, err := netlink.LinkByName(inside.IfName)
		if err != nil {
			t.Error(err)
			return
		}
		for _, gateway := range []netip.Addr{inside.Gateway4, inside.Gateway6} {
			family := unix.AF_INET
			if gateway.Is6() {
				family = unix.AF_INET6
			}
			all, err := netlink.NeighList(inside.TapIndex, family)
			if err != nil {
				t.Error(err)
			}
			found := false
			for _, n := range all {
				if n.IP.String() == gateway.String() {
					found = n.State&(unix.NUD_REACHABLE|unix.NUD_DELAY|unix.NUD_STALE) != 0 && len(n.HardwareAddr) == 6 && n.HardwareAddr.String() != link.Attrs().HardwareAddr.String()
				} else if n.State&unix.NUD_REACHABLE != 0 {
					t.Errorf("%s has answered, too", n.IP)
				}
			}
			if !found {
				t.Errorf("%s is no neighbour: %+v", gateway, all)
			}
		}
	})
}

func resolverAtTheGateway(t *testing.T) {
	lab := netlab.New(t)
	lab.DNS.Set("allowed.example", "93.184.216.34", "2606:2800:220::7")
	s := attach(t, lab, options{egress: network.Egress{Allow: []network.Rule{{Names: []string{"allowed.example"}, Ports: []network.Ports{{Protocol: "tcp", First: 443, Last: 443}}}}}})
	if at := s.attached.DNS.Servers; len(at) != 1 || at[0] != inside.Gateway4 {
		t.Errorf("the resolver is at %s", at)
	}
	for _, proto := range []string{"udp", "tcp"} {
		if a, err := s.resolveBy(proto, "allowed.example", false); err != nil {
			t.Errorf("%s: %s, %v", proto, a, err)
		}
		if a, err := s.resolveBy(proto, "denied.example", false); err == nil || !strings.Contains(err.Error(), "REFUSED") {
			t.Errorf("%s: %s, %v", proto, a, err)
		}
	}
	// An end of what is asked is no end of what is answered.
	for range 20 {
		if err := s.askAndClose("allowed.example"); err != nil {
			t.Errorf("a question and an end: %v", err)
		}
	}
	// Who holds more connections than there may be has them reset, and is answered again later.
	var held []net.Conn
	at := netip.AddrPortFrom(inside.Gateway4, 53).String()
	for range 200 {
		if c, err := s.dial("tcp", at); err == nil {
			held = append(held, c)
		}
	}
	if len(held) == 0 || len(held) > 32 {
		t.Errorf("%d connections at a time", len(held))
	}
	if _, err := s.resolveBy("udp", "allowed.example", false); err != nil {
		t.Errorf("over udp meanwhile: %v", err)
	}
	for _, c := range held {
		c.Close()
	}
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		_, err := s.resolveBy("tcp", "allowed.example", false)
		if err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("afterwards: %v", err)
		}
	}
	// Nothing else is there.
	for _, to := range []string{netip.AddrPortFrom(inside.Gateway4, 80).String(), netip.AddrPortFrom(inside.Gateway6, 53).String()} {
		for _, proto := range []string{"tcp", "udp"} {
			if got, err := s.ask(proto, to); !refused(err) {
				t.Errorf("%s %s: %q, %v", proto, to, got, err)
			}
		}
	}
}

// askAndClose asks for a name over TCP, and says that there is no more to come.
func (s *sandbox) askAndClose(name string) error {
	c, err := s.dial("tcp", netip.AddrPortFrom(s.attached.DNS.Servers[0], 53).String())
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	conn := &dns.Conn{Conn: c}
	if err := conn.WriteMsg(new(dns.Msg).SetQuestion(dns.Fqdn(name), dns.TypeA)); err != nil {
		return err
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	m, err := conn.ReadMsg()
	if err == nil && len(m.Answer) == 0 {
		err = fmt.Errorf("no answer: %s", m)
	}
	return err
}

// There is no other way to such a sandbox than the device.
func TestATapMustBeThereToBeTakenOver(t *testing.T) {
	n := New()
	for _, missing := range []string{inside.Tap, inside.Link} {
		_, err := n.Attach(t.Context(), &network.AttachRequest{Call: network.Call{SandboxID: "sb"}, OwnStack: true, Missing: []string{missing}})
		if err == nil || !strings.Contains(err.Error(), "network stack of its own") {
			t.Errorf("without %s: %v", missing, err)
		}
	}
}
