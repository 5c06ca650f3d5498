package netbridge

import (
	"fmt"
	"sync"
	"testing"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/netlab"
	"github.com/nucleus-runtime/nucleus/plugins/network/internal/probe"
	"github.com/nucleus-runtime/nucleus/sdk/config"
	"github.com/nucleus-runtime/nucleus/sdk/errs"
	"github.com/nucleus-runtime/nucleus/sdk/network"
)

func (p *process) instance(id string, i Instance) answer {
	return p.do(command{Verb: "instance", ID: id, Instance: &i})
}

func call(sandbox, instance string) network.Call {
	return network.Call{RequestID: "r-" + sandbox, SandboxID: sandbox, InstanceID: instance}
}

func TestPoolsAndTheirLimits(t *testing.T) {
	netlab.Needs(t)
	lab := netlab.New(t)
	lab.Echo(t, 443)
	before := lab.Host.Census(t)
	p := start(t, lab)
	if a := p.instance("small", Instance{Subnet: "10.42.0.0/30"}); a.Error != "" {
		t.Fatal(a.Error)
	}
	b, b2 := newBox(t, "sb1"), newBox(t, "sb2")
	a := p.attach(b, network.AttachRequest{Call: call("sb1", "small"), Egress: network.Egress{Default: network.Public}})
	if got := a.Attached.IPs[0].Address.String(); got != "10.42.0.2/30" {
		t.Errorf("the address is %s", got)
	}
	r := p.tryAttach(b2, network.AttachRequest{Call: call("sb2", "small")})
	if r.Code != errs.Exhausted || r.Reason != "POOL_EXHAUSTED" {
		t.Errorf("an exhausted pool: %v %s", r.Code, r.Error)
	}
	t.Log(r.Error)
	for _, f := range []string{"93.184.216.34:443", "[2606:2800:220::34]:443"} {
		if got := b.try(probe.Probe{ID: "x", Kind: probe.TCP, To: f})["x"]; !got.OK {
			t.Errorf("%s: %s", f, got.Err)
		}
	}
	for _, tc := range []struct {
		subnet string
		code   errs.Code
	}{
		{"151.101.7.128/25", errs.Config}, // the uplink's network
		{"151.101.0.0/16", errs.Config},
		{"10.42.0.0/24", errs.Config}, // another bridge's
		{"10.43.0.0/24", errs.Unset},
	} {
		if a := p.instance("x", Instance{Subnet: tc.subnet}); a.Error != "" {
			t.Fatal(a.Error)
		}
		x := newBox(t, "sb3")
		r := p.tryAttach(x, network.AttachRequest{Call: call("sb3", "x")})
		if r.Code != tc.code {
			t.Errorf("%s: %v %s", tc.subnet, r.Code, r.Error)
		}
		t.Log(r.Error)
		p.do(command{Verb: "detach", Detach: &network.DetachRequest{Call: call("sb3", "x")}})
		x.end()
	}
	p.do(command{Verb: "detach", Detach: &network.DetachRequest{Call: call("sb1", "small")}})
	clean(t, lab, before)
}

func TestConfigurationsThatAreWrong(t *testing.T) {
	for _, s := range []string{"10.42.0.0/31", "10.42.0.1/24", "10.0.0.0/7", "fd00::/64", "127.0.0.0/8", "198.18.0.0/24", "224.0.0.0/8", "x"} {
		if err := New().ConfigureInstance(t.Context(), config.Instance{ID: "i"}, Instance{Subnet: s}); errs.CodeOf(err) != errs.Config {
			t.Errorf("subnet %s: %v", s, err)
		}
	}
	for _, s := range []string{"10.0.0.0/24", "fd00::/127", "fd00::1/64", "fe80::/64", "fd00:6e75:636c::/80"} {
		if err := New().ConfigureInstance(t.Context(), config.Instance{ID: "i"}, Instance{Subnet: "10.42.0.0/24", Subnet6: s}); errs.CodeOf(err) != errs.Config {
			t.Errorf("subnet6 %s: %v", s, err)
		}
	}
	if err := New().ConfigureInstance(t.Context(), config.Instance{ID: "i"}, Instance{Subnet6: "fd00::/64"}); errs.CodeOf(err) != errs.Config {
		t.Errorf("subnet6 alone: %v", err)
	}
}

