package netuserspace

import (
	"bufio"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/netlab"
	"github.com/nucleus-runtime/nucleus/plugins/network/netuserspace/internal/inside"
	"github.com/nucleus-runtime/nucleus/sdk/network"
)

// Whatever of what is asked for a kernel has not, nothing of the rest leads packets to
// where nobody takes them.
func TestWhatIsMissingTakesAlongWhatComesAfterIt(t *testing.T) {
	netlab.Needs(t)
	lab := netlab.New(t)
	lab.Echo(t, 443)
	const at4, at6 = "93.184.216.34:443", "[2606:2800:220::7]:443"
	for _, c := range []struct {
		without  []string
		netstack bool   // flows come by the tap
		no6      bool   // flows of IPv6 are refused
		long     string // where TCP does not take lo from the start
	}{
		{without: nil},
		{without: []string{inside.Shortcut}, long: at4},
		{without: []string{inside.Shortcut6}, long: at6},
		{without: []string{inside.Shortcut, inside.Shortcut6}, long: at4 + at6},
		{without: []string{inside.Capture6}, no6: true, long: at6},
		{without: []string{inside.Steer6}, no6: true, long: at6},
		{without: []string{inside.Capture}, netstack: true, long: at4 + at6},
		{without: []string{inside.Steer}, netstack: true, long: at4 + at6},
		{without: []string{inside.Steer, inside.Steer6, inside.Capture, inside.Capture6, inside.Shortcut, inside.Shortcut6}, netstack: true, long: at4 + at6},
		{without: []string{inside.Tap}},
		{without: []string{inside.Tap, inside.Shortcut, inside.Shortcut6}}, // the way is the same with marks
		{without: []string{inside.Tap, inside.Capture6}, no6: true, long: at6},
	} {
		t.Run(fmt.Sprint(c.without), func(t *testing.T) {
			s := attach(t, lab, options{egress: network.Egress{Default: network.Public}, without: c.without, ports: []network.PortMap{publish("0.0.0.0:0", 80, "tcp")}})
			for _, at := range []string{at4, at6} {
				for _, proto := range []string{"tcp", "udp"} {
					start := time.Now()
					got, err := s.ask(proto, at)
					if c.no6 && at == at6 {
						if err == nil || time.Since(start) > quickly {
							t.Errorf("%s %s: %q, %v after %s", proto, at, got, err, time.Since(start))
						}
					} else if err != nil || !strings.HasPrefix(got, proto+" "+at) {
						t.Errorf("%s %s: %q, %v", proto, at, got, err)
					}
				}
				if got, err := s.leavesByLoopback(netip.MustParseAddrPort(at).Addr()); err != nil || got == strings.Contains(c.long, at) {
					t.Errorf("TCP to %s takes lo: %t, %v", at, got, err)
				}
			}
			told6 := slices.ContainsFunc(s.attached.IPs, func(ip network.IPConfig) bool { return ip.Address.Addr().Is6() })
			if told6 == c.no6 {
				t.Errorf("the sandbox is told of an address of IPv6: %t", told6)
			}
			go serve(s.listenAt("tcp", ":80"))
			want := inside.Gateway4.String()
			if !c.netstack {
				want = "151.101.7.1"
			}
			conn, err := lab.Internet.Dial(t.Context(), "tcp", netip.AddrPortFrom(netlab.HostV4, s.attached.Ports[0].HostPort).String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
			if line, err := bufio.NewReader(conn).ReadString('\n'); err != nil || !strings.Contains(line, want) {
				t.Errorf("a client from outside is seen as %q, want %s: %v", line, want, err)
			}
		})
	}
}

// leavesByLoopback tells which way a TCP socket has from the start.
func (s *sandbox) leavesByLoopback(to netip.Addr) (yes bool, err error) {
	s.do(func() {
		m := nl.NewRtMsg()
		m.Family, m.Dst_len = unix.AF_INET, uint8(to.BitLen())
		if to.Is6() {
			m.Family = unix.AF_INET6
		}
		r := nl.NewNetlinkRequest(unix.RTM_GETROUTE, 0)
		r.AddData(m)
		r.AddData(nl.NewRtAttr(unix.RTA_DST, to.AsSlice()))
		r.AddData(nl.NewRtAttr(unix.RTA_IP_PROTO, []byte{unix.IPPROTO_TCP}))
		var answers [][]byte
		if answers, err = r.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWROUTE); err != nil {
			if errors.Is(err, unix.ENETUNREACH) {
				err = nil
			}
			return
		}
		attrs, e := nl.ParseRouteAttrAsMap(answers[0][unix.SizeofRtMsg:])
		err = e
		yes = nl.NativeEndian().Uint32(attrs[unix.RTA_OIF].Value) == 1
	})
	return yes, err
}
