package metrics

import (
	"bytes"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/nucleus-runtime/nucleus/core/cgroups"
	"github.com/nucleus-runtime/nucleus/core/exec"
	"github.com/nucleus-runtime/nucleus/core/lifecycle"
	"github.com/nucleus-runtime/nucleus/core/supervisor"
	"github.com/nucleus-runtime/nucleus/internal/netdev"
)

func ptr(n uint64) *uint64 { return &n }

// full is a sandbox of which everything is known.
func full(id, name string) Sandbox {
	p := &cgroups.Pressure{Some: cgroups.Stall{TotalUsec: 1_500_000}, Full: cgroups.Stall{TotalUsec: 250_000}}
	return Sandbox{
		ID: id, Name: name,
		Record: &supervisor.Record{
			Job: `a "job"` + "\n\\", Mode: "agent", Root: "toolchain", Network: "lan", Status: lifecycle.StatusRunning, Ready: true, Health: "healthy",
			Created: time.UnixMilli(1_700_000_000_500), Started: time.UnixMilli(1_700_000_001_000), Execs: 3,
		},
		Stats: &supervisor.Stats{
			Cgroup: &cgroups.Stats{
				Memory: &cgroups.MemoryStats{Current: 1 << 20, Peak: ptr(2 << 20), Limit: ptr(3 << 20), Swap: ptr(0), OOMKills: 1, Pressure: p},
				CPU:    &cgroups.CPUStats{UsageUsec: 2_500_000, UserUsec: 1, SystemUsec: 2, Periods: 3, ThrottledPeriods: 4, ThrottledUsec: 5, Pressure: p},
				Pids:   &cgroups.PidsStats{Current: 6, Peak: ptr(7), Limit: ptr(8)},
				IO:     &cgroups.IOStats{ReadBytes: 9, WriteBytes: 10, Pressure: p},
			},
			Network: &lifecycle.NetworkStats{
				Interfaces: []netdev.Interface{{Name: "eth0", RxBytes: 11, TxDropped: 12}, {Name: `e\x1b`, RxBytes: 13}},
				Denied:     ptr(14), Flows: &exec.Flow{Connections: 15, RxBytes: 16, TxBytes: 17},
			},
		},
	}
}

var (
	metricName = regexp.MustCompile(`^[a-zA-Z_:][a-zA-Z0-9_:]*$`)
	sampleLine = regexp.MustCompile(`^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{((?:[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\["\\n])*",?)*)\})? (\S+)$`)
	baseUnits  = regexp.MustCompile(`_(ms|usec|milliseconds|microseconds|kilobytes|mib|percent)(_|$)`)
)

// strict reads the text as the format's description has it, and as Prometheus's
// conventions want it, and gives the samples.
func strict(t *testing.T, b []byte) map[string]float64 {
	t.Helper()
	text := string(b)
	if !utf8.ValidString(text) || !strings.HasSuffix(text, "\n") {
		t.Fatal("not UTF-8, or the last line has no end")
	}
	out := map[string]float64{}
	described := map[string]bool{}
	current, kind, helped := "", "", ""
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if rest, ok := strings.CutPrefix(line, "# HELP "); ok {
			name, help, _ := strings.Cut(rest, " ")
			if described[name] || !metricName.MatchString(name) || help == "" {
				t.Errorf("%q", line)
			}
			helped = name
			continue
		}
		if rest, ok := strings.CutPrefix(line, "# TYPE "); ok {
			name, k, _ := strings.Cut(rest, " ")
			if name != helped || described[name] || k != "counter" && k != "gauge" || (k == "counter") != strings.HasSuffix(name, "_total") || baseUnits.MatchString(name) {
				t.Errorf("%q", line)
			}
			described[name] = true
			current, kind = name, k
			continue
		}
		m := sampleLine.FindStringSubmatch(line)
		if m == nil {
			t.Fatalf("%q is no sample", line)
		}
		v, err := strconv.ParseFloat(m[3], 64)
		if m[1] != current || err != nil || kind == "counter" && v < 0 || strings.HasSuffix(m[2], ",") {
			t.Errorf("%q below %s", line, current)
		}
		series := line[:len(line)-len(m[3])-1]
		if _, ok := out[series]; ok {
			t.Errorf("%q comes twice", series)
		}
		out[series] = v
	}
	return out
}

