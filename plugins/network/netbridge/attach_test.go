package netbridge

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/netlab"
	"github.com/nucleus-runtime/nucleus/plugins/network/internal/probe"
	"github.com/nucleus-runtime/nucleus/sdk/network"
)

func tcpPorts(first, last uint16) []network.Ports {
	return []network.Ports{{Protocol: "tcp", First: first, Last: last}}
}

// flows is what a test tries: a probe, whether it passes, and the reason of its denial.
type flows struct {
	to     string // ADDRESS:PORT or, for ICMP, ADDRESS
	kind   string
	passes bool
	reason network.Reason
}

func (f flows) id() string { return f.kind + " " + f.to }

func (f flows) dst() netip.AddrPort {
	if at, err := netip.ParseAddrPort(f.to); err == nil {
		return at
	}
	return netip.AddrPortFrom(netip.MustParseAddr(f.to), 0)
}

// expect tries flows and compares: what came of them, how fast a refusal was, what
// left the host, and what was told of it.
func expect(t *testing.T, lab *netlab.Lab, p *process, b *box, all []flows) {
	t.Helper()
	lab.ForgetPackets(t)
	var ps []probe.Probe
	for _, f := range all {
		ps = append(ps, probe.Probe{ID: f.id(), Kind: f.kind, To: f.to})
	}
	got := b.try(ps...)
	packets := lab.Packets(t)
	for _, f := range all {
		r := got[f.id()]
		if r.OK != f.passes {
			t.Errorf("%s: passed %v, want %v: %s", f.id(), r.OK, f.passes, r.Err)
		}
		if f.passes {
			continue
		}
		// The kernel bounds how many errors it sends (icmp(7), icmp_ratelimit), and TCP tries
		// again after a second. Ping takes no errors.
		if r.Took > probe.DefaultWait-100*time.Millisecond && f.kind != probe.ICMP {
			t.Errorf("%s: it took %v to be refused", f.id(), r.Took)
		}
		for _, x := range packets {
			if x.Dst == f.dst() && strings.HasPrefix(x.String(), f.kind) {
				t.Errorf("%s: it left the host: %s", f.id(), x)
			}
		}
	}
	want := slices.Clone(all)
	want = slices.DeleteFunc(want, func(f flows) bool { return f.passes || f.reason == "" })
	for len(want) > 0 {
		_, err := p.denied(func(d network.Denial) bool {
			n := len(want)
			want = slices.DeleteFunc(want, func(f flows) bool { return f.kind == d.Protocol && f.dst() == d.Dst && f.reason == d.Reason })
			return len(want) < n
		})
		if err != nil {
			t.Errorf("not told of %+v: %v", want, err)
			return
		}
	}
}

