package netbridge

import (
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

// A flow that the kernel still knows of the sandbox that had the address before is
// established, and must not pass for that.
func TestAddressBringsNoFlows(t *testing.T) {
	netlab.Needs(t)
	lab := netlab.New(t)
	p := start(t, lab)
	keeps := newBox(t, "keeps") // so that the rules, and with them the labels, stay
	p.attach(keeps, network.AttachRequest{})
	p.instance("one", Instance{Subnet: "10.42.0.0/30"})
	udp := func(b *box) probe.Result {
		return b.try(probe.Probe{ID: "x", Kind: probe.Raw, From: "10.42.0.2:4444", To: "93.184.216.34:9999", Proto: unix.IPPROTO_UDP, Times: 3, Alone: true})["x"]
	}
	lab.Echo(t, 9999)
	first := newBox(t, "first")
	p.attach(first, network.AttachRequest{Call: call("first", "one"), Egress: network.Egress{Default: network.Public}})
	if r := udp(first); !r.OK {
		t.Fatal(r.Err)
	}
	time.Sleep(100 * time.Millisecond)
	if r := udp(first); !r.OK {
		t.Fatal(r.Err)
	}
	if len(lab.Packets(t)) == 0 {
		t.Fatal("the flow never was")
	}
	p.do(command{Verb: "detach", Detach: &network.DetachRequest{Call: call("first", "one")}})
	first.end()
	for _, tc := range []struct {
		name   string
		egress network.Egress
		passes bool
	}{
		{"denied", network.Egress{}, false},
		{"allowed", network.Egress{Default: network.Public}, true},
		{"denied again", network.Egress{Allow: []network.Rule{{CIDRs: []netip.Prefix{netlab.PrivateV4}}}}, false},
	} {
		b := newBox(t, "second")
		p.attach(b, network.AttachRequest{Call: call("second", "one"), Egress: tc.egress})
		lab.ForgetPackets(t)
		udp(b)
		time.Sleep(50 * time.Millisecond)
		if got := lab.Packets(t); (len(got) > 0) != tc.passes {
			t.Errorf("%s: %v", tc.name, got)
		}
		p.do(command{Verb: "detach", Detach: &network.DetachRequest{Call: call("second", "one")}})
		b.end()
	}
}

// Somebody reloads the host's firewall, and the rules are gone.
func TestNoRulesNoFlows(t *testing.T) {
	netlab.Needs(t)
	for _, harm := range []string{"flush ruleset", "delete table inet nucleus", "delete table bridge nucleus", "flush table inet nucleus", "flush chain inet nucleus forward"} {
		t.Run(harm, func(t *testing.T) {
			lab := netlab.New(t)
			lab.Echo(t, 443)
			p, b := start(t, lab), newBox(t, "sb1")
			p.attach(b, network.AttachRequest{Egress: network.Egress{Allow: []network.Rule{{CIDRs: []netip.Prefix{netlab.PublicV4}, Ports: tcpPorts(443, 443)}}}})
			if out, err := lab.Host.Command("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward; nft '"+harm+"'").CombinedOutput(); err != nil {
				t.Fatalf("%s", out)
			}
			time.Sleep(50 * time.Millisecond)
			lab.ForgetPackets(t)
			b.try(
				probe.Probe{ID: "udp", Kind: probe.UDP, To: "93.184.216.34:53", Wait: 300 * time.Millisecond},
				probe.Probe{ID: "tcp", Kind: probe.TCP, To: "93.184.216.34:80", Wait: 300 * time.Millisecond},
			)
			if got := lab.Packets(t); len(got) > 0 {
				t.Errorf("without rules packets leave: %v", got)
			}
			if st := p.status(b); st.OK {
				t.Error("status sees no drift")
			}
			p.detach(b)
		})
	}
}

// Who flushes all rules, to load others, leaves the host as it was before the sandbox.
func TestRulesFlushedAndForwardingClosed(t *testing.T) {
	netlab.Needs(t)
	lab := netlab.New(t)
	p, b := start(t, lab), newBox(t, "sb1")
	before := lab.Host.Census(t)
	p.attach(b, network.AttachRequest{})
	if clean := before.Changed(lab.Host.Census(t)); !slices.ContainsFunc(clean, func(s string) bool { return strings.Contains(s, "forwarding 1") }) {
		t.Fatalf("nothing forwards with a sandbox: %v", clean)
	}
	if out, err := lab.Host.Command("nft", "flush", "ruleset").CombinedOutput(); err != nil {
		t.Fatalf("%s", out)
	}
	p.detach(b)
	clean(t, lab, before)
}

// What the first bridge says of the host's forwarding is said by another when it goes.
func TestForwardingIsClosedThoughItsBridgeWentFirst(t *testing.T) {
	netlab.Needs(t)
	lab := netlab.New(t)
	p, first, last := start(t, lab), newBox(t, "first"), newBox(t, "last")
	before := lab.Host.Census(t)
	p.instance("own", Instance{Subnet: "10.42.0.0/24"})
	own := call("first", "own")
	p.attach(first, network.AttachRequest{Call: own})
	p.attach(last, network.AttachRequest{})
	if r := p.do(command{Verb: "detach", Detach: &network.DetachRequest{Call: own}}); r.Error != "" {
		t.Fatal(r.Error)
	}
	if st := p.status(last); !st.OK {
		t.Errorf("the bridge that stays: %q", st.Drift)
	}
	if out, err := lab.Host.Command("nft", "flush", "ruleset").CombinedOutput(); err != nil {
		t.Fatalf("%s", out)
	}
	p.detach(last)
	clean(t, lab, before)
}

// Some hosts have bridges whose packets pass nftables on their way through, others not.
func TestBridgesThatCallNftablesOrNot(t *testing.T) {
	netlab.Needs(t)
	for _, call := range []string{"0", "1"} {
		t.Run(call, func(t *testing.T) {
			lab := netlab.New(t)
			lab.Echo(t, 443)
			if out, err := lab.Host.Command("sh", "-c", "cd /proc/sys/net/bridge && for f in bridge-nf-call-*; do echo "+call+" > $f; done").CombinedOutput(); err != nil {
				netlab.Skip(t, "br_netfilter", string(out))
			}
			p, b := start(t, lab), newBox(t, "sb1")
			lab.DNS.Set("api.example.com", "93.184.216.34", "2606:2800:220::34")
			p.attach(b, network.AttachRequest{Egress: network.Egress{Allow: []network.Rule{
				{CIDRs: []netip.Prefix{netlab.PublicV4, netlab.PublicV6}, Ports: tcpPorts(443, 443)}, {Names: []string{"api.example.com"}, Ports: tcpPorts(443, 443)},
			}}})
			own := b.try(probe.Probe{ID: "q", Kind: probe.DNS, To: "127.0.0.53:53", Name: "api.example.com", Type: "A"})["q"].Addresses
			if len(own) != 1 {
				t.Fatal(own)
			}
			expect(t, lab, p, b, []flows{
				{"93.184.216.34:443", probe.TCP, true, ""},
				{"[2606:2800:220::34]:443", probe.TCP, true, ""},
				{own[0] + ":443", probe.TCP, true, ""},
				{own[0] + ":80", probe.TCP, false, network.ReasonPort},
				{"93.184.216.34:80", probe.TCP, false, network.ReasonPort},
				{"[2606:2800:220::34]:80", probe.TCP, false, network.ReasonPort},
				{"10.203.0.1:80", probe.TCP, false, network.ReasonDefault},
			})
		})
	}
}
