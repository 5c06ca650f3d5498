package netbridge

import (
	"bufio"
	"encoding/json"
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/netlab"
	"github.com/nucleus-runtime/nucleus/plugins/network/internal/probe"
	"github.com/nucleus-runtime/nucleus/sdk/network"
)

// serve lets a sandbox answer on all its addresses until it ends.
func (b *box) serve(ports ...string) {
	b.t.Helper()
	var ps []probe.Probe
	for _, p := range ports {
		ps = append(ps, probe.Probe{ID: p, Kind: probe.Serve, To: "[::]:" + p, Wait: time.Minute})
	}
	if err := json.NewEncoder(b.stdin).Encode(ps); err != nil {
		b.t.Fatal(err)
	}
}

// member attaches a sandbox as one of a stack, at an address if that is not "".
func (p *process) member(b *box, stack, job, at string, reach ...string) answer {
	p.t.Helper()
	r := network.AttachRequest{Member: &network.Member{Stack: stack, Job: job}}
	if at != "" {
		r.IPHints = []netip.Addr{netip.MustParseAddr(at)}
	}
	if len(reach) > 0 {
		r.Egress.Allow = []network.Rule{{Jobs: reach, Ports: tcpPorts(5432, 5433)}}
	}
	return p.attach(b, r)
}

// job asks for a job: "A" or "AAAA".
func (b *box) job(name, kind string) probe.Result {
	b.t.Helper()
	return b.try(probe.Probe{ID: "job", Kind: probe.DNS, To: "127.0.0.53:53", Name: name, Type: kind})["job"]
}

// reaches looks for a job and tries until its server, which may only be starting, is
// there. It gives where it was reached.
func (b *box) reaches(name, kind string) netip.Addr {
	b.t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		r := b.job(name, kind)
		if len(r.Addresses) == 1 {
			r = b.try(probe.Probe{ID: "x", Kind: probe.TCP, To: net.JoinHostPort(r.Addresses[0], "5432")})["x"]
			if r.OK {
				_, at, _, err := netlab.ParseEcho(r.Line)
				if err != nil {
					b.t.Fatal(err)
				}
				return at.Addr().Unmap()
			}
		}
		if time.Now().After(end) {
			b.t.Fatalf("%s is not reached: %+v", name, r)
		}
	}
}

// The name of a job leads to where it is: whether it came before or after the one that
// asks, and wherever it is after it has ended.
func TestJobIsFoundWhereItIs(t *testing.T) {
	netlab.Needs(t)
	for _, call := range []string{"0", "1"} {
		t.Run(call, func(t *testing.T) {
			lab := netlab.New(t)
			if out, err := lab.Host.Command("sh", "-c", "cd /proc/sys/net/bridge && for f in bridge-nf-call-*; do echo "+call+" > $f; done").CombinedOutput(); err != nil {
				netlab.Skip(t, "br_netfilter", string(out))
			}
			// As the kernel's default is: it tells of a shorter way (ICMP redirect), which is
			// closed here and must not be taken.
			lab.Host.Sysctl(t, "ipv4/conf/all/send_redirects", "1")
			before := lab.Host.Census(t)
			p, web := start(t, lab), newBox(t, "web")
			p.member(web, "shop", "web", "", "db")
			if none := web.job("db", "A"); none.RCode != 3 {
				t.Errorf("before there is one: %+v, want NXDOMAIN (3)", none)
			}
			for _, at := range []string{"10.203.7.7", "10.203.8.8"} {
				q, db := start(t, lab), newBox(t, "db-"+at)
				q.member(db, "shop", "db", at)
				db.serve("5432", "5434")
				for range 3 {
					if got := web.reaches("db", "A"); got.String() != at {
						t.Errorf("reached %s, want %s", got, at)
					}
				}
				if got := web.reaches("db", "AAAA"); got != netip.MustParseAddr("fd6e:7563:6c65:1::"+at[len("10.203."):len("10.203.")+1]+"0"+at[len(at)-1:]) {
					t.Errorf("reached %s by IPv6", got)
				}
				expect(t, lab, p, web, []flows{{at + ":5434", probe.TCP, false, network.ReasonPort}})
				held, err := netlab.Of(t, web.cmd.Process.Pid).Dial(t.Context(), "tcp", at+":5432")
				if err != nil {
					t.Fatal(err)
				}
				lines := bufio.NewReader(held)
				if _, err := lines.ReadString('\n'); err != nil {
					t.Error(err)
				}
				q.detach(db)
				_ = held.SetDeadline(time.Now().Add(time.Second))
				_, werr := held.Write([]byte("x\n"))
				if _, err := lines.ReadString('\n'); !errors.Is(errors.Join(werr, err), unix.ECONNRESET) {
					t.Errorf("the connection after the job has been detached: %v, %v, want a reset", werr, err)
				}
				held.Close()
				db.end()
				q.kill()
			}
			expect(t, lab, p, web, []flows{{"10.203.8.8:5432", probe.TCP, false, network.ReasonDefault}})
			flows := p.status(web).Flows
			i := slices.IndexFunc(flows, func(f network.FlowStats) bool { return f.Name == "db" })
			if i < 0 || flows[i].Connections < 8 || flows[i].RxBytes == 0 || flows[i].TxBytes == 0 {
				t.Errorf("counted %+v, want 8 connections to db at least, and bytes", flows)
			}
			if s := p.status(web); !s.OK {
				t.Errorf("drift: %q", s.Drift)
			}
			web.end()
			p.detach(web)
			clean(t, lab, before)
		})
	}
}

