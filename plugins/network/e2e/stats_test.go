package e2e

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/nucleus-runtime/nucleus/plugins/network/internal/probe"
)

// While a sandbox lives, nucleus stats tells what went through its network: by its
// interfaces, if it has any, and by what its backend counts.
func TestStatsCountTheSandboxesNetwork(t *testing.T) {
	const size = 100_000
	sitesOf(t, []string{"netbridge/root", "netuserspace/user"}, func(t *testing.T, s *site) {
		publish(s.lab)
		s.lab.Echo(t, 443)
		r := s.start(job{network: policy, probes: []probe.Probe{
			{ID: "bulk", Kind: probe.Bulk, To: "a.suffix.example:443", Size: size, Wait: 10 * time.Second},
			{ID: "denied", Kind: probe.TCP, To: "93.184.216.99:443", Wait: 300 * time.Millisecond},
			{ID: "rest", Kind: probe.Sleep, Wait: patience},
		}})
		r.result("bulk")
		r.result("denied")
		out, err := s.nucleus(t.Context(), "stats", "-json", "-state-root", s.state).Output()
		if err != nil {
			t.Fatal(err)
		}
		var stats struct {
			Name    string
			Network *struct {
				Interfaces []struct {
					Name    string
					Rx      uint64 `json:"rx_bytes"`
					Packets uint64 `json:"tx_packets"`
				}
				Denied *uint64
				Flows  *struct {
					Rx uint64 `json:"rx_bytes"`
				}
			}
		}
		if err := json.Unmarshal(out, &stats); err != nil || stats.Network == nil || strings.Count(string(out), "\n") != 1 {
			t.Fatalf("%q: %v", out, err)
		}
		n := stats.Network
		if n.Denied == nil || *n.Denied == 0 || n.Flows == nil || n.Flows.Rx < size {
			t.Errorf("%s", out)
		}
		if s.backend == "netbridge" && (len(n.Interfaces) != 1 || n.Interfaces[0].Name != "eth0" || n.Interfaces[0].Rx < size || n.Interfaces[0].Packets == 0) {
			t.Errorf("%s", out)
		}
		if out, err := s.nucleus(t.Context(), "kill", "-state-root", s.state, stats.Name).CombinedOutput(); err != nil {
			t.Errorf("%s: %v", out, err)
		}
		if o := r.wait(); o.code != 137 {
			t.Errorf("exit code %d: %s", o.code, o.stderr)
		}
	})
}
