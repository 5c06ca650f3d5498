package cgroups

import (
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func BenchmarkDetect(b *testing.B) {
	for b.Loop() {
		if _, err := Detect(""); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkLife reports each step of a group's life by itself. The pause before
// each round lets the kernel's grace period run out, as between two commands of
// a user; -primed and -cold differ in Prime alone.
func BenchmarkLife(b *testing.B) {
	for _, primed := range []bool{false, true} {
		name := "cold"
		if primed {
			name = "primed"
		}
		b.Run(name, func(b *testing.B) {
			f, err := Detect("")
			if err != nil || !f.Usable() {
				b.Skip("not available: ", f.Why, err)
			}
			r := memoryLimit(64 << 20)
			r.Pids = pidsLimit(64).Pids
			r.CPU = &specs.LinuxCPU{Quota: ptr(int64(100_000))}
			sum := map[string]time.Duration{}
			for i := 0; b.Loop(); i++ {
				time.Sleep(60 * time.Millisecond)
				cmd := exec.Command("/bin/sleep", "60")
				if err := cmd.Start(); err != nil {
					b.Fatal(err)
				}
				lap := func(what string, fn func() error) {
					begin := time.Now()
					if err := fn(); err != nil {
						b.Fatal(what, err)
					}
					sum[what] += time.Since(begin)
				}
				var g *Group
				if primed {
					lap("prime", func() error { f.Prime(); return nil })
				}
				lap("new", func() (err error) {
					g, err = New(f, Spec{Name: fmt.Sprintf("%sbench-%d-%d", Prefix, os.Getpid(), i), Resources: r})
					return err
				})
				lap("create", g.Create)
				lap("limit", g.Limit)
				lap("attach", func() error { return g.Attach(cmd.Process.Pid) })
				_ = cmd.Process.Kill()
				_ = cmd.Wait()
				lap("stats", func() error { _, err := g.Stats(); return err })
				lap("remove", func() error { return g.Remove(b.Context()) })
			}
			for what, d := range sum {
				b.ReportMetric(float64(d.Microseconds())/float64(b.N), what+"-us")
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}
