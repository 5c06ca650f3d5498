package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nucleus-runtime/nucleus/core/audit"
	"github.com/nucleus-runtime/nucleus/core/control"
	"github.com/nucleus-runtime/nucleus/core/exec"
	"github.com/nucleus-runtime/nucleus/core/lifecycle"
	"github.com/nucleus-runtime/nucleus/core/plan"
	"github.com/nucleus-runtime/nucleus/core/probe"
	"github.com/nucleus-runtime/nucleus/core/state"
)

// fakeRun is a run without a sandbox. What the sequence of runs is no matter of panics.
type fakeRun struct {
	Run
	plan   *plan.Plan
	lasts  time.Duration // by itself
	silent time.Duration // until it is ready
	code   int
	err    error // of its end

	mu        sync.Mutex
	status    lifecycle.Status
	asked     string // for its end: stop or kill
	destroyed bool

	running, ready, gone, done, ask chan struct{}
	result                          exec.Result
}

// once closes a channel that may be closed.
func once(c chan struct{}) {
	if !isClosed(c) {
		close(c)
	}
}

func (r *fakeRun) become(s lifecycle.Status) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.status = s
}

func (r *fakeRun) Start(context.Context) error {
	r.become(lifecycle.StatusRunning)
	close(r.running)
	began := time.Now()
	r.result = exec.Result{Started: began}
	go func() {
		ready, ends := time.After(r.silent), time.After(r.lasts)
		cause, code := exec.CauseExit, r.code
		for wait := true; wait; {
			select {
			case <-ready:
				once(r.ready)
			case <-ends:
				wait = false
			case <-r.ask:
				cause, code, wait = exec.CauseStopped, 143, false
			}
		}
		r.become(lifecycle.StatusStopped)
		r.result.Cause, r.result.ExitCode, r.result.Duration = cause, code, time.Since(began)
		close(r.gone)
		close(r.done)
	}()
	return nil
}

func (r *fakeRun) end(how string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.asked == "" {
		r.asked = how
	}
	once(r.ask)
}

func (r *fakeRun) Stop() { r.end("stop") }
func (r *fakeRun) Kill() { r.end("kill") }

func (r *fakeRun) Wait() (exec.Result, error) {
	<-r.done
	return r.result, r.err
}

func (r *fakeRun) Destroy(context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.destroyed = true
	return nil
}

func (r *fakeRun) Status() lifecycle.Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.status
}

func (r *fakeRun) Running() <-chan struct{}  { return r.running }
func (r *fakeRun) Ready() <-chan struct{}    { return r.ready }
func (r *fakeRun) Gone() <-chan struct{}     { return r.gone }
func (r *fakeRun) OnChange(func())           {}
func (r *fakeRun) Plan() *plan.Plan          { return r.plan }
func (r *fakeRun) Pid() int                  { return 2 }
func (r *fakeRun) InitPid() int              { return 1 }
func (r *fakeRun) Cgroup() map[string]string { return nil }
func (r *fakeRun) Started() time.Time        { return time.Time{} }
func (r *fakeRun) Health() probe.State       { return "" }
func (r *fakeRun) StatusText() string        { return "" }

// bench is a supervisor of fake runs.
type bench struct {
	*Supervisor
	t     *testing.T
	began time.Time
	runs  []*fakeRun // that were made
	next  func(n int) *fakeRun
	// making is called before the nth run is made, the first being 1.
	making func(ctx context.Context, n int) error
	told   []string // to who is told of restarts, with the time
}

