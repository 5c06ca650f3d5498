package netbridge

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/netlab"
	"github.com/nucleus-runtime/nucleus/plugins/network/internal/probe"
	"github.com/nucleus-runtime/nucleus/sdk/errs"
	"github.com/nucleus-runtime/nucleus/sdk/network"
)

// Where IPv6 is switched off a sandbox has IPv4 alone; the next one has both when it is on
// again, on the bridge that is there.
func TestHostWithoutIPv6(t *testing.T) {
	netlab.Needs(t)
	for name, off := range map[string][]string{"everywhere": {"all", "default"}, "for new links": {"default"}} {
		t.Run(name, func(t *testing.T) {
			lab := netlab.New(t)
			lab.Echo(t, 443)
			for _, link := range off {
				lab.Host.Sysctl(t, "ipv6/conf/"+link+"/disable_ipv6", "1")
			}
			before := lab.Host.Census(t)
			four := flows{"93.184.216.34:443", probe.TCP, true, ""}
			six := flows{"[2606:2800:220::34]:443", probe.TCP, true, ""}
			request := network.AttachRequest{Egress: network.Egress{Default: network.Public}, Ports: []network.PortMap{{HostPort: 80, ContainerPort: 80, Protocol: "tcp"}}}
			p, b := start(t, lab), newBox(t, "sb1")
			a := p.attach(b, request).Attached
			if len(a.IPs) != 1 || !a.IPs[0].Address.Addr().Is4() || len(a.Routes) != 1 {
				t.Errorf("addresses %v, routes %v: want those of IPv4 alone", a.IPs, a.Routes)
			}
			without := six
			without.passes = false
			expect(t, lab, p, b, []flows{four, without})
			if st := p.status(b); !st.OK {
				t.Errorf("drift: %q", st.Drift)
			}
			at6 := network.AttachRequest{Ports: []network.PortMap{{HostIP: netlab.HostV6, HostPort: 81, ContainerPort: 80, Protocol: "tcp"}}}
			if got := p.tryAttach(newBox(t, "sb2"), at6); got.Code != errs.Precondition {
				t.Errorf("a port published at an address of IPv6: %+v", got)
			}

			for _, link := range append(off, "nucleus0") {
				lab.Host.Sysctl(t, "ipv6/conf/"+link+"/disable_ipv6", "0")
			}
			if st := p.status(b); !st.OK {
				t.Errorf("drift of a sandbox that never had IPv6: %q", st.Drift)
			}
			p2, b3 := start(t, lab), newBox(t, "sb3")
			if got := p2.attach(b3, network.AttachRequest{Egress: request.Egress}).Attached; len(got.IPs) != 2 {
				t.Errorf("addresses %v: want one of each family", got.IPs)
			}
			if name == "for new links" { // the uplink has kept its addresses
				expect(t, lab, p2, b3, []flows{four, six})
			}
			if st := p2.status(b3); !st.OK {
				t.Errorf("drift: %q", st.Drift)
			}
			p2.detach(b3)
			p.detach(b)
			for _, link := range off {
				lab.Host.Sysctl(t, "ipv6/conf/"+link+"/disable_ipv6", "1")
			}
			clean(t, lab, before)
		})
	}
}

// What is reached by address counts as connections without a name, each once, whatever
// has let it pass.
func TestFlowsByAddressAreCounted(t *testing.T) {
	netlab.Needs(t)
	lab := netlab.New(t)
	lab.Echo(t, 443)
	block := []netip.Prefix{netlab.PublicV4, netlab.PublicV6}
	for name, e := range map[string]network.Egress{
		"a block":            {Allow: []network.Rule{{CIDRs: block}}},
		"a block and a port": {Allow: []network.Rule{{CIDRs: block, Ports: []network.Ports{{Protocol: "tcp", First: 443, Last: 443}, {Protocol: "udp", First: 443, Last: 443}}}}},
		"what is public":     {Default: network.Public},
		"everything":         {Default: network.Allow},
	} {
		t.Run(name, func(t *testing.T) {
			p, b := start(t, lab), newBox(t, "sb1")
			p.attach(b, network.AttachRequest{Egress: e})
			b.try(
				probe.Probe{Kind: probe.TCP, To: "93.184.216.34:443", Times: 2},
				probe.Probe{Kind: probe.TCP, To: "[2606:2800:220::34]:443"},
				probe.Probe{Kind: probe.UDP, To: "93.184.216.34:443"},
				probe.Probe{Kind: probe.TCP, To: "198.18.1.1:443", Wait: 300 * time.Millisecond},
			)
			all := p.status(b).Flows
			i := slices.IndexFunc(all, func(f network.FlowStats) bool { return f.Name == "" })
			if i < 0 || all[i].Connections != 4 {
				t.Errorf("flows %+v: want 4 connections without a name", all)
			}
			p.detach(b)
		})
	}
}
