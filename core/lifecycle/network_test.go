package lifecycle

import (
	"testing"

	"github.com/nucleus-runtime/nucleus/core/initproto"
	sdk "github.com/nucleus-runtime/nucleus/sdk/network"
)

// Init is not to link what it needs not, and so has numbers of its own.
func TestOpeningsHaveTheNumbersOfTheContract(t *testing.T) {
	for init, contract := range map[uint8]sdk.OpeningKind{
		initproto.OpenTap: sdk.Tap, initproto.OpenRoute: sdk.RouteSocket, initproto.OpenNetfilter: sdk.NetfilterSocket,
		initproto.OpenListenTCP: sdk.ListenTCP, initproto.OpenListenUDP: sdk.ListenUDP, initproto.OpenTCP: sdk.TCPSocket,
		initproto.OpenUDP: sdk.UDPSocket, initproto.OpenNetNS: sdk.NetNS, initproto.OpenRaw: sdk.RawSocket,
	} {
		if init != uint8(contract) {
			t.Errorf("%d is not %d", init, contract)
		}
	}
}