func TestFlowsByAddress(t *testing.T) {
	netlab.Needs(t)
	lab := netlab.New(t)
	lab.Echo(t, 443, 8080)
	before := lab.Host.Census(t)
	for _, tc := range []struct {
		name   string
		egress network.Egress
		flows  []flows
	}{
		{"nothing by default", network.Egress{}, []flows{
			{"93.184.216.34:443", probe.TCP, false, network.ReasonDefault},
			{"[2606:2800:220::34]:443", probe.TCP, false, network.ReasonDefault},
			{"93.184.216.34:443", probe.UDP, false, network.ReasonDefault},
			{"[2606:2800:220::34]:443", probe.UDP, false, network.ReasonDefault},
			{"93.184.216.34", probe.ICMP, false, network.ReasonDefault},
			{"2606:2800:220::34", probe.ICMP, false, network.ReasonDefault},
		}},
		{"a block and a port", network.Egress{Allow: []network.Rule{
			{CIDRs: []netip.Prefix{netlab.PublicV4, netlab.PublicV6}, Ports: tcpPorts(400, 443)},
			{CIDRs: []netip.Prefix{netip.MustParsePrefix("10.77.0.8/29"), netip.MustParsePrefix("10.77.0.64/26")}, Protocols: []string{"icmp"}},
		}}, []flows{
			{"93.184.216.34:443", probe.TCP, true, ""},
			{"[2606:2800:220::34]:443", probe.TCP, true, ""},
			{"93.184.216.34:8080", probe.TCP, false, network.ReasonPort},
			{"[2606:2800:220::34]:8080", probe.TCP, false, network.ReasonPort},
			{"93.184.216.34:443", probe.UDP, false, network.ReasonPort},
			{"[2606:2800:220::34]:443", probe.UDP, false, network.ReasonPort},
			{"9.9.9.9:443", probe.TCP, false, network.ReasonDefault},
			{"93.184.216.34", probe.ICMP, false, network.ReasonPort},
			{"10.77.0.9", probe.ICMP, true, ""},
			{"10.77.0.65", probe.ICMP, true, ""},
			{"10.77.0.17", probe.ICMP, false, network.ReasonDefault},
		}},
		{"what is public", network.Egress{Default: network.Public, Allow: []network.Rule{{CIDRs: []netip.Prefix{netlab.PrivateV6}, Ports: tcpPorts(443, 443)}}}, []flows{
			{"93.184.216.34:443", probe.TCP, true, ""},
			{"[2606:2800:220::34]:8080", probe.TCP, true, ""},
			{"93.184.216.34:8080", probe.UDP, true, ""},
			{"93.184.216.34", probe.ICMP, true, ""},
			{"2606:2800:220::34", probe.ICMP, true, ""},
			{"10.77.0.9:443", probe.TCP, false, network.ReasonDefault},
			{"100.64.9.9:443", probe.TCP, false, network.ReasonDefault},
			{"169.254.169.254:443", probe.TCP, false, network.ReasonDefault},
			{"[fd00:ec2::254]:443", probe.TCP, false, network.ReasonDefault},
			{"[fd77::9]:443", probe.TCP, true, ""},
			{"[fd77::9]:8080", probe.TCP, false, network.ReasonPort},
			{"198.18.1.1:443", probe.TCP, false, network.ReasonUnbound},
			{"[fd00:6e75:636c::101]:443", probe.TCP, false, network.ReasonUnbound},
		}},
		{"everything", network.Egress{Default: network.Allow}, []flows{
			{"10.77.0.9:443", probe.TCP, true, ""},
			{"[fd77::9]:443", probe.UDP, true, ""},
			{"169.254.169.254:443", probe.TCP, true, ""},
			{"198.18.1.1:443", probe.TCP, false, network.ReasonUnbound},
			{"10.203.0.1:22", probe.TCP, false, network.ReasonHost},
			{netlab.HostV4.String() + ":22", probe.TCP, false, network.ReasonHost},
			{netip.AddrPortFrom(netlab.HostV6, 22).String(), probe.TCP, false, network.ReasonHost},
			{netip.AddrPortFrom(netlab.HostV6, 22).String(), probe.UDP, false, network.ReasonHost},
			{"10.203.0.1", probe.ICMP, false, network.ReasonHost},
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.egress.Default == network.Allow {
				lab.Host.Echo(t, 22)
			}
			p, b := start(t, lab), newBox(t, "sb1")
			p.attach(b, network.AttachRequest{IfName: "eth0", Egress: tc.egress})
			expect(t, lab, p, b, tc.flows)
			if st := p.status(b); !st.OK {
				t.Errorf("drift of what was just made: %q", st.Drift)
			}
			p.detach(b)
			clean(t, lab, before)
		})
	}
}

