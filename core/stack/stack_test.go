package stack

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nucleus-runtime/nucleus/core/job"
	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

func needs(on ...job.Dependency) []job.Dependency { return on }

func started(name string) job.Dependency {
	return job.Dependency{Job: name, Condition: job.ConditionStarted}
}

func ready(name string) job.Dependency {
	return job.Dependency{Job: name, Condition: job.ConditionReady}
}

func exited(name string) job.Dependency {
	return job.Dependency{Job: name, Condition: job.ConditionExited}
}

func nobody(string) bool { return false }

// record notes what happened in which order.
type record struct {
	mu    sync.Mutex
	lines []string
}

func (r *record) add(s string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines = append(r.lines, s)
}

func (r *record) before(t *testing.T, a, b string) {
	t.Helper()
	i, j := slices.Index(r.lines, a), slices.Index(r.lines, b)
	if i < 0 || j < 0 || i > j {
		t.Errorf("%q is not before %q in %q", a, b, r.lines)
	}
}

func TestEachConditionIsWaitedFor(t *testing.T) {
	o := New([]Job{
		{"web", needs(ready("db"), exited("schema"), started("cache"))},
		{"schema", needs(ready("db"))},
		{"db", nil},
		{"cache", nil},
	})
	var r record
	errs := o.Start(t.Context(), nobody, func(_ context.Context, name string, reached func(job.Condition)) error {
		r.add("start " + name)
		for _, c := range []job.Condition{job.ConditionStarted, job.ConditionReady, job.ConditionExited} {
			if c == job.ConditionExited && name != "schema" {
				continue
			}
			time.Sleep(5 * time.Millisecond)
			r.add(name + " " + string(c))
			reached(c)
		}
		return nil
	})
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	r.before(t, "db ready", "start schema")
	r.before(t, "schema exited", "start web")
	r.before(t, "cache started", "start web")
	for name, want := range map[string]bool{"schema": true, "db": false, "web": false, "none": false} {
		if o.Awaited(name, job.ConditionExited) != want {
			t.Errorf("the end of %s is awaited: %v", name, !want)
		}
	}
}

// TestIndependentJobsStartTogether would hang if one waited for the other.
func TestIndependentJobsStartTogether(t *testing.T) {
	var both sync.WaitGroup
	both.Add(2)
	meet := func() error {
		both.Done()
		met := make(chan struct{})
		go func() { both.Wait(); close(met) }()
		select {
		case <-met:
			return nil
		case <-time.After(testutil.Patient(5 * time.Second)):
			return errors.New("alone")
		}
	}
	o := New([]Job{{"a", nil}, {"b", nil}})
	if errs := o.Start(t.Context(), nobody, func(context.Context, string, func(job.Condition)) error { return meet() }); len(errs) > 0 {
		t.Error(errs)
	}
	both.Add(2)
	if errs := o.Stop(t.Context(), func(context.Context, string) error { return meet() }); len(errs) > 0 {
		t.Error(errs)
	}
}

func TestWhatFailsHoldsItsDependantsBack(t *testing.T) {
	broken := errors.New("broken")
	o := New([]Job{
		{"db", nil},
		{"web", needs(ready("db"))},
		{"proxy", needs(started("web"))},
		{"watch", needs(started("db"))},
		{"alone", nil},
		{"kept", needs(ready("db"))},
	})
	var r record
	errs := o.Start(t.Context(), func(name string) bool { return name == "kept" }, func(_ context.Context, name string, reached func(job.Condition)) error {
		r.add(name)
		reached(job.ConditionStarted)
		if name == "db" {
			return broken // started, and never ready
		}
		return nil
	})
	slices.Sort(r.lines)
	if want := []string{"alone", "db", "kept", "watch"}; !slices.Equal(r.lines, want) {
		t.Errorf("started %q, want %q", r.lines, want)
	}
	var blocked *BlockedError
	if !errors.Is(errs["db"], broken) || !errors.As(errs["web"], &blocked) || blocked.Need != ready("db") || !errors.As(errs["proxy"], &blocked) || len(errs) != 3 {
		t.Errorf("%v", errs)
	}
	if want := `not started: job "db", which it waits for, is not ready`; errs["web"].Error() != want {
		t.Errorf("%q, want %q", errs["web"], want)
	}
}

func TestNothingStartsAfterTheCancellation(t *testing.T) {
	why := errors.New("interrupted")
	ctx, cancel := context.WithCancelCause(t.Context())
	o := New([]Job{{"db", nil}, {"web", needs(started("db"))}, {"proxy", needs(ready("web"))}})
	errs := o.Start(ctx, nobody, func(ctx context.Context, name string, reached func(job.Condition)) error {
		if name != "db" {
			t.Errorf("%s was started", name)
		}
		cancel(why)
		reached(job.ConditionStarted)
		return nil
	})
	if errs["db"] != nil || !errors.Is(errs["web"], why) || !errors.Is(errs["proxy"], why) {
		t.Errorf("%v", errs)
	}
	if errs := o.Stop(ctx, func(context.Context, string) error { t.Error("stopped"); return nil }); len(errs) != 3 {
		t.Errorf("%v", errs)
	}
}

func TestStopIsTheOtherWayRound(t *testing.T) {
	o := New([]Job{
		{"db", nil},
		{"schema", needs(ready("db"))},
		{"web", needs(exited("schema"), started("db"), started("gone"))},
	})
	var r record
	errs := o.Stop(t.Context(), func(_ context.Context, name string) error {
		r.add(name)
		if name == "web" {
			return errors.New("does not stop")
		}
		return nil
	})
	if want := []string{"web", "schema", "db"}; !slices.Equal(r.lines, want) || len(errs) != 1 {
		t.Errorf("stopped %q with %v, want %q", r.lines, errs, want)
	}
}

// Records of sandboxes that were made from different files may wait for each other.
func TestCirclesStopToo(t *testing.T) {
	o := New([]Job{{"a", needs(started("b"))}, {"b", needs(started("c"))}, {"c", needs(started("a"), started("c"))}})
	var r record
	if errs := o.Stop(t.Context(), func(_ context.Context, name string) error { r.add(name); return nil }); len(errs) > 0 || len(r.lines) != 3 {
		t.Errorf("%q, %v", r.lines, errs)
	}
}

func TestDecide(t *testing.T) {
	for _, tc := range []struct {
		found        *Found
		ready, rerun bool
		want         Action
	}{
		{found: nil, want: Start},
		{found: &Found{Alive: true, Same: true}, want: Keep},
		{found: &Found{Alive: true, Same: true}, rerun: true, want: Keep},
		{found: &Found{Alive: true}, want: Replace},
		{found: &Found{Same: true, Done: true}, want: Leave},
		{found: &Found{Done: true}, want: Replace},
		{found: &Found{Same: true, Done: true}, rerun: true, want: Replace},
		{found: &Found{Same: true, Done: true}, ready: true, want: Replace},
		{found: &Found{Same: true}, want: Replace}, // failed, or was stopped
	} {
		if got := Decide(tc.found, tc.ready, tc.rerun); got != tc.want {
			t.Errorf("%+v, awaited %v, again %v: %s, want %s", tc.found, tc.ready, tc.rerun, got, tc.want)
		}
	}
}