// supervise has the first run running. Each fails after a second, unless next says otherwise.
func supervise(t *testing.T, restart *plan.Restart, change func(*bench)) *bench {
	t.Helper()
	root, err := state.Open(filepath.Join(t.TempDir(), "state"))
	if err != nil {
		t.Fatal(err)
	}
	d, err := root.Create(state.NewID(), "web", true)
	if err != nil {
		t.Fatal(err)
	}
	p := &plan.Plan{Name: "web", Restart: restart}
	b := &bench{t: t, began: time.Now(), next: func(int) *fakeRun { return &fakeRun{lasts: time.Second, code: 3} }}
	b.Supervisor = unmade(Config{
		Dir: d, Plan: p, Log: audit.NewLog("", "web"), Locate: func(err error) error { return err },
		Make: func(ctx context.Context, _ exec.Streams, _ func(*plan.Plan)) (Run, error) {
			n := len(b.runs) + 1
			if b.making != nil {
				if err := b.making(ctx, n); err != nil {
					return nil, err
				}
			}
			r := b.next(n)
			r.plan, r.status = p, lifecycle.StatusCreated
			for _, c := range []*chan struct{}{&r.running, &r.ready, &r.gone, &r.done, &r.ask} {
				*c = make(chan struct{})
			}
			b.runs = append(b.runs, r)
			return r, nil
		},
		Again: func(r Restarting) {
			b.told = append(b.told, fmt.Sprintf("%s: %d in %s", time.Since(b.began), r.Count, r.Wait))
		},
	})
	if change != nil {
		change(b)
	}
	if b.events, err = audit.OpenFile(filepath.Join(d.Path, audit.FileName)); err != nil {
		t.Fatal(err)
	}
	if b.server, err = control.Listen(d.Path); err != nil {
		t.Fatal(err)
	}
	close(b.served) // nobody asks: a socket that is waited at would hold the time of the test up
	if b.run, err = b.Supervisor.make(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.Supervisor.runs = 1
	if err := b.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return b
}

// ends waits for the end, and compares what came of it.
func (b *bench) ends(cause exec.Cause, code, restarts int, after time.Duration, wantErr string) {
	b.t.Helper()
	res, err := b.Wait()
	if res.Cause != cause || res.ExitCode != code || res.Restarts != restarts {
		b.t.Errorf("%s %d after %d restarts; want %s %d after %d", res.Cause, res.ExitCode, res.Restarts, cause, code, restarts)
	}
	if got := time.Since(b.began); got != after {
		b.t.Errorf("the end came after %s, want %s", got, after)
	}
	if wantErr == "" && err != nil || wantErr != "" && (err == nil || !strings.Contains(err.Error(), wantErr)) {
		b.t.Errorf("error %v, want %q", err, wantErr)
	}
}

func (b *bench) hears(want ...string) {
	b.t.Helper()
	if !slices.Equal(b.told, want) {
		b.t.Errorf("told %q\nwant %q", b.told, want)
	}
}

func onFailure(attempts int) *plan.Restart {
	return &plan.Restart{On: "failure", Attempts: attempts, Backoff: 10 * time.Second}
}

func TestWaitsDoubleAndAttemptsInARowAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := supervise(t, onFailure(3), nil)
		b.ends(exec.CauseExit, 3, 3, (4+70)*time.Second, "")
		b.hears("1s: 1 in 10s", "12s: 2 in 20s", "33s: 3 in 40s")
	})
}

func TestARunThatWentWellBeginsTheRowAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := supervise(t, onFailure(2), func(b *bench) {
			b.next = func(n int) *fakeRun {
				r := &fakeRun{lasts: time.Second, code: 3}
				if n == 3 {
					r.lasts = time.Hour
				}
				return r
			}
		})
		b.ends(exec.CauseExit, 3, 4, time.Hour+(4+60)*time.Second, "")
		b.hears("1s: 1 in 10s", "12s: 2 in 20s", "1h0m32s: 3 in 10s", "1h0m43s: 4 in 20s")
	})
}

func TestAGoodEndAndOneThatWasAskedForAreTheLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := supervise(t, onFailure(3), func(b *bench) {
			b.next = func(int) *fakeRun { return &fakeRun{lasts: time.Second} }
		})
		b.ends(exec.CauseExit, 0, 0, time.Second, "")
	})
	synctest.Test(t, func(t *testing.T) {
		b := supervise(t, &plan.Restart{On: "always", Attempts: 3}, nil)
		time.Sleep(500 * time.Millisecond)
		b.Stop()
		b.ends(exec.CauseStopped, 143, 0, 500*time.Millisecond, "")
		if got := b.runs[0].asked; got != "stop" {
			t.Errorf("the run was asked to %q", got)
		}
		b.hears()
	})
}

