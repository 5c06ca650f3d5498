package netuserspace

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/netlab"
	"github.com/nucleus-runtime/nucleus/plugins/network/netuserspace/internal/inside"
	"github.com/nucleus-runtime/nucleus/sdk/network"
)

// A connection is accepted before it is dialled if one to the same place has just been, or
// if it pretends to be one that was.

// pretend connects so.
func (s *sandbox) pretend(to string) (c net.Conn, err error) {
	level, name := unix.IPPROTO_IP, unix.IP_TTL
	if netip.MustParseAddrPort(to).Addr().Is6() {
		level, name = unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS
	}
	return s.dialBy(net.Dialer{Timeout: 15 * time.Second, Control: withOption(level, name, inside.SentTTL)}, "tcp", to)
}

// broken tells whether a connection was reset, be it while connect looked, and brought
// nothing before.
func broken(c net.Conn, err error) error {
	if err != nil {
		if errors.Is(err, syscall.ECONNRESET) {
			return nil
		}
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(15 * time.Second))
	b, err := io.ReadAll(c)
	if len(b) > 0 || !errors.Is(err, syscall.ECONNRESET) {
		return fmt.Errorf("%q, %w, want a reset", b, err)
	}
	return nil
}

// refusedSoon connects to where a server has just been: it is refused, if not by connect
// then by a reset, and by connect once nothing has been accepted there for 100 ms.
func (s *sandbox) refusedSoon(t *testing.T, at string) {
	t.Helper()
	if c, err := s.dial("tcp", at); !errors.Is(err, syscall.ECONNREFUSED) {
		if err := broken(c, err); err != nil {
			t.Errorf("%s: %v", at, err)
		}
	}
	time.Sleep(150 * time.Millisecond)
	if c, err := s.dial("tcp", at); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("%s, after a while: connected %t, %v, want a refusal as from the server", at, c != nil, err)
	}
}

func TestAnAnswerIsGoodForAMomentAndOnePlace(t *testing.T) {
	netlab.Needs(t)
	lab := netlab.New(t)
	s := attach(t, lab, options{egress: anywhere()})
	for _, host := range []string{"93.184.216.34", "2606:2800:220::7"} {
		at, beside := net.JoinHostPort(host, "83"), net.JoinHostPort(host, "84")
		// That the next one is accepted at once is a matter of less than the moment, which a
		// busy machine may miss now and then, but not always.
		early := false
		for range 20 {
			l, err := lab.Internet.Listen("tcp", at)
			if err != nil {
				t.Fatal(err)
			}
			c := s.mustDial("tcp", at)
			l.Close()
			c.Close()
			got, err := s.dial("tcp", at)
			if _, err := s.dial("tcp", beside); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("%s: %v, want a refusal as from the server", beside, err)
			}
			if early = !errors.Is(err, syscall.ECONNREFUSED); early {
				if err := broken(got, err); err != nil {
					t.Errorf("%s: %v", at, err)
				}
				break
			}
		}
		if !early {
			t.Errorf("%s: no answer was good for the next", at)
		}
		s.refusedSoon(t, at)
	}
}

func TestWhatPretendsToBeKnownMeetsThePolicy(t *testing.T) {
	netlab.Needs(t)
	lab := netlab.New(t)
	lab.Echo(t, 443, 8443)
	s := attach(t, lab, options{egress: network.Egress{Allow: []network.Rule{
		{CIDRs: cidrs("93.184.216.0/24", "2606:2800:220::/64"), Ports: []network.Ports{{Protocol: "tcp", First: 443, Last: 443}}},
	}}})
	for _, host := range []string{"93.184.216.34", "2606:2800:220::7"} {
		c, err := s.pretend(net.JoinHostPort(host, "443"))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := answer(c); err != nil || got == "" {
			t.Errorf("%s: %q, %v", host, got, err)
		}
		c.Close()
		lab.ForgetPackets(t)
		denied := net.JoinHostPort(host, "8443")
		// The second one of its kind, too: what was pretended is remembered.
		for _, dial := range []func() (net.Conn, error){
			func() (net.Conn, error) { return s.pretend(denied) },
			func() (net.Conn, error) { return s.dial("tcp", denied) },
		} {
			if c, err := dial(); !refused(err) {
				if err := broken(c, err); err != nil {
					t.Errorf("%s: %v", denied, err)
				}
			}
		}
		for _, p := range lab.Packets(t) {
			if strings.Contains(fmt.Sprint(p), ":8443") {
				t.Errorf("left the host: %v", p)
			}
		}
		s.wantDenial(t, denied, network.ReasonPort)
	}
}

func TestLateConnectionsWaitForRoom(t *testing.T) {
	netlab.Needs(t)
	lab := netlab.New(t)
	lab.Echo(t, 443)
	const files = 512
	const slots = (files - files/4) / 2 // exit.Conns
	const queue = files / 4 / 8         // exit.Waiting
	s := attach(t, lab, options{egress: network.Egress{Default: network.Public}, files: files})
	const at = "93.184.216.34:443"
	held := make([]net.Conn, slots)
	for i := range held {
		held[i] = s.mustDial("tcp", at)
	}
	late := make([]net.Conn, queue)
	for i := range late {
		c, err := s.pretend(at)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		late[i] = c
	}
	// What is refused anyway is told as such, and takes no place.
	if err := broken(s.pretend("10.77.0.9:443")); err != nil {
		t.Errorf("one that is denied: %v", err)
	}
	s.wantDenial(t, "10.77.0.9:443", network.ReasonDefault)
	if err := broken(s.pretend(at)); err != nil {
		t.Errorf("one more than may wait: %v", err)
	}
	for _, c := range held {
		c.Close()
	}
	for i, c := range late {
		if got, err := answer(c); err != nil || got == "" {
			t.Fatalf("the %d. of those that wait: %q, %v", i+1, got, err)
		}
	}
}
