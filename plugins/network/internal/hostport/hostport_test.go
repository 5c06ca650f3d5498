package hostport_test

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/hostport"
	"github.com/nucleus-runtime/nucleus/sdk/errs"
	"github.com/nucleus-runtime/nucleus/sdk/network"
)

func TestAnErrorNamesItsPort(t *testing.T) {
	good := network.PortMap{HostIP: netip.MustParseAddr("127.0.0.1"), HostPort: 8080, ContainerPort: 80, Protocol: "tcp"}
	free := func(at netip.AddrPort, _ uint16) (uint16, error) { return at.Port(), nil }
	for _, tc := range []struct {
		err    error
		code   errs.Code
		reason string
	}{
		{unix.EADDRINUSE, errs.Exists, "PORT_IN_USE"},
		{unix.EACCES, errs.Denied, "PORT_PRIVILEGED"},
		{unix.EADDRNOTAVAIL, errs.Precondition, "NO_SUCH_ADDRESS"},
		{errors.New("else"), errs.Internal, "PORT_NOT_PUBLISHED"},
	} {
		udp := good
		udp.Protocol = "udp"
		_, err := hostport.All([]network.PortMap{good, udp}, free, func(netip.AddrPort, uint16) (uint16, error) { return 0, tc.err })
		e := errs.Of(err)
		if network.PortOf(err) != 1 || e.Code != tc.code || e.Reason != tc.reason || !errors.Is(err, tc.err) || !strings.Contains(err.Error(), "127.0.0.1:8080") {
			t.Errorf("%v: port %d, code %s, reason %s: %v", tc.err, network.PortOf(err), e.Code, e.Reason, err)
		}
	}
	for _, bad := range []network.PortMap{{ContainerPort: 80, Protocol: "sctp"}, {Protocol: "tcp"}} {
		err := hostport.Check([]network.PortMap{good, good, bad})
		if network.PortOf(err) != 2 || errs.CodeOf(err) != errs.Config {
			t.Errorf("%+v: port %d: %v", bad, network.PortOf(err), err)
		}
	}
	if err := hostport.Check([]network.PortMap{good}); network.PortOf(err) != -1 {
		t.Errorf("no error is about port %d", network.PortOf(err))
	}
}
