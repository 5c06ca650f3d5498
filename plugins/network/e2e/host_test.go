package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/netlab"
	"github.com/nucleus-runtime/nucleus/plugins/network/internal/probe"
)

// A host that forwards for its sandboxes forwards for nobody else: neither does the
// internet reach what is behind it, nor that the internet, nor a sandbox either.
func TestHostBecomesNoRouter(t *testing.T) {
	sites(t, func(t *testing.T, s *site) {
		publish(s.lab)
		s.lab.Echo(t, 443)
		lan := s.lab.Join(t, "lan0")
		lan.Echo(t, 443)
		s.lab.Internet.Route(t, netip.PrefixFrom(netlab.LanV4, 32), netlab.HostV4)
		s.lab.Internet.Route(t, netip.PrefixFrom(netlab.LanV6, 128), netlab.HostV6)
		r := s.server(policy + published("0.0.0.0:8083", 8080, "tcp"))
		self := r.result("self")
		for _, protocol := range []string{"tcp", "udp"} {
			for _, a := range []netip.Addr{netlab.LanV4, netlab.LanV6} {
				at := netip.AddrPortFrom(a, 443).String()
				if _, err := try(s.lab.Internet, protocol, at, 500*time.Millisecond); err == nil {
					t.Errorf("the internet reaches %s %s through the host", protocol, at)
				}
			}
			for _, at := range []string{"93.184.216.130:443", "[2606:2800:220:a::130]:443"} {
				if _, err := try(lan, protocol, at, 500*time.Millisecond); err == nil {
					t.Errorf("what is behind the host reaches %s %s through it", protocol, at)
				}
			}
			for _, a := range self.Addresses {
				at := netip.AddrPortFrom(netip.MustParseAddr(a), 8080).String()
				if _, err := try(lan, protocol, at, 500*time.Millisecond); err == nil {
					t.Errorf("what is behind the host reaches the sandbox at %s %s", protocol, at)
				}
			}
		}
		for _, p := range s.lab.Packets(t) {
			if a := p.Src.Addr(); a == netlab.LanV4 || a == netlab.LanV6 {
				t.Errorf("left the host: %s", p)
			}
		}
		r.stop()
	})
}

// On a host of one family the other is not there, and nothing fails for that.
func TestHostOfOneFamily(t *testing.T) {
	sites(t, func(t *testing.T, s *site) {
		publish(s.lab)
		s.lab.Echo(t, 443)
		s.lab.Host.Sysctl(t, "ipv6/conf/all/disable_ipv6", "1")
		s.lab.Host.Sysctl(t, "ipv6/conf/default/disable_ipv6", "1")
		probes := []probe.Probe{
			{ID: "named", Kind: probe.TCP, To: "allowed.example:443", Wait: 5 * time.Second},
			{ID: "block", Kind: probe.TCP, To: "93.184.216.130:443"},
			{ID: "datagram", Kind: probe.UDP, To: "93.184.216.130:443"},
			{ID: "denied", Kind: probe.TCP, To: "93.184.216.99:443"},
			{ID: "denied6", Kind: probe.TCP, To: "[2606:2800:220:a::130]:443"},
		}
		o := s.run(job{network: policy, probes: probes})
		for _, p := range probes {
			if r := o.results[p.ID]; r.OK == strings.HasPrefix(p.ID, "denied") {
				t.Errorf("without IPv6: %s: passed: %t: %s", p.ID, r.OK, r.Err)
			}
		}
		s.gc()
	})
	sites(t, func(t *testing.T, s *site) {
		publish(s.lab)
		s.lab.Echo(t, 443)
		s.lab.Host.Do(func() {
			link, err := netlink.LinkByName(netlab.Uplink)
			if err != nil {
				t.Fatal(err)
			}
			if err := netlink.AddrDel(link, &netlink.Addr{IPNet: netlink.NewIPNet(netlab.HostV4.AsSlice())}); err != nil {
				addrs, _ := netlink.AddrList(link, unix.AF_INET)
				for _, a := range addrs {
					if err := netlink.AddrDel(link, &a); err != nil {
						t.Fatal(err)
					}
				}
			}
		})
		probes := []probe.Probe{
			{ID: "named", Kind: probe.TCP, To: "allowed.example:443", Wait: 5 * time.Second},
			{ID: "block", Kind: probe.TCP, To: "[2606:2800:220:a::130]:443"},
			{ID: "datagram", Kind: probe.UDP, To: "[2606:2800:220:a::130]:443"},
			{ID: "denied", Kind: probe.TCP, To: "[2606:2800:220::99]:443"},
			{ID: "denied4", Kind: probe.TCP, To: "93.184.216.130:443"},
		}
		o := s.run(job{network: strings.Replace(policy, `dns = ["93.184.216.53"]`, `dns = ["2606:2800:220::53"]`, 1), probes: probes})
		for _, p := range probes {
			if r := o.results[p.ID]; r.OK == strings.HasPrefix(p.ID, "denied") {
				t.Errorf("without IPv4: %s: passed: %t: %s", p.ID, r.OK, r.Err)
			}
		}
	})
}

// A job that names no resolver has its host's.
func TestResolverOfTheHost(t *testing.T) {
	sites(t, func(t *testing.T, s *site) {
		publish(s.lab)
		s.lab.Echo(t, 443)
		o := s.run(job{network: strings.Replace(policy, `dns = ["93.184.216.53"]`, "", 1), probes: []probe.Probe{
			{ID: "allowed", Kind: probe.TCP, To: "allowed.example:443"}, {ID: "denied", Kind: probe.TCP, To: "denied.example:443"},
		}})
		if !o.results["allowed"].OK || o.results["denied"].OK || s.lab.DNS.Queries("denied.example") != 0 {
			t.Errorf("%+v", o.results)
		}
	})
}

