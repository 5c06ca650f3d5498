package core_test

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core"
	"github.com/nucleus-runtime/nucleus/core/host"
	"github.com/nucleus-runtime/nucleus/core/job"
	"github.com/nucleus-runtime/nucleus/core/plan"
	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

func planOf(t *testing.T, rt *core.Runtime, argv ...string) *plan.Plan {
	t.Helper()
	j, diags := job.FromOptions(job.Options{Command: argv, Name: "test", Dir: "/"})
	if diags.HasErrors() {
		t.Fatal(diags)
	}
	p, err := rt.Plan(j)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestSandboxesOutliveTheThreadsOfTheirMaker: the death signal of a sandbox's
// init follows the thread that cloned it, not the process (golang.org/issue/27505).
// An embedder's threads come and go with its goroutines: none of that may end a
// sandbox.
func TestSandboxesOutliveTheThreadsOfTheirMaker(t *testing.T) {
	testutil.Needs(t, testutil.UserNS)
	rt, err := core.New(options)
	if err != nil {
		t.Fatal(err)
	}
	p := planOf(t, rt, "/bin/sh", "-c", "sleep 0.5; exit 7")
	stop := make(chan struct{})
	var churn sync.WaitGroup
	for range 2 {
		churn.Go(func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(2 * time.Millisecond):
				}
				var died sync.WaitGroup
				died.Go(runtime.LockOSThread) // never unlocked: the thread dies with the goroutine
				died.Wait()
				runtime.GC()
			}
		})
	}
	var runs sync.WaitGroup
	for i := range 12 {
		runs.Go(func() {
			// The goroutine that starts it ends, and with it its thread, while the
			// sandbox runs.
			started := make(chan *core.Sandbox, 1)
			go func() {
				defer close(started)
				if i%2 == 0 {
					runtime.LockOSThread()
				}
				s, err := rt.Create(t.Context(), p, core.RunOptions{})
				if err != nil {
					t.Errorf("%d: %v", i, err)
					return
				}
				if err := s.Start(t.Context()); err != nil {
					t.Error(err)
					return
				}
				started <- s
			}()
			s := <-started
			if s == nil {
				return
			}
			if res, err := s.Wait(); err != nil || res.Cause != "exit" || res.ExitCode != 7 {
				t.Errorf("%s: %+v, %v", s.Name(), res, err)
			}
		})
	}
	runs.Wait()
	close(stop)
	churn.Wait()
}

// TestEventsOfManySandboxesDoNotMix, whatever sink they share.
func TestEventsOfManySandboxesDoNotMix(t *testing.T) {
	testutil.Needs(t, testutil.UserNS)
	var sink strings.Builder
	o := options
	o.Events = []io.Writer{&sink}
	rt, err := core.New(o)
	if err != nil {
		t.Fatal(err)
	}
	p := planOf(t, rt, "/bin/true")
	var runs sync.WaitGroup
	for range 6 {
		runs.Go(func() {
			if res, err := rt.Run(t.Context(), p, core.RunOptions{}); err != nil || res.ExitCode != 0 {
				t.Errorf("%+v, %v", res, err)
			}
		})
	}
	runs.Wait()
	seq := map[string]int{}
	for line := range strings.Lines(sink.String()) {
		if !strings.HasPrefix(line, `{"v":1,`) || !strings.HasSuffix(line, "}\n") {
			t.Fatalf("not an event: %q", line)
		}
		_, id, ok := strings.Cut(line, `"sandbox":"`)
		if ok {
			seq[id[:32]]++
		}
	}
	if len(seq) != 6 {
		t.Errorf("events of %d sandboxes", len(seq))
	}
}

// TestStopBeforeTheWorkloadRuns: a stop right after the start is a stop, not a
// start that failed.
func TestStopBeforeTheWorkloadRuns(t *testing.T) {
	testutil.Needs(t, testutil.UserNS)
	rt, err := core.New(options)
	if err != nil {
		t.Fatal(err)
	}
	p := planOf(t, rt, "/bin/sleep", "60")
	for i := range 20 {
		s, err := rt.Create(t.Context(), p, core.RunOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(i) * 50 * time.Microsecond)
		s.Stop()
		if res, err := s.Wait(); err != nil || res.Cause != "stopped" || res.ExitCode != 143 {
			t.Fatalf("after %d us: %+v, %v", i*50, res, err)
		}
	}
}

// TestInitInAPrivateDirectory: Nucleus works from root's home, where the
// sandbox's own ids could not even look.
func TestInitInAPrivateDirectory(t *testing.T) {
	testutil.Needs(t, testutil.UserNS)
	private := t.TempDir()
	for _, name := range []string{"nucleus-init", "nucleus-seccomp"} {
		b, err := os.ReadFile(options.Libexec + "/" + name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(private+"/"+name, b, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(private, 0o700); err != nil {
		t.Fatal(err)
	}
	o := options
	o.Libexec = private
	rt, err := core.New(o)
	if err != nil {
		t.Fatal(err)
	}
	res, err := rt.Run(t.Context(), planOf(t, rt, "/bin/sh", "-c", "exit 3"), core.RunOptions{})
	if err != nil || res.ExitCode != 3 {
		t.Errorf("%+v, %v", res, err)
	}
}

// TestFeatureNamesAreThoseOfDoctor: allow_degraded takes what doctor prints.
func TestFeatureNamesAreThoseOfDoctor(t *testing.T) {
	known := map[string]bool{}
	for _, n := range job.FeatureNames() {
		known[n] = true
	}
	rt, err := core.New(options)
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, f := range host.Probe(t.Context(), host.ProbeOptions{}) {
		seen++
		if !known[f.Name] {
			t.Errorf("doctor prints %q, which allow_degraded does not take", f.Name)
		}
	}
	h, err := rt.Host()
	if err != nil {
		t.Fatal(err)
	}
	for name := range h.Cgroup.Controllers {
		if !known["cgroup."+name] {
			t.Errorf("cgroup.%s is not taken", name)
		}
	}
	if seen < 30 {
		t.Errorf("only %d features: %v", seen, fmt.Sprint(known))
	}
}

// RunOptions.ThreadsStay relies on it that Go keeps its idle threads
// (golang#14592 asks for their end; docs/adr/0005).
func TestIdleThreadsStay(t *testing.T) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(p[0])
	tids := make(chan int)
	const n = 8
	for range n {
		go func() {
			tids <- unix.Gettid()
			_, _ = unix.Read(p[0], make([]byte, 1)) // until the other end is closed
		}()
	}
	seen := map[int]bool{}
	for range n {
		seen[<-tids] = true
	}
	time.Sleep(50 * time.Millisecond) // all of them wait in the kernel, on a thread each
	_ = unix.Close(p[1])
	for range 4 {
		time.Sleep(250 * time.Millisecond)
		runtime.GC()
	}
	for tid := range seen {
		if _, err := os.Stat(fmt.Sprintf("/proc/self/task/%d", tid)); err != nil {
			t.Errorf("an idle thread has ended, so ThreadsStay is no longer true: %v", err)
		}
	}
}
