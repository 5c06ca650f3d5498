package lifecycle

import (
	"errors"
	"slices"
	"testing"

	"github.com/nucleus-runtime/nucleus/core/initproto"
	"github.com/nucleus-runtime/nucleus/core/plan"
	"github.com/nucleus-runtime/nucleus/core/runtimes"
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

// What waits for the workload in the namespace is not opened where its network stack
// brings nothing there, and a network that cannot be without it is refused.
func TestOpeningsThatAnOwnStackDoesNotMeet(t *testing.T) {
	asked := []sdk.Opening{
		{Name: "netns", Kind: sdk.NetNS}, {Name: "route", Kind: sdk.RouteSocket}, {Name: "tap", Kind: sdk.Tap}, {Name: "dns", Kind: sdk.ListenUDP, Optional: true},
	}
	s := &Sandbox{plan: &plan.Plan{Runtime: &plan.Runtime{Plugin: "r"}, Network: plan.Network{Backend: "n"}}}
	s.foreign.answer = &runtimes.Answer{}
	if kept, missing, err := s.met(asked); err != nil || len(missing) > 0 || len(kept) != len(asked) {
		t.Errorf("in the namespace's stack: %v, missing %q, %v", kept, missing, err)
	}
	s.foreign.answer.OwnNetwork = true
	kept, missing, err := s.met(asked)
	if err != nil || !slices.Equal(missing, []string{"dns"}) || !slices.Equal(kept, asked[:3]) {
		t.Errorf("in a stack of its own: %v, missing %q, %v", kept, missing, err)
	}
	asked[3].Optional = false
	var pe *PhaseError
	if _, _, err := s.met(asked); !errors.As(err, &pe) || pe.Origin != "runtime" {
		t.Errorf("a listener that must be: %v", err)
	}
}