func TestSandboxesReachNeitherEachOtherNorTheHost(t *testing.T) {
	netlab.Needs(t)
	lab := netlab.New(t)
	lab.Echo(t, 443)
	before := lab.Host.Census(t)
	lab.Host.Echo(t, 22)
	p1, p2 := start(t, lab), start(t, lab)
	b1, b2 := newBox(t, "sb1"), newBox(t, "sb2")
	all := network.Egress{Default: network.Allow, Allow: []network.Rule{{CIDRs: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}}}}
	a1 := p1.attach(b1, network.AttachRequest{Egress: all})
	a2 := p2.attach(b2, network.AttachRequest{Egress: all, Ports: []network.PortMap{{HostPort: 8081, ContainerPort: 80, Protocol: "tcp"}}})
	done := make(chan struct{})
	go func() {
		defer close(done)
		b2.try(probe.Probe{Kind: probe.Serve, To: ":80", Wait: 6 * time.Second})
	}()
	time.Sleep(200 * time.Millisecond)
	v4, v6 := a2.Attached.IPs[0].Address.Addr(), a2.Attached.IPs[1].Address.Addr()
	expect(t, lab, p1, b1, []flows{
		{netip.AddrPortFrom(v4, 80).String(), probe.TCP, false, network.ReasonHost},
		{netip.AddrPortFrom(v6, 80).String(), probe.TCP, false, network.ReasonHost},
		{netip.AddrPortFrom(v4, 80).String(), probe.UDP, false, network.ReasonHost},
		{v4.String(), probe.ICMP, false, network.ReasonHost},
		{v6.String(), probe.ICMP, false, network.ReasonHost},
		// By way of what is published.
		{netip.AddrPortFrom(netlab.HostV4, 8081).String(), probe.TCP, false, ""},
		{"10.203.0.1:8081", probe.TCP, false, ""},
		{"10.203.0.1:22", probe.TCP, false, network.ReasonHost},
		{"93.184.216.34:443", probe.TCP, true, ""},
	})
	// Past its own routes, straight to the other's link.
	r := b1.try(
		probe.Probe{ID: "tamper", Kind: probe.Tamper, From: a1.Attached.IPs[0].Address.String(), To: v4.String(), Alone: true},
		probe.Probe{ID: "flow", Kind: probe.TCP, To: netip.AddrPortFrom(v4, 80).String(), Alone: true},
	)
	if r["flow"].OK {
		t.Error("a sandbox reaches another one that it has a route to")
	}
	<-done
	p1.detach(b1)
	p2.detach(b2)
	clean(t, lab, before)
}

func at(a string) string { return netip.AddrPortFrom(netip.MustParseAddr(a), 4444).String() }

func TestSpoofedPacketsGoNowhere(t *testing.T) {
	netlab.Needs(t)
	lab := netlab.New(t)
	lab.Echo(t, 443)
	p, b, other := start(t, lab), newBox(t, "sb1"), newBox(t, "sb2")
	all := network.Egress{Default: network.Allow}
	a := p.attach(b, network.AttachRequest{Egress: all})
	o := p.attach(other, network.AttachRequest{Egress: all})
	own4, own6 := a.Attached.IPs[0].Address.Addr().String(), a.Attached.IPs[1].Address.Addr().String()
	// That the packets would go, but for their addresses.
	for _, from := range [][2]string{{own4, "93.184.216.34:9999"}, {own6, "[2606:2800:220::34]:9999"}} {
		lab.ForgetPackets(t)
		r := b.try(probe.Probe{ID: "x", Kind: probe.Raw, From: at(from[0]), To: from[1], Proto: unix.IPPROTO_UDP, Alone: true})["x"]
		if !r.OK {
			t.Fatalf("from %s: %s", from[0], r.Err)
		}
		if len(lab.Packets(t)) == 0 {
			t.Fatalf("what comes from %s does not leave: the test shows nothing", from[0])
		}
	}
	lab.ForgetPackets(t)
	for _, from := range []string{
		o.Attached.IPs[0].Address.Addr().String(), o.Attached.IPs[1].Address.Addr().String(), "10.203.0.1", "fd6e:7563:6c65:1::1", netlab.HostV4.String(), netlab.HostV6.String(),
		"127.0.0.1", "93.184.216.99", "fe80::1", "2606:2800:220::99", "10.203.7.7",
	} {
		to := "93.184.216.34:9999"
		if strings.Contains(from, ":") {
			to = "[2606:2800:220::34]:9999"
		}
		for _, kind := range []string{probe.Raw, probe.Frame} {
			r := b.try(probe.Probe{ID: "x", Kind: kind, From: at(from), To: to, Proto: unix.IPPROTO_UDP, Alone: true})["x"]
			if !r.OK {
				t.Logf("%s from %s: %s", kind, from, r.Err)
			}
		}
	}
	r := b.try(probe.Probe{ID: "x", Kind: probe.Frame, From: at(own4), To: "93.184.216.34:9999", Proto: unix.IPPROTO_UDP, MAC: o.Attached.Interfaces[0].MAC, Alone: true})["x"]
	if !r.OK {
		t.Errorf("a frame from another link address: %s", r.Err)
	}
	if out := lab.Packets(t); len(out) > 0 {
		t.Errorf("spoofed packets have left the host: %v", out)
	}
}

