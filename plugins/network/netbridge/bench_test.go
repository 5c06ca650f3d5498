package netbridge

import (
	"net/netip"
	"testing"
	"time"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/netlab"
	"github.com/nucleus-runtime/nucleus/sdk/network"
)

func BenchmarkAttach(b *testing.B) {
	netlab.Needs(b)
	lab := netlab.New(b)
	first := newBox(b, "first")
	p := start(b, lab)
	p.attach(first, network.AttachRequest{Egress: network.Egress{Default: network.Public}})
	var attach, detach time.Duration
	for b.Loop() {
		b.StopTimer()
		x := newBox(b, "again")
		b.StartTimer()
		attach += p.attach(x, network.AttachRequest{Egress: network.Egress{Default: network.Public, Allow: []network.Rule{{
			CIDRs: []netip.Prefix{netlab.PrivateV4, netlab.PrivateV6}, Ports: tcpPorts(443, 443),
		}}}}).Took
		detach += p.detach(x).Took
		b.StopTimer()
		x.end()
		b.StartTimer()
	}
	b.ReportMetric(float64(attach.Microseconds())/float64(b.N)/1000, "attach-ms")
	b.ReportMetric(float64(detach.Microseconds())/float64(b.N)/1000, "detach-ms")
}