func TestManyAtOnce(t *testing.T) {
	netlab.Needs(t)
	lab := netlab.New(t)
	lab.Echo(t, 443)
	before := lab.Host.Census(t)
	const n = 20
	var wg sync.WaitGroup
	var mu sync.Mutex
	seen := make(map[string]bool)
	for i := range n {
		p, b := start(t, lab), newBox(t, fmt.Sprint("sb", i))
		wg.Go(func() {
			for range 3 {
				r := network.AttachRequest{Call: call(b.id, ""), Egress: network.Egress{Default: network.Public}, Ports: []network.PortMap{{ContainerPort: 80, Protocol: "tcp"}}}
				a := p.do(command{Verb: "attach", Attach: &r}, b.files...)
				if a.Error != "" {
					t.Errorf("%s: %s", b.id, a.Error)
					return
				}
				ip := a.Attached.IPs[0].Address.String()
				mu.Lock()
				if seen[ip] {
					t.Errorf("%s was given twice", ip)
				}
				seen[ip] = true
				mu.Unlock()
				if got := b.try(probe.Probe{ID: "x", Kind: probe.TCP, To: "93.184.216.34:443"})["x"]; !got.OK {
					t.Errorf("%s: %s", b.id, got.Err)
				}
				mu.Lock()
				delete(seen, ip)
				mu.Unlock()
				if d := p.do(command{Verb: "detach", Detach: &network.DetachRequest{Call: call(b.id, "")}}); d.Error != "" {
					t.Errorf("%s: %s", b.id, d.Error)
				}
			}
		})
	}
	wg.Wait()
	clean(t, lab, before)
}

func TestGarbage(t *testing.T) {
	netlab.Needs(t)
	lab := netlab.New(t)
	before := lab.Host.Census(t)
	p := start(t, lab)
	var boxes []*box
	for i := range 3 {
		b := newBox(t, fmt.Sprint("sb", i))
		p.attach(b, network.AttachRequest{Egress: network.Egress{Default: network.Public}})
		boxes = append(boxes, b)
	}
	p.kill()
	fresh := start(t, lab)
	r := network.GCRequest{Valid: []network.Attachment{{SandboxID: "sb1"}}, DryRun: true}
	dry := fresh.do(command{Verb: "gc", GC: &r})
	if len(dry.GC.Removed) != 2 {
		t.Errorf("a dry run would remove %q", dry.GC.Removed)
	}
	for _, b := range boxes {
		if st := fresh.status(b); !st.OK {
			t.Errorf("a dry run has changed %s: %q", b.id, st.Drift)
		}
	}
	r.DryRun = false
	got := fresh.do(command{Verb: "gc", GC: &r})
	if len(got.GC.Failed) > 0 {
		t.Errorf("%q", got.GC.Failed)
	}
	for i, b := range boxes {
		if st := fresh.status(b); st.OK != (i == 1) {
			t.Errorf("%s after garbage was collected: %+v", b.id, st)
		}
	}
	fresh.do(command{Verb: "gc", GC: &network.GCRequest{}})
	clean(t, lab, before)
}

func TestOtherFirewalls(t *testing.T) {
	netlab.Needs(t)
	const docker = `
table ip filter {
	chain DOCKER-USER { return; }
	chain FORWARD { type filter hook forward priority filter; policy drop; jump DOCKER-USER; }
}
table ip6 filter {
	chain FORWARD { type filter hook forward priority filter; policy drop; }
}`
	const own = `
table inet filter {
	chain FORWARD { type filter hook forward priority filter; policy accept; }
}
table inet mine {
	chain passing { type filter hook forward priority filter; policy drop; }
}`
	for _, tc := range []struct {
		name, rules string
		passes      bool
	}{{"docker's", docker, true}, {"an administrator's", own, false}} {
		t.Run(tc.name, func(t *testing.T) {
			lab := netlab.New(t)
			lab.Echo(t, 443)
			if out, err := lab.Host.Command("sh", "-c", "nft -f - <<'EOF'"+tc.rules+"\nEOF").CombinedOutput(); err != nil {
				t.Fatalf("%s", out)
			}
			before := lab.Host.Census(t)
			p, b := start(t, lab), newBox(t, "sb1")
			r := p.tryAttach(b, network.AttachRequest{Egress: network.Egress{Default: network.Public}})
			if !tc.passes {
				if r.Code != errs.Precondition {
					t.Errorf("%v %s", r.Code, r.Error)
				}
				t.Log(r.Error)
				clean(t, lab, before)
				return
			}
			if r.Error != "" {
				t.Fatal(r.Error)
			}
			for _, f := range []string{"93.184.216.34:443", "[2606:2800:220::34]:443"} {
				if got := b.try(probe.Probe{ID: "x", Kind: probe.TCP, To: f})["x"]; !got.OK {
					t.Errorf("%s: %s", f, got.Err)
				}
			}
			out, _ := lab.Host.Command("nft", "list", "table", "ip", "filter").CombinedOutput()
			t.Logf("%s", out)
			p.detach(b)
			clean(t, lab, before)
		})
	}
}