// Whoever has the address of a job next gets nothing that is meant for it.
func TestAddressOfAJobIsNobodysAfterwards(t *testing.T) {
	netlab.Needs(t)
	lab := netlab.New(t)
	p, web := start(t, lab), newBox(t, "web")
	p.member(web, "shop", "web", "", "db")
	const at = "10.203.7.7"
	q, db := start(t, lab), newBox(t, "db")
	q.member(db, "shop", "db", at)
	db.serve("5432")
	web.reaches("db", "A")
	// Its supervisor is killed, and nobody detaches it.
	db.end()
	q.kill()
	for lab.Host.Command("ip", "link", "show", "nkp0acb0707").Run() == nil { // its namespace goes a little later
		time.Sleep(5 * time.Millisecond)
	}
	// One of another stack that is called the same, and one of none.
	for i, stack := range []string{"other", ""} {
		other, x := start(t, lab), newBox(t, "stranger"+stack)
		r := network.AttachRequest{IPHints: []netip.Addr{netip.MustParseAddr(at)}}
		if stack != "" {
			r.Member = &network.Member{Stack: stack, Job: "db"}
		}
		if got := other.attach(x, r).Attached.IPs[0].Address.Addr(); got.String() != at {
			t.Fatalf("stranger %d has %s, want %s", i, got, at)
		}
		x.serve("5432")
		time.Sleep(50 * time.Millisecond)
		expect(t, lab, p, web, []flows{{at + ":5432", probe.TCP, false, network.ReasonDefault}})
		if r := web.job("db", "A"); len(r.Addresses) > 0 {
			t.Errorf("the name leads to stranger %d: %q", i, r.Addresses)
		}
		x.end()
		other.detach(x)
		for lab.Host.Command("ip", "link", "show", "nkp0acb0707").Run() == nil {
			time.Sleep(5 * time.Millisecond)
		}
	}
	// A second one takes the place of one that is still there.
	first, second := newBox(t, "db1"), newBox(t, "db2")
	q = start(t, lab)
	q.member(first, "shop", "db", "10.203.9.1")
	q.member(second, "shop", "db", "10.203.9.2")
	second.serve("5432")
	if got := web.reaches("db", "A"); got.String() != "10.203.9.2" {
		t.Errorf("reached %s", got)
	}
	expect(t, lab, p, web, []flows{{"10.203.9.1:5432", probe.TCP, false, network.ReasonDefault}})
	q.detach(first)
	if got := web.reaches("db", "A"); got.String() != "10.203.9.2" {
		t.Errorf("reached %s after the first has been detached", got)
	}
}

func TestJobsWithoutAStack(t *testing.T) {
	netlab.Needs(t)
	lab := netlab.New(t)
	p, b := start(t, lab), newBox(t, "sb")
	before := lab.Host.Census(t)
	if a := p.tryAttach(b, network.AttachRequest{Egress: network.Egress{Allow: []network.Rule{{Jobs: []string{"db"}}}}}); a.Error == "" {
		t.Error("a sandbox of no stack was let reach jobs")
	}
	clean(t, lab, before)
}
