package pluginhost

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/nucleus-runtime/nucleus/core/cgroups"
	"github.com/nucleus-runtime/nucleus/core/job/hostconfig"
	"github.com/nucleus-runtime/nucleus/sdk/manifest"
)

// BenchmarkStart reports the medians of what a plugin's start and its end take, in its
// box and its control group, and without. They take turns, so that what else the
// machine does is everyone's.
func BenchmarkStart(b *testing.B) {
	run, err := os.MkdirTemp("", "ph")
	if err != nil {
		b.Fatal(err)
	}
	defer os.RemoveAll(run)
	if err := os.Chmod(run, 0o755); err != nil {
		b.Fatal(err)
	}
	type kind struct {
		name       string
		as         manifest.Service
		group      bool
		start, end []time.Duration
		*Host
	}
	kinds := []*kind{
		{name: "both", as: manifest.Secrets, group: true},
		{name: "group", as: manifest.Network, group: true},
		{name: "box", as: manifest.Secrets},
		{name: "neither", as: manifest.Network},
	}
	for _, k := range kinds {
		host := &hostconfig.Config{}
		if k.as == manifest.Network { // it has no box if it is given a capability, which takes root
			host.Plugins = []hostconfig.Plugin{{Name: "good", Caps: []string{"CAP_NET_ADMIN"}}}
		}
		k.Host = New(Options{
			Finder:  &Finder{Dirs: []string{programs}, Host: host, Digests: &DigestCache{Dir: filepath.Join(programs, "digests")}},
			RunDirs: []string{run},
		})
		if !k.group {
			k.cgroups = func() (cgroups.Facts, error) { return cgroups.Facts{Why: "a benchmark"}, nil }
		}
	}
	for b.Loop() {
		for _, k := range kinds {
			begun := time.Now()
			p, err := k.Host.Start(b.Context(), "good", k.as)
			if err != nil {
				b.Fatal(err)
			}
			started := time.Now()
			p.Close()
			k.start, k.end = append(k.start, started.Sub(begun)), append(k.end, time.Since(started))
		}
	}
	for _, k := range kinds {
		for what, ds := range map[string][]time.Duration{"start": k.start, "end": k.end} {
			slices.Sort(ds)
			b.ReportMetric(float64(ds[len(ds)/2].Microseconds()), k.name+"-"+what+"-us")
		}
	}
	b.ReportMetric(0, "ns/op")
}

// BenchmarkFetch reports what one secret takes from the start of its provider to the end
// of it, of a new process and of one that was kept: the best, the tenth and the median.
// They take turns.
func BenchmarkFetch(b *testing.B) {
	run, err := os.MkdirTemp("", "ph")
	if err != nil {
		b.Fatal(err)
	}
	defer os.RemoveAll(run)
	if err := os.Chmod(run, 0o755); err != nil {
		b.Fatal(err)
	}
	type kind struct {
		name string
		took []time.Duration
		*Host
	}
	kinds := []*kind{{name: "cold"}, {name: "warm"}}
	for _, k := range kinds {
		host := &hostconfig.Config{}
		if k.name == "warm" {
			// When the benchmark is over, it ends by itself.
			host.Plugins = []hostconfig.Plugin{{Name: "warm", KeepWarm: 5 * time.Second}}
		}
		k.Host = New(Options{
			Finder:  &Finder{Dirs: []string{programs}, Host: host, Digests: &DigestCache{Dir: filepath.Join(programs, "digests")}},
			Schemas: &SchemaCache{Dir: filepath.Join(programs, "schemas")}, RunDirs: []string{run},
		})
		if _, err := fetchOne(b.Context(), k.Host, "first", "warm"); err != nil {
			b.Fatal(err)
		}
	}
	n := 0
	for b.Loop() {
		n++
		for _, k := range kinds {
			begun := time.Now()
			if _, err := fetchOne(b.Context(), k.Host, fmt.Sprint(n), "warm"); err != nil {
				b.Fatal(err)
			}
			k.took = append(k.took, time.Since(begun))
		}
	}
	for _, k := range kinds {
		slices.Sort(k.took)
		for what, at := range map[string]int{"best": 0, "p10": len(k.took) / 10, "median": len(k.took) / 2} {
			b.ReportMetric(float64(k.took[at].Microseconds()), k.name+"-"+what+"-us")
		}
	}
	b.ReportMetric(0, "ns/op")
}
