package netbridge

import (
	"net/netip"
	"testing"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/netlab"
	"github.com/nucleus-runtime/nucleus/plugins/network/internal/probe"
	"github.com/nucleus-runtime/nucleus/sdk/network"
)

func TestAttachReachesWhatIsAllowed(t *testing.T) {
	netlab.Needs(t)
	lab := netlab.New(t)
	lab.Echo(t, 443)
	before := lab.Host.Census(t)
	p := start(t, lab)
	b := newBox(t, "sb1")
	a := p.attach(b, network.AttachRequest{IfName: "eth0", Egress: network.Egress{Allow: []network.Rule{{
		CIDRs: []netip.Prefix{netlab.PublicV4, netlab.PublicV6}, Ports: []network.Ports{{Protocol: "tcp", First: 443, Last: 443}},
	}}}})
	t.Logf("attached in %v: %+v", a.Took, a.Attached)
	for id, r := range b.try(
		probe.Probe{Kind: probe.TCP, To: "93.184.216.34:443"},
		probe.Probe{Kind: probe.TCP, To: "[2606:2800:220::34]:443"},
		probe.Probe{Kind: probe.UDP, To: "93.184.216.34:443"},
		probe.Probe{Kind: probe.Self},
	) {
		t.Logf("%s: %+v", id, r)
	}
	t.Logf("%+v", p.status(b))
	t.Log(p.detach(b).Took)
	clean(t, lab, before)
}