func TestStopWhileTheNextRunIsWaitedFor(t *testing.T) {
	for what, ask := range map[string]func(*bench){
		"stop": func(b *bench) { b.Stop() }, "kill": func(b *bench) { b.Kill() }, "last": func(b *bench) { b.Last() },
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := supervise(t, onFailure(3), nil)
				time.Sleep(5 * time.Second)
				if st := b.known().Status; st != StatusRestarting {
					t.Errorf("status %s", st)
				}
				if _, err := b.living("exec"); err == nil {
					t.Error("there is a run to be asked")
				}
				ask(b)
				b.ends(exec.CauseExit, 3, 0, 5*time.Second, "")
				if len(b.runs) != 1 {
					t.Errorf("%d runs were made", len(b.runs))
				}
			})
		})
	}
}

// A stop that comes while the next run is made ends the making; if that comes about all the
// same, nothing of it stays.
func TestStopWhileTheNextRunIsMade(t *testing.T) {
	for what, obeys := range map[string]bool{"the making ends": true, "the run is made": false} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := supervise(t, onFailure(3), func(b *bench) {
					b.making = func(ctx context.Context, n int) error {
						if n == 1 {
							return nil
						}
						<-ctx.Done()
						if obeys {
							return ctx.Err()
						}
						return nil
					}
				})
				time.Sleep(20 * time.Second) // the making has begun 9 s ago
				b.Stop()
				b.ends(exec.CauseExit, 3, 1, 20*time.Second, "")
				if !obeys && (len(b.runs) != 2 || !b.runs[1].destroyed || isClosed(b.runs[1].running)) {
					t.Error("the run that nobody wanted was not taken down, or has run")
				}
			})
		})
	}
}

func TestRestartHurriesTheNextRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := supervise(t, onFailure(1), func(b *bench) {
			b.next = func(n int) *fakeRun { return &fakeRun{lasts: 30 * time.Second, silent: 2 * time.Second, code: n} }
		})
		time.Sleep(35 * time.Second) // in the wait of 10 s
		if err := b.Restart(t.Context()); err != nil {
			t.Error(err)
		}
		if got := time.Since(b.began); got != 37*time.Second {
			t.Errorf("it was ready after %s", got)
		}
		b.hears("30s: 1 in 10s")
		b.Kill()
		b.ends(exec.CauseStopped, 143, 1, 37*time.Second, "")
		if got := b.runs[1].asked; got != "kill" {
			t.Errorf("the run was asked to %q", got)
		}
	})
}

// Who asks for a restart while a run is made gets that one.
func TestRestartWhileTheNextRunIsMade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := supervise(t, onFailure(1), func(b *bench) {
			b.making = func(_ context.Context, n int) error {
				if n > 1 {
					time.Sleep(5 * time.Second)
				}
				return nil
			}
			b.next = func(n int) *fakeRun {
				if n == 1 {
					return &fakeRun{lasts: time.Second, code: 3}
				}
				return &fakeRun{lasts: time.Minute}
			}
		})
		time.Sleep(12 * time.Second)
		errs := make(chan error)
		for range 3 {
			go func() { errs <- b.Restart(t.Context()) }()
		}
		for range 3 {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
		if got := time.Since(b.began); got != 16*time.Second || len(b.runs) != 2 {
			t.Errorf("ready after %s with run %d", got, len(b.runs))
		}
		b.ends(exec.CauseExit, 0, 1, 76*time.Second, "")
	})
}