func TestAttachTwiceIsAttachOnce(t *testing.T) {
	netlab.Needs(t)
	lab := netlab.New(t)
	before := lab.Host.Census(t)
	p, b := start(t, lab), newBox(t, "sb1")
	r := network.AttachRequest{Egress: network.Egress{Default: network.Public}, Ports: []network.PortMap{{ContainerPort: 80, Protocol: "tcp"}}}
	first := p.attach(b, r)
	links := func() string {
		out, _ := lab.Host.Command("sh", "-c", "ip -o link; ip -o addr; ip neigh").CombinedOutput()
		return string(out)
	}
	made := links()
	b2 := newBox(t, "sb1") // other descriptors, the same sandbox
	second := p.attach(b2, r)
	if fmt.Sprint(first.Attached.IPs, first.Attached.Ports, first.Attached.Handle) != fmt.Sprint(second.Attached.IPs, second.Attached.Ports, second.Attached.Handle) {
		t.Errorf("%+v, then %+v", first.Attached, second.Attached)
	}
	if now := links(); now != made {
		t.Errorf("the second time has changed the host: %s, %s", made, now)
	}
	p.detach(b)
	p.detach(b)
	clean(t, lab, before)
}

func TestFreshProcessCleansUp(t *testing.T) {
	netlab.Needs(t)
	lab := netlab.New(t)
	before := lab.Host.Census(t)
	for _, tc := range []struct {
		name string
		harm func(p *process, b *box)
	}{
		{"the plugin is killed", func(p *process, _ *box) { p.kill() }},
		{"the plugin and the sandbox are killed", func(p *process, b *box) { p.kill(); b.end() }},
		{"the bridge is gone", func(p *process, _ *box) {
			p.kill()
			if out, err := lab.Host.Command("ip", "link", "del", "nucleus0").CombinedOutput(); err != nil {
				t.Fatalf("%s", out)
			}
		}},
		{"the rules are gone", func(p *process, _ *box) {
			p.kill()
			if out, err := lab.Host.Command("nft", "flush", "ruleset").CombinedOutput(); err != nil {
				t.Fatalf("%s", out)
			}
		}},
		{"one table is gone", func(p *process, _ *box) {
			p.kill()
			if out, err := lab.Host.Command("nft", "delete", "table", "bridge", "nucleus").CombinedOutput(); err != nil {
				t.Fatalf("%s", out)
			}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p, b := start(t, lab), newBox(t, "sb1")
			p.attach(b, network.AttachRequest{Egress: network.Egress{Default: network.Public}, Ports: []network.PortMap{{ContainerPort: 80, Protocol: "tcp"}}})
			tc.harm(p, b)
			fresh := start(t, lab)
			st := fresh.status(b)
			if !strings.Contains(tc.name, "sandbox") && strings.Contains(tc.name, "gone") == st.OK {
				t.Errorf("status: %+v", st)
			}
			t.Logf("drift %q, removed %q", st.Drift, fresh.detach(b).Removed)
			clean(t, lab, before)
		})
	}
}

// The kernel makes one set for each rule that has several blocks.
func TestBlocksOfSeveralRules(t *testing.T) {
	netlab.Needs(t)
	lab := netlab.New(t)
	lab.Echo(t, 443, 80)
	p, b := start(t, lab), newBox(t, "sb")
	blocks := func(s ...string) (out []netip.Prefix) {
		for _, x := range s {
			out = append(out, netip.MustParsePrefix(x))
		}
		return out
	}
	p.attach(b, network.AttachRequest{Egress: network.Egress{Allow: []network.Rule{
		{CIDRs: blocks("93.184.216.0/25", "151.101.0.0/25"), Ports: append(tcpPorts(443, 443), tcpPorts(80, 80)...)},
		{CIDRs: blocks("93.184.216.128/25", "151.101.0.128/25")},
	}}})
	expect(t, lab, p, b, []flows{
		{"93.184.216.34:443", probe.TCP, true, ""},
		{"93.184.216.34:80", probe.TCP, true, ""},
		{"93.184.216.134:80", probe.TCP, true, ""},
		{"93.184.217.34:443", probe.TCP, false, network.ReasonDefault},
	})
}
