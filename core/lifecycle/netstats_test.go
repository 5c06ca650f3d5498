package lifecycle

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/nucleus-runtime/nucleus/core/exec"
	sdk "github.com/nucleus-runtime/nucleus/sdk/network"
)

func TestDenialsAreBoundedAndCounted(t *testing.T) {
	var d denials
	for i := range 1000 {
		d.add(denialOf(sdk.Denial{Protocol: "dns", Name: fmt.Sprintf("%d.example", i), Rule: -1, Reason: sdk.ReasonDefault, Count: 2}, "job.hcl:3"))
	}
	d.add(denialOf(sdk.Denial{Protocol: "dns", Name: "0.example", Rule: -1, Reason: sdk.ReasonDefault}, "job.hcl:3"))
	d.add(denialOf(sdk.Denial{Protocol: "tcp\x1b", Dst: netip.MustParseAddrPort("[2001:db8::1]:25"), Reason: sdk.Reason(strings.Repeat("x", 1<<20))}, ""))
	r := exec.Result{Network: &exec.Network{Denied: 5}}
	d.record(&r)
	if n := r.Network; n.Denied != 2002 || len(n.Denials) != maxDenials || n.Denials[0].Count != 3 || n.Denials[31].Name != "31.example" {
		t.Errorf("%+v", r.Network)
	}
}

func TestDenialIsCleaned(t *testing.T) {
	x := denialOf(sdk.Denial{Protocol: "tcp\x1b", Name: strings.Repeat("x", 1<<20), Dst: netip.MustParseAddrPort("[2001:db8::1]:25")}, "here")
	if x.Protocol != "tcp " || len(x.Name) != 256 || x.Destination != "[2001:db8::1]:25" || x.Where != "here" || x.Count != 1 {
		t.Errorf("%+v", x)
	}
}

// The backend's count may be ahead of what it has told of.
func TestTheLargerCountOfDenialsIsRecorded(t *testing.T) {
	var d denials
	r := exec.Result{}
	d.record(&r)
	if r.Network != nil {
		t.Errorf("a network without denials: %+v", r.Network)
	}
	d.add(exec.Denial{Protocol: "tcp", Count: 1})
	d.record(&r)
	if r.Network.Denied != 1 {
		t.Errorf("%+v", r.Network)
	}
	r.Network.Denied = 9
	d.record(&r)
	if r.Network.Denied != 9 {
		t.Errorf("%+v", r.Network)
	}
}