// A restart needs no policy, and stops what runs.
func TestRestartOfARunningOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := supervise(t, nil, func(b *bench) {
			b.next = func(int) *fakeRun { return &fakeRun{lasts: time.Minute} }
		})
		time.Sleep(time.Second)
		if err := b.Restart(t.Context()); err != nil {
			t.Error(err)
		}
		if got := b.runs[0].asked; got != "stop" || len(b.runs) != 2 {
			t.Errorf("the first was asked to %q, and there are %d", got, len(b.runs))
		}
		b.Stop()
		var se *lifecycle.StateError
		if err := b.Restart(t.Context()); !errors.As(err, &se) || se.Status != lifecycle.StatusStopping {
			t.Errorf("a restart after a stop: %v", err)
		}
		b.ends(exec.CauseStopped, 143, 1, time.Second, "")
	})
}

func TestRestartThatIsNeverReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := supervise(t, nil, func(b *bench) {
			b.next = func(n int) *fakeRun {
				if n == 1 {
					return &fakeRun{lasts: time.Minute}
				}
				return &fakeRun{lasts: time.Second, silent: time.Hour, code: 4}
			}
		})
		err := b.Restart(t.Context())
		if err == nil || err.Error() != "restart: the workload has ended before it was ready" {
			t.Errorf("restart: %v", err)
		}
		b.ends(exec.CauseExit, 4, 1, time.Second, "")
	})
}

// A run that cannot be made has failed like one that ends.
func TestRunsThatCannotBeMadeUseUpAttempts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := supervise(t, onFailure(3), func(b *bench) {
			tries := 0
			b.making = func(_ context.Context, n int) error {
				if n == 1 {
					return nil
				}
				tries++
				return fmt.Errorf("no room for try %d", tries)
			}
		})
		time.Sleep(5 * time.Second)
		if err := b.Restart(t.Context()); err == nil || !strings.Contains(err.Error(), "no room for try 1") {
			t.Errorf("a restart that failed: %v", err)
		}
		b.ends(exec.CauseRuntime, exec.CodeRuntime, 3, (5+20+40)*time.Second, "no room for try 3")
		b.hears("1s: 1 in 10s", "5s: 2 in 20s", "25s: 3 in 40s")
	})
}

// What could not be undone is gc's, and there is no further run on top of it.
func TestNoRunFollowsWhatIsNotUndone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := supervise(t, onFailure(3), nil)
		if err := b.cfg.Dir.Journal.Intent("cgroup", nil); err != nil {
			t.Fatal(err)
		}
		b.ends(exec.CauseExit, 3, 0, time.Second, "")
		if len(b.runs) != 1 {
			t.Errorf("%d runs", len(b.runs))
		}
	})
}

// What nobody can help by trying again is not tried again.
func TestEndsThatNoPolicyChanges(t *testing.T) {
	for what, err := range map[string]error{"not found": &exec.CommandError{Code: exec.CodeNotFound}, "cannot be executed": &exec.CommandError{Code: exec.CodeNotExecutable}} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := supervise(t, onFailure(3), func(b *bench) {
					b.next = func(int) *fakeRun { return &fakeRun{lasts: time.Second, code: 127, err: err} }
				})
				if res, rerr := b.Wait(); res.Restarts != 0 || !errors.Is(rerr, err) {
					t.Errorf("%d restarts, %v", res.Restarts, rerr)
				}
			})
		})
	}
}

// Who is late with the record of a sandbox that lives does not write over that of its end.
func TestLateRecordIsNotWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := supervise(t, nil, func(b *bench) { b.cfg.Keep = true })
		b.ends(exec.CauseExit, 3, 0, time.Second, "")
		b.runs[0].become(lifecycle.StatusStopping) // as it was when they looked
		if err := b.write(); err != nil {
			t.Error(err)
		}
		var r Record
		f, err := os.ReadFile(filepath.Join(b.cfg.Dir.Path, RecordName))
		if err == nil {
			err = json.Unmarshal(f, &r)
		}
		if err != nil || r.Status != lifecycle.StatusStopped || r.Result == nil || r.Result.ExitCode != 3 {
			t.Errorf("%+v, %v", r, err)
		}
	})
}
