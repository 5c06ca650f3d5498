// Package stack owns the order in which the jobs of one file start and stop, and what
// is to become of sandboxes that are there already. It starts nothing and looks at
// nothing itself: that is its callers' part.
package stack

import (
	"context"
	"fmt"
	"sync"

	"github.com/nucleus-runtime/nucleus/core/job"
)

// Job is a job of a stack and what it waits for.
type Job struct {
	Name  string
	Needs []job.Dependency
}

// Order is the order of a stack's jobs.
type Order struct {
	jobs  []Job
	index map[string]int
}

// New takes jobs whose names differ. What they need beside each other is left out, and
// so is what closes a circle: a job file has neither, but records of sandboxes that were
// made from different versions of one can.
func New(jobs []Job) *Order {
	o := &Order{index: make(map[string]int, len(jobs))}
	for i, j := range jobs {
		o.index[j.Name] = i
		o.jobs = append(o.jobs, Job{Name: j.Name})
	}
	seen, under := make([]bool, len(jobs)), make([]bool, len(jobs))
	var visit func(i int)
	visit = func(i int) {
		seen[i], under[i] = true, true
		for _, n := range jobs[i].Needs {
			on, ok := o.index[n.Job]
			if !ok || under[on] {
				continue
			}
			o.jobs[i].Needs = append(o.jobs[i].Needs, n)
			if !seen[on] {
				visit(on)
			}
		}
		under[i] = false
	}
	for i := range jobs {
		if !seen[i] {
			visit(i)
		}
	}
	return o
}

// Awaited tells whether a job waits for that condition of this one.
func (o *Order) Awaited(name string, c job.Condition) bool {
	for _, j := range o.jobs {
		for _, n := range j.Needs {
			if n.Job == name && n.Condition == c {
				return true
			}
		}
	}
	return false
}

// BlockedError tells that a job was not started because of another.
type BlockedError struct{ Need job.Dependency }

func (e *BlockedError) Error() string {
	what := map[job.Condition]string{
		job.ConditionStarted: "has not started", job.ConditionReady: "is not ready", job.ConditionExited: "has not ended with exit code 0",
	}[e.Need.Condition]
	return fmt.Sprintf("not started: job %q, which it waits for, %s", e.Need.Job, what)
}

// progress is how far a job has come.
type progress struct {
	mu      sync.Mutex
	reached map[job.Condition]chan struct{}
	over    chan struct{} // closed when nothing more is going to be reached
}

func newProgress() *progress {
	return &progress{over: make(chan struct{}), reached: map[job.Condition]chan struct{}{
		job.ConditionStarted: make(chan struct{}), job.ConditionReady: make(chan struct{}), job.ConditionExited: make(chan struct{}),
	}}
}

func (p *progress) reach(c job.Condition) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range []job.Condition{job.ConditionStarted, c} { // nothing is ready or ends that has not started
		select {
		case <-p.reached[c]:
		default:
			close(p.reached[c])
		}
	}
}

func (p *progress) await(ctx context.Context, c job.Condition) bool {
	select {
	case <-p.reached[c]:
		return true
	case <-p.over:
	case <-ctx.Done():
		return false
	}
	select {
	case <-p.reached[c]:
		return true
	default:
		return false
	}
}

// Start calls start for each job as soon as the others have come as far as it needs, and
// at once for those that free names. start tells how far the job has come, and returns
// when there is nothing more to tell. Start returns when all have, with their errors by
// name. A cancelled context lets no further job be started.
func (o *Order) Start(ctx context.Context, free func(name string) bool, start func(ctx context.Context, name string, reached func(job.Condition)) error) map[string]error {
	all := make([]*progress, len(o.jobs))
	for i := range all {
		all[i] = newProgress()
	}
	return o.each(func(i int, j Job) error {
		defer close(all[i].over)
		if !free(j.Name) {
			for _, n := range j.Needs {
				if all[o.index[n.Job]].await(ctx, n.Condition) {
					continue
				}
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				return &BlockedError{Need: n}
			}
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
		}
		return start(ctx, j.Name, all[i].reach)
	})
}

// Stop calls stop for each job once those that need it are through, whether they could
// be stopped or not, and returns the errors by name. A cancelled context lets no further
// job be stopped.
func (o *Order) Stop(ctx context.Context, stop func(ctx context.Context, name string) error) map[string]error {
	over := make([]chan struct{}, len(o.jobs))
	dependants := make([][]int, len(o.jobs))
	for i, j := range o.jobs {
		over[i] = make(chan struct{})
		for _, n := range j.Needs {
			on := o.index[n.Job]
			dependants[on] = append(dependants[on], i)
		}
	}
	return o.each(func(i int, j Job) error {
		defer close(over[i])
		for _, d := range dependants[i] {
			<-over[d]
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return stop(ctx, j.Name)
	})
}

// each calls do for all jobs at once and waits for all.
func (o *Order) each(do func(i int, j Job) error) map[string]error {
	var mu sync.Mutex
	var wg sync.WaitGroup
	errs := map[string]error{}
	for i, j := range o.jobs {
		wg.Go(func() {
			if err := do(i, j); err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs[j.Name] = err
			}
		})
	}
	wg.Wait()
	return errs
}
