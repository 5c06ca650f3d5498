package pluginhost

import (
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
		{name: "group", as: "network", group: true},
		{name: "box", as: manifest.Secrets},
		{name: "neither", as: "network"},
	}
	for _, k := range kinds {
		k.Host = New(Options{
			Finder:  &Finder{Dirs: []string{programs}, Host: &hostconfig.Config{}, Digests: &DigestCache{Dir: filepath.Join(programs, "digests")}},
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
