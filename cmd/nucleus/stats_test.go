package main

import (
	"strings"
	"testing"
	"time"

	"github.com/nucleus-runtime/nucleus/core/cgroups"
	"github.com/nucleus-runtime/nucleus/core/exec"
	"github.com/nucleus-runtime/nucleus/core/lifecycle"
	"github.com/nucleus-runtime/nucleus/core/supervisor"
	"github.com/nucleus-runtime/nucleus/internal/netdev"
)

func TestSizesAreShort(t *testing.T) {
	for n, want := range map[uint64]string{
		0: "0B", 1023: "1023B", 1024: "1KiB", 1536: "1.5KiB", 512 << 20: "512MiB", 999 << 10: "999KiB", 1023 << 10: "1.0MiB", 1<<64 - 1: "16EiB",
	} {
		if got := size(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}

func TestRow(t *testing.T) {
	peak, limit, denied := uint64(2<<20), uint64(512<<20), uint64(3)
	tasks := uint64(512)
	s := supervisor.Stats{
		Name: "web", Status: lifecycle.StatusRunning,
		Cgroup: &cgroups.Stats{
			CPU:    &cgroups.CPUStats{UsageUsec: 1_250_000, ThrottledUsec: 40_000, Pressure: &cgroups.Pressure{Some: cgroups.Stall{Avg10: 12.4}}},
			Memory: &cgroups.MemoryStats{Current: 1 << 20, Peak: &peak, Limit: &limit, OOMKills: 1, Pressure: &cgroups.Pressure{}},
			Pids:   &cgroups.PidsStats{Current: 4, Limit: &tasks},
			IO:     &cgroups.IOStats{ReadBytes: 4096},
		},
		Network: &lifecycle.NetworkStats{Interfaces: []netdev.Interface{{RxBytes: 1024, TxBytes: 1}, {RxBytes: 1024}}, Denied: &denied, Flows: &exec.Flow{RxBytes: 7}},
	}
	if got, want := strings.Join(row(s), " "), "web running 1.25s 0.04s 1MiB/512MiB 2MiB 1 4/512 2KiB 1B 3 4KiB 0B 12%/0%/-"; got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
	s.Network.Interfaces = nil
	if got := row(s)[8]; got != "7B" {
		t.Errorf("without an interface: in %s, want what the backend counts", got)
	}
	s.Cgroup, s.Network = nil, nil
	if got, want := strings.Join(row(s), " "), "web running"+strings.Repeat(" -", 12); got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
}

func TestShare(t *testing.T) {
	at := func(ms int, usec uint64) supervisor.Stats {
		return supervisor.Stats{Time: time.UnixMilli(int64(ms)), Cgroup: &cgroups.Stats{CPU: &cgroups.CPUStats{UsageUsec: usec}}}
	}
	if got := share(at(0, 0), at(1000, 1_500_000)); got != "150.0" {
		t.Errorf("one and a half processors: %s", got)
	}
	for _, first := range []supervisor.Stats{{}, at(1000, 0), at(0, 2_000_000)} {
		if got := share(first, at(1000, 1_500_000)); got != "-" {
			t.Errorf("%+v: %s", first, got)
		}
	}
}

func TestPlacesOfMetrics(t *testing.T) {
	for s, want := range map[string]string{
		"/var/lib/x/nucleus.prom": "file /var/lib/x/nucleus.prom", "127.0.0.1:9.prom": "file 127.0.0.1:9.prom", "unix:/run/x.prom": "unix /run/x.prom", "unix:m.sock": "unix m.sock",
		":9477": "tcp 127.0.0.1:9477", "localhost:0": "tcp 127.0.0.1:0", "0.0.0.0:9477": "tcp 0.0.0.0:9477", "[::1]:9477": "tcp [::1]:9477",
		"": "", "unix:": "", ".prom": "", "/dir/.prom": "", "9477": "", ":": "", ":99999": "", "example.org:80": "", "/var/lib/x": "", "::1:80": "", "localhost:http": "", ":9477/metrics": "",
	} {
		p, err := parsePlace(s)
		got := ""
		switch {
		case err != nil:
		case p.file != "":
			got = "file " + p.file
		case p.socket != "":
			got = "unix " + p.socket
		default:
			got = "tcp " + p.listen.String()
		}
		if got != want {
			t.Errorf("%q: %q, %v; want %q", s, got, err, want)
		}
	}
}
