package cgroups

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/nucleus-runtime/nucleus/internal/testutil"
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
// a user; attach moves a process that runs, spawn lets it be born in the group.
func BenchmarkLife(b *testing.B) {
	for _, attach := range []bool{true, false} {
		name := "spawn"
		if attach {
			name = "attach"
		}
		b.Run(name, func(b *testing.B) {
			f, err := Detect("")
			if err != nil || !f.Usable() {
				testutil.Skip(b, "cgroup-limits", f.Why)
			}
			r := memoryLimit(64 << 20)
			r.Pids = pidsLimit(64).Pids
			r.CPU = &specs.LinuxCPU{Quota: ptr(int64(100_000))}
			sum := map[string]time.Duration{}
			for i := 0; b.Loop(); i++ {
				time.Sleep(60 * time.Millisecond)
				cmd := exec.Command("/bin/sleep", "60")
				lap := func(what string, fn func() error) {
					begin := time.Now()
					if err := fn(); err != nil {
						b.Fatal(what, err)
					}
					sum[what] += time.Since(begin)
				}
				var g *Group
				lap("new", func() (err error) {
					g, err = New(f, Spec{Name: fmt.Sprintf("%sbench-%d-%d", Prefix, os.Getpid(), i), Resources: r})
					return err
				})
				lap("create", g.Create)
				lap("limit", g.Limit)
				if attach {
					if err := cmd.Start(); err != nil {
						b.Fatal(err)
					}
					lap("attach", func() error { return g.Attach(cmd.Process.Pid) })
				} else {
					lap("spawn", func() error { return spawn(g, cmd) })
				}
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

// spawn starts a command in a group from its birth.
func spawn(g *Group, cmd *exec.Cmd) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	return g.Spawn(func(group *os.File) error {
		if group != nil {
			cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(group.Fd())}
		}
		return cmd.Start()
	})
}
