package pluginhost

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nucleus-runtime/nucleus/core/cgroups"
	"github.com/nucleus-runtime/nucleus/core/job/hostconfig"
	"github.com/nucleus-runtime/nucleus/sdk/manifest"
)

// BenchmarkStart reports what a plugin's start and its end take, in its box, without
// one, and without a control group.
func BenchmarkStart(b *testing.B) {
	run, err := os.MkdirTemp("", "ph")
	if err != nil {
		b.Fatal(err)
	}
	defer os.RemoveAll(run)
	if err := os.Chmod(run, 0o755); err != nil {
		b.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		as    manifest.Service
		group bool
	}{
		{"box and group", manifest.Secrets, true},
		{"group", "network", true},
		{"box", manifest.Secrets, false},
		{"neither", "network", false},
	} {
		b.Run(c.name, func(b *testing.B) {
			h := New(Options{
				Finder:  &Finder{Dirs: []string{programs}, Host: &hostconfig.Config{}, Digests: &DigestCache{Dir: filepath.Join(programs, "digests")}},
				RunDirs: []string{run},
			})
			if !c.group {
				h.cgroups = func() (cgroups.Facts, error) { return cgroups.Facts{Why: "a benchmark"}, nil }
			}
			var start, end time.Duration
			for b.Loop() {
				begun := time.Now()
				p, err := h.Start(b.Context(), "good", c.as)
				if err != nil {
					b.Fatal(err)
				}
				start += time.Since(begun)
				begun = time.Now()
				p.Close()
				end += time.Since(begun)
			}
			b.ReportMetric(float64(start.Microseconds())/float64(b.N), "start-us")
			b.ReportMetric(float64(end.Microseconds())/float64(b.N), "end-us")
			b.ReportMetric(0, "ns/op")
		})
	}
}
