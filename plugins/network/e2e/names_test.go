package e2e

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/netlab"
	"github.com/nucleus-runtime/nucleus/plugins/network/internal/probe"
)

// connects is how often a rotating name is connected to.
func connects(t *testing.T) int {
	t.Helper()
	if s := os.Getenv("NUCLEUS_NET_CONNECTS"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if testing.Short() {
		return 2000
	}
	return 10000
}

// Each query for the name is answered with another address that lives for no time at
// all, as big providers do: no connection may be denied for it.
func TestRotatingNameIsNeverDenied(t *testing.T) {
	sites(t, func(t *testing.T, s *site) {
		var pool []string
		for i := range 120 {
			pool = append(pool, fmt.Sprintf("93.184.216.%d", 130+i), fmt.Sprintf("2606:2800:220::%x", 0x1000+i))
		}
		s.lab.DNS.Rotate("rotate.example", pool...)
		s.lab.Echo(t, 443)
		const workers = 8
		n := connects(t) / workers
		var probes []probe.Probe
		for i := range workers {
			kind, family := probe.TCP, ""
			switch i {
			case 1:
				kind = probe.UDP
			case 2:
				family = "4"
			case 3:
				family = "6"
			}
			probes = append(probes, probe.Probe{ID: fmt.Sprint("worker", i), Kind: kind, Family: family, To: "rotate.example:443", Times: n, Wait: 10 * time.Second})
		}
		limit := patience + time.Duration(n*workers)*5*time.Millisecond
		o := s.startWithin(limit, job{
			network: "dns = [\"93.184.216.53\"]\negress {\nallow {\nnames = [\"rotate.example\"]\nports = [\"443/tcp\", \"443/udp\"]\n}\n}\n", probes: probes,
		}).wait()
		if o.code != 0 {
			t.Fatalf("exit code %d: %s", o.code, o.stderr)
		}
		for _, p := range probes {
			if r := o.results[p.ID]; r.Passed != n || r.Failed != 0 {
				t.Errorf("%s: %d of %d connections failed: %s", p.ID, r.Failed, n, r.Err)
			} else {
				t.Logf("%s: %d in %s", p.ID, n, r.Took)
			}
		}
		if denied := o.of("network.denied"); len(denied) > 0 {
			t.Errorf("denials: %+v", denied)
		}
	})
}

// Two names at one address, of which one is allowed. The other's name is refused, and
// so is its address.
func TestSharedAddressIsReachedByTheAllowedNameAlone(t *testing.T) {
	sites(t, func(t *testing.T, s *site) {
		const v4, v6 = "93.184.216.77", "2606:2800:220::77"
		s.lab.DNS.Set("tenant-a.example", v4, v6)
		s.lab.DNS.Set("tenant-b.example", v4, v6)
		s.lab.Echo(t, 443)
		o := s.run(job{
			network: "dns = [\"93.184.216.53\"]\negress {\nallow {\nnames = [\"tenant-a.example\"]\nports = [\"443/tcp\"]\n}\n}\n",
			probes: []probe.Probe{
				{ID: "a4", Kind: probe.TCP, Family: "4", To: "tenant-a.example:443", Alone: true},
				{ID: "a6", Kind: probe.TCP, Family: "6", To: "tenant-a.example:443", Alone: true},
				{ID: "b4", Kind: probe.TCP, Family: "4", To: "tenant-b.example:443"},
				{ID: "b6", Kind: probe.TCP, Family: "6", To: "tenant-b.example:443"},
				{ID: "literal4", Kind: probe.TCP, To: v4 + ":443"},
				{ID: "literal6", Kind: probe.TCP, To: "[" + v6 + "]:443"},
			},
		})
		for id, r := range o.results {
			if want := strings.HasPrefix(id, "a"); r.OK != want {
				t.Errorf("%s: passed: %t, want %t: %s", id, r.OK, want, r.Err)
			}
		}
		if n := s.lab.DNS.Queries("tenant-b.example"); n != 0 {
			t.Errorf("%d questions left for the other tenant's name", n)
		}
	})
}

// Two names at one address, both allowed, with different ports: each has its own.
func TestNamesOfOneAddressHaveTheirOwnPorts(t *testing.T) {
	sites(t, func(t *testing.T, s *site) {
		s.lab.DNS.Set("web.example", "93.184.216.78", "2606:2800:220::78")
		s.lab.DNS.Set("db.example", "93.184.216.78", "2606:2800:220::78")
		s.lab.Echo(t, 443, 5432)
		var probes []probe.Probe
		for _, family := range []string{"4", "6"} {
			for _, to := range []string{"web.example:443", "web.example:5432", "db.example:443", "db.example:5432"} {
				probes = append(probes, probe.Probe{ID: family + " " + to, Kind: probe.TCP, Family: family, To: to, Alone: true})
			}
		}
		o := s.run(job{probes: probes, network: `
dns = ["93.184.216.53"]
egress {
  allow {
    names = ["web.example"]
    ports = ["443/tcp"]
  }
  allow {
    names = ["db.example"]
    ports = ["5432/tcp"]
  }
}
`})
		for id, r := range o.results {
			if want := strings.HasSuffix(id, "web.example:443") || strings.HasSuffix(id, "db.example:5432"); r.OK != want {
				t.Errorf("%s: passed: %t, want %t: %s", id, r.OK, want, r.Err)
			}
		}
	})
}

// A name whose address turns private after it was allowed: the next connection is
// refused, whatever the first has left behind.
func TestRebindingAfterTheFirstAnswer(t *testing.T) {
	sites(t, func(t *testing.T, s *site) {
		public := []string{"93.184.216.79", "2606:2800:220::79"}
		s.lab.DNS.Handle("turn.example", func(q netlab.Query) netlab.Reply {
			if q.N == 0 {
				return netlab.Reply{Addresses: addresses(public...)}
			}
			return netlab.Reply{Addresses: addresses("10.77.0.66", "fd77::66")}
		})
		s.lab.Echo(t, 443)
		var probes []probe.Probe
		for i := range 6 {
			probes = append(probes, probe.Probe{ID: fmt.Sprint(i), Kind: probe.TCP, To: "turn.example:443", Alone: true})
			probes = append(probes, probe.Probe{ID: fmt.Sprint("pause", i), Kind: probe.Sleep, Wait: 200 * time.Millisecond, Alone: true})
		}
		s.run(job{
			network: "dns = [\"93.184.216.53\"]\negress {\nallow {\nnames = [\"turn.example\"]\nports = [\"443/tcp\"]\n}\n}\n", probes: probes,
		})
		for _, p := range s.lab.Packets(t) {
			if a := p.Dst.Addr(); a.IsPrivate() {
				t.Errorf("left the host: %s", p)
			}
		}
	})
}

// What programs read of their network.
func TestFilesOfTheSandbox(t *testing.T) {
	sites(t, func(t *testing.T, s *site) {
		o := s.run(job{network: policy, more: `hostname = "thishost"`, probes: []probe.Probe{{ID: "self", Kind: probe.Self}}})
		self := o.results["self"]
		if got := probe.Nameservers(self.Resolv); !slices.Equal(got, []string{"127.0.0.53"}) {
			t.Errorf("resolv.conf has the name servers %q, want 127.0.0.53: %s", got, self.Resolv)
		}
		for _, a := range self.Addresses {
			if !slices.ContainsFunc(strings.Split(self.Hosts, "\n"), func(line string) bool {
				f := strings.Fields(line)
				return len(f) > 1 && f[0] == a && slices.Contains(f[1:], "thishost")
			}) {
				t.Errorf("hosts has no line for %s and thishost: %s", a, self.Hosts)
			}
		}
		if len(self.Addresses) < 2 {
			t.Errorf("the sandbox has the addresses %q, want one of each family", self.Addresses)
		}
	})
}