// Docker sets the policy of forwarding to drop, and firewalld rejects what no zone has.
// In nftables a drop is final whoever accepts besides. Then a sandbox has its network, or
// does not start and says why; it does not run without what its policy promises.
func TestHostThatDropsForwarded(t *testing.T) {
	sites(t, func(t *testing.T, s *site) {
		publish(s.lab)
		s.lab.Echo(t, 443)
		s.lab.Host.Do(func() {
			conn, err := nftables.New()
			if err != nil {
				t.Fatal(err)
			}
			drop := nftables.ChainPolicyDrop
			for family, name := range map[nftables.TableFamily]string{nftables.TableFamilyIPv4: "filter", nftables.TableFamilyIPv6: "filter"} {
				table := conn.AddTable(&nftables.Table{Family: family, Name: name})
				forward := conn.AddChain(&nftables.Chain{
					Name: "FORWARD", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward,
					Priority: nftables.ChainPriorityFilter, Policy: &drop,
				})
				conn.AddChain(&nftables.Chain{Name: "DOCKER-USER", Table: table})
				conn.AddRule(&nftables.Rule{Table: table, Chain: forward, Exprs: []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: "DOCKER-USER"}}})
			}
			if err := conn.Flush(); err != nil {
				t.Fatal(err)
			}
		})
		before := s.lab.Host.Census(t)
		o := s.start(job{network: policy, probes: []probe.Probe{
			{ID: "named", Kind: probe.TCP, To: "allowed.example:443"},
			{ID: "block6", Kind: probe.TCP, To: "[2606:2800:220:a::130]:443"},
			{ID: "denied", Kind: probe.TCP, To: "93.184.216.99:443"},
		}}).wait()
		switch {
		case o.code == 125:
			if !strings.Contains(o.stderr, "forward") && !strings.Contains(o.stderr, "FORWARD") {
				t.Errorf("refused without a word about the host's firewall: %s", o.stderr)
			}
			t.Logf("refused: %s", o.stderr)
		case o.code != 0:
			t.Errorf("exit code %d: %s", o.code, o.stderr)
		case !o.results["named"].OK || !o.results["block6"].OK || o.results["denied"].OK:
			t.Errorf("it runs, and its policy does not hold: %+v\n%s", o.results, o.stderr)
		}
		s.gc()
		if changed := before.Changed(s.lab.Host.Census(t)); len(changed) > 0 {
			t.Errorf("left behind: %q", changed)
		}
	})
}

// Many come and go at once: each has addresses of its own, all reach what they may, and
// the last one leaves nothing.
func TestManySandboxesAtOnce(t *testing.T) {
	sites(t, func(t *testing.T, s *site) {
		publish(s.lab)
		s.lab.Echo(t, 443)
		before, files := s.settled()
		var runs []*running
		for i := range 8 {
			runs = append(runs, s.start(job{name: fmt.Sprintf("many-%d", i), network: policy, probes: []probe.Probe{
				{ID: "self", Kind: probe.Self},
				{ID: "named", Kind: probe.TCP, To: "allowed.example:443", Wait: 10 * time.Second},
				{ID: "block", Kind: probe.UDP, To: "[2606:2800:220:a::130]:443", Wait: 10 * time.Second},
				{ID: "denied", Kind: probe.TCP, To: "93.184.216.99:443"},
				{ID: "a while", Kind: probe.Sleep, Wait: time.Duration(i%4) * 200 * time.Millisecond, Alone: true},
			}}))
		}
		for _, r := range runs {
			o := r.wait()
			if o.code != 0 || !o.results["named"].OK || !o.results["block"].OK || o.results["denied"].OK {
				t.Errorf("exit code %d: %s: %+v", o.code, o.stderr, o.results)
			}
		}
		s.left(before, files)
	})
}

// Somebody who may enter the sandbox's network deletes all that was set up there: the
// policy was never what is there.
func TestPolicyIsNotInsideTheSandbox(t *testing.T) {
	sites(t, func(t *testing.T, s *site) {
		publish(s.lab)
		s.lab.Echo(t, 443)
		s.lab.Host.Echo(t, 9000)
		r := s.start(job{network: policy, probes: []probe.Probe{
			{ID: "first", Kind: probe.TCP, To: "allowed.example:443", Alone: true},
			{ID: "wait", Kind: probe.Sleep, Wait: 2 * time.Second, Alone: true},
			{ID: "denied", Kind: probe.TCP, To: "93.184.216.99:443"},
			{ID: "denied6", Kind: probe.TCP, To: "[2606:2800:220::99]:443"},
			{ID: "denied datagram", Kind: probe.UDP, To: "93.184.216.99:443"},
			{ID: "the host", Kind: probe.TCP, To: "151.101.7.2:9000"},
			{ID: "metadata", Kind: probe.TCP, To: "169.254.169.254:443"},
			{ID: "another resolver", Kind: probe.DNS, Name: "allowed.example", Type: "A", To: "9.9.9.9:53"},
		}})
		r.result("first")
		inside := netlab.Of(t, r.workload())
		inside.Do(func() {
			conn, err := nftables.New()
			if err != nil {
				t.Fatal(err)
			}
			conn.FlushRuleset()
			if err := conn.Flush(); err != nil {
				t.Fatal(err)
			}
		})
		o := r.wait()
		for id, got := range o.results {
			if !slices.Contains([]string{"first", "wait"}, id) && got.OK {
				t.Errorf("%s passed: %s", id, got.Line)
			}
		}
		for _, p := range escaped(t, s.lab, mayLeave()) {
			t.Errorf("left the host: %s", p)
		}
	})
}
