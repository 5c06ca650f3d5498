package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/probe"
)

// What goes through comes out: whole, in order, and with each side's end.
func TestBytesArriveWhole(t *testing.T) { sites(t, bytesArriveWhole) }

func bytesArriveWhole(t *testing.T, s *site) {
	publish(s.lab)
	s.lab.Echo(t, 443)
	var probes []probe.Probe
	for _, to := range []struct{ family, at string }{
		{"4", "allowed.example:443"}, {"6", "allowed.example:443"}, {"", "93.184.216.130:443"}, {"", "[2606:2800:220:a::130]:443"},
	} {
		for _, size := range []int{0, 1, 1460, 70_000, 20 << 20} {
			probes = append(probes, probe.Probe{ID: fmt.Sprintf("%d bytes to %s %s", size, to.at, to.family), Kind: probe.Bulk, Family: to.family, To: to.at, Size: size, Wait: time.Minute})
		}
		for _, size := range []int{0, 1, 1200, 1472, 1473, 9000, 60_000} {
			probes = append(probes, probe.Probe{ID: fmt.Sprintf("a datagram of %d to %s %s", size, to.at, to.family), Kind: probe.Datagram, Family: to.family, To: to.at, Size: size, Wait: 5 * time.Second})
		}
	}
	o := s.run(job{network: policy, probes: probes})
	for _, p := range probes {
		if r := o.results[p.ID]; !r.OK {
			t.Errorf("%s: %s", p.ID, r.Err)
		}
	}
}

// A workload that holds all the connections it can get gets no more afterwards than
// before, and no fewer; and what is denied stays so meanwhile.
func TestFloodOfConnections(t *testing.T) { sites(t, floodOfConnections) }

func floodOfConnections(t *testing.T, s *site) {
	publish(s.lab)
	s.lab.Echo(t, 443)
	flood := []probe.Probe{}
	for i := range 4 {
		flood = append(flood, probe.Probe{ID: fmt.Sprint("flood", i), Kind: probe.Flood, To: "allowed.example:443", Size: 240, Wait: 30 * time.Second})
	}
	probes := append(flood, probe.Probe{ID: "denied", Kind: probe.TCP, To: "93.184.216.99:443"})
	probes = append(probes, probe.Probe{ID: "after", Kind: probe.TCP, To: "allowed.example:443", Alone: true})
	o := s.run(job{network: policy, probes: probes})
	for _, p := range flood {
		if r := o.results[p.ID]; r.Count != p.Size {
			t.Errorf("%s: %d of %d connections: %s", p.ID, r.Count, p.Size, r.Err)
		}
	}
	if o.results["denied"].OK || !o.results["after"].OK {
		t.Errorf("denied: passed: %t; after: passed: %t, %s", o.results["denied"].OK, o.results["after"].OK, o.results["after"].Err)
	}
}

// The result of a run says how much went where, by the name that was asked for.
func TestFlowsAreAccounted(t *testing.T) { sites(t, flowsAreAccounted) }

func flowsAreAccounted(t *testing.T, s *site) {
	publish(s.lab)
	s.lab.Echo(t, 443)
	r := s.startWith(patience, job{network: policy, probes: []probe.Probe{
		{ID: "named", Kind: probe.TCP, To: "allowed.example:443", Times: 3},
		{ID: "other", Kind: probe.Bulk, To: "a.suffix.example:443", Size: 100_000, Wait: 10 * time.Second},
		{ID: "block", Kind: probe.TCP, To: "93.184.216.130:443", Times: 2},
		{ID: "denied", Kind: probe.TCP, To: "93.184.216.99:443", Wait: 300 * time.Millisecond},
	}}, "-json")
	o := r.wait()
	if o.code != 0 {
		t.Fatalf("exit code %d: %s", o.code, o.stderr)
	}
	var result struct {
		Network *struct {
			Denied uint64
			Flows  []struct {
				Name        string
				Connections uint64
				Rx          uint64 `json:"rx_bytes"`
				Tx          uint64 `json:"tx_bytes"`
			}
			Denials []struct {
				Protocol, Destination, Reason string
				Count                         uint64
			}
		}
	}
	line, _, _ := strings.Cut(o.stderr, "\n")
	if err := json.Unmarshal([]byte(line), &result); err != nil || result.Network == nil {
		t.Fatalf("the result %q: %v", line, err)
	}
	if result.Network.Denied == 0 {
		t.Errorf("nothing was denied: %+v", result.Network)
	}
	if d := result.Network.Denials; len(d) != 1 || d[0].Protocol != "tcp" || d[0].Destination != "93.184.216.99:443" || d[0].Reason != "default" || d[0].Count == 0 {
		t.Errorf("the denials: %+v", d)
	}
	for name, want := range map[string]struct{ connections, bytes uint64 }{"allowed.example": {3, 3 * 12}, "a.suffix.example": {1, 100_000}, "": {2, 2 * 12}} {
		found := false
		for _, f := range result.Network.Flows {
			if f.Name != name {
				continue
			}
			found = true
			// A backend may count the headers of packets.
			if f.Connections != want.connections || f.Tx < want.bytes || f.Tx > 2*want.bytes+2000 || f.Rx < want.bytes || f.Rx > 2*want.bytes+2000 {
				t.Errorf("%q: %+v, want %d connections of %d bytes in all", name, f, want.connections, want.bytes)
			}
		}
		if !found {
			t.Errorf("%q: not accounted: %+v", name, result.Network.Flows)
		}
	}
}