func TestText(t *testing.T) {
	got := strict(t, Text("1.0", []Sandbox{full("a1", "web"), full("b2", "db"), {ID: "c3", Name: "deaf"}}))
	for series, want := range map[string]float64{
		`build_info{version="1.0"}`:                                                                                         1,
		`sandbox_up{id="a1",name="web"}`:                                                                                    1,
		`sandbox_up{id="c3",name="deaf"}`:                                                                                   0,
		`sandbox_status{id="a1",name="web",status="running"}`:                                                               1,
		`sandbox_status{id="a1",name="web",status="paused"}`:                                                                0,
		`sandbox_ready{id="a1",name="web"}`:                                                                                 1,
		`sandbox_healthy{id="a1",name="web"}`:                                                                               1,
		`sandbox_created_timestamp_seconds{id="a1",name="web"}`:                                                             1_700_000_000.5,
		`sandbox_execs_total{id="a1",name="web"}`:                                                                           3,
		`sandbox_cpu_seconds_total{id="b2",name="db"}`:                                                                      2.5,
		`sandbox_memory_bytes{id="a1",name="web"}`:                                                                          1 << 20,
		`sandbox_memory_limit_bytes{id="a1",name="web"}`:                                                                    3 << 20,
		`sandbox_oom_kills_total{id="a1",name="web"}`:                                                                       1,
		`sandbox_tasks_peak{id="a1",name="web"}`:                                                                            7,
		`sandbox_io_written_bytes_total{id="a1",name="web"}`:                                                                10,
		`sandbox_pressure_waiting_seconds_total{id="a1",name="web",resource="memory"}`:                                      1.5,
		`sandbox_pressure_stalled_seconds_total{id="a1",name="web",resource="io"}`:                                          0.25,
		`sandbox_network_receive_bytes_total{id="a1",name="web",interface="eth0"}`:                                          11,
		`sandbox_network_receive_bytes_total{id="a1",name="web",interface="e\\x1b"}`:                                        13,
		`sandbox_network_transmit_dropped_total{id="a1",name="web",interface="eth0"}`:                                       12,
		`sandbox_network_denied_total{id="a1",name="web"}`:                                                                  14,
		`sandbox_network_flows_transmit_bytes_total{id="a1",name="web"}`:                                                    17,
		`sandbox_info{id="a1",name="web",job="a \"job\"\n\\",mode="agent",root="toolchain",network="lan",detached="false"}`: 1,
	} {
		if v, ok := got["nucleus_"+series]; !ok || v != want {
			t.Errorf("%s = %v, %v; want %v", series, v, ok, want)
		}
	}
}

func TestTextOfNothing(t *testing.T) {
	if got := strict(t, Text("dev", nil)); len(got) != 1 {
		t.Errorf("%v", got)
	}
}

// What this host does not count is not there, instead of being 0.
func TestTextLeavesOutWhatIsNotKnown(t *testing.T) {
	s := full("a1", "web")
	s.Stats.Cgroup, s.Stats.Network = nil, nil
	s.Record.Health, s.Record.Started = "", time.Time{}
	for series := range strict(t, Text("dev", []Sandbox{s})) {
		for _, word := range []string{"cpu", "memory", "oom", "swap", "tasks", "io_", "pressure", "network_", "healthy", "started"} {
			if strings.Contains(series, "sandbox_"+word) {
				t.Errorf("%s", series)
			}
		}
	}
}

// No name can add a line, a label, or a sample that is there already.
func FuzzText(f *testing.F) {
	f.Add("web", "db")
	f.Add("a\"} 1\nnucleus_x 2\n#", "\xff\\\x00")
	want := bytes.Count(Text("v", []Sandbox{full("a1", "x"), full("b2", "y")}), []byte{'\n'})
	f.Fuzz(func(t *testing.T, a, b string) {
		x, y := full("a1", a), full("b2", b)
		x.Record.Job, y.Record.Job = b, a
		text := Text(a, []Sandbox{x, y})
		strict(t, text)
		if got := bytes.Count(text, []byte{'\n'}); got != want {
			t.Errorf("%d lines, want %d", got, want)
		}
	})
}

func ExampleText() {
	fmt.Print(string(Text("1.0", []Sandbox{{ID: "6df7e1bb1f7f55dc2934a48438f53b8a", Name: "web"}})))
	// Output:
	// # HELP nucleus_build_info The version of nucleus that tells this.
	// # TYPE nucleus_build_info gauge
	// nucleus_build_info{version="1.0"} 1
	// # HELP nucleus_sandbox_up Whether the supervisor of the sandbox answers.
	// # TYPE nucleus_sandbox_up gauge
	// nucleus_sandbox_up{id="6df7e1bb1f7f55dc2934a48438f53b8a",name="web"} 0
}
