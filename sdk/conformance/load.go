package conformance

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pluginv1 "github.com/nucleus-runtime/nucleus/sdk/proto/nucleus/plugin/v1"
)

func concurrent(ctx context.Context, k *Checker) error {
	p, err := k.ready(ctx, launch{})
	if err != nil {
		return err
	}
	defer p.close()
	const callers = 32
	var mu sync.Mutex
	var first error
	var all sync.WaitGroup
	for _, v := range k.verbs() {
		for range callers {
			all.Go(func() {
				err := within(ctx, func(ctx context.Context) error { return v.call(ctx, p, k.id()) })
				mu.Lock()
				defer mu.Unlock()
				if v.failed(err) && first == nil {
					first = broken("%s, as one of %d callers: %s", v.name, callers, tell(err))
				}
			})
		}
	}
	all.Wait()
	if first == nil {
		first = p.healthy(ctx)
	}
	if first == nil && strings.Contains(p.stderr.String(), "WARNING: DATA RACE") {
		first = broken("the race detector has found something:\n%s", p.stderr)
	}
	return first
}

// cancelled gives calls up at several moments. Whether the plugin has given them up,
// too, shows in what it does next: a repetition waits for the first try, and the end
// waits for calls at work.
func cancelled(ctx context.Context, k *Checker) error {
	p, err := k.ready(ctx, launch{})
	if err != nil {
		return err
	}
	defer p.close()
	for _, v := range k.verbs() {
		took, err := timed(ctx, k, p, v)
		if err != nil {
			return err
		}
		for i := range 4 {
			id := k.id()
			short, cancel := context.WithTimeout(ctx, took*time.Duration(i)/4+time.Microsecond)
			_ = v.call(short, p, id) // it may have been quick enough
			cancel()
			if err := p.healthy(ctx); err != nil {
				return fmt.Errorf("after %s was given up: %w", v.name, err)
			}
			again, cancel := context.WithTimeout(ctx, endLimit+20*took)
			err := v.call(again, p, id)
			cancel()
			if v.failed(err) {
				return broken("%s was given up, and asked for again: %s", v.name, tell(err))
			}
		}
		short, cancel := context.WithTimeout(ctx, took/2+time.Microsecond)
		_ = v.call(short, p, k.id())
		cancel()
	}
	if err := within(ctx, func(ctx context.Context) error {
		_, err := p.base.Shutdown(ctx, &pluginv1.ShutdownRequest{})
		return err
	}); err != nil {
		return broken("Shutdown: %s", tell(err))
	}
	if !p.ended(endLimit) {
		return broken("it still works on calls that nobody waits for: it has not ended %s after Shutdown", endLimit)
	}
	return nil
}

// timed measures a call: the shortest of a few, because a moment that is taken from one
// that was held up by something else is after the end of every other.
func timed(ctx context.Context, k *Checker, p *process, v verb) (time.Duration, error) {
	var least time.Duration
	for range 3 {
		begin := time.Now()
		if err := within(ctx, func(ctx context.Context) error { return v.call(ctx, p, k.id()) }); v.failed(err) {
			return 0, broken("%s: %s", v.name, tell(err))
		}
		if took := time.Since(begin); least == 0 || took < least {
			least = took
		}
	}
	return least, nil
}

func growth(ctx context.Context, k *Checker) error {
	p, err := k.ready(ctx, launch{})
	if err != nil {
		return err
	}
	defer p.close()
	cycle := func(n int) error {
		for range n {
			for _, v := range k.verbs() {
				if err := within(ctx, func(ctx context.Context) error { return v.call(ctx, p, k.id()) }); v.failed(err) {
					return broken("%s: %s", v.name, tell(err))
				}
			}
		}
		return nil
	}
	// What is made once is made by now.
	if err := cycle(max(5, k.conf.Cycles/5)); err != nil {
		return err
	}
	before := sizeOf(p.pid)
	if err := cycle(k.conf.Cycles); err != nil {
		return err
	}
	after := sizeOf(p.pid)
	const (
		moreFiles   = 16
		moreThreads = 32 // Go's runtime makes them as it likes
		moreMemory  = 64 << 20
	)
	var bad []error
	if after.descriptors > before.descriptors+moreFiles {
		bad = append(bad, broken("%d descriptors after %d more cycles, and %d before", after.descriptors, k.conf.Cycles, before.descriptors))
	}
	if after.threads > before.threads+moreThreads {
		bad = append(bad, broken("%d threads after %d more cycles, and %d before", after.threads, k.conf.Cycles, before.threads))
	}
	if after.rss > before.rss+max(before.rss, moreMemory) {
		bad = append(bad, broken("%d MiB of memory after %d more cycles, and %d before", after.rss>>20, k.conf.Cycles, before.rss>>20))
	}
	return errors.Join(bad...)
}

// crash kills the process within each call, a little later every time, and looks at
// what is left.
func crash(ctx context.Context, k *Checker) error {
	work, err := k.newWork()
	if err != nil {
		return err
	}
	dir, err := k.newDir("s")
	if err != nil {
		return err
	}
	l := launch{dir: dir, work: work}
	var children []started
	verbs := append(k.verbs(), verb{"Configure", false, func(ctx context.Context, p *process, _ string) error {
		_, err := k.configure(ctx, p)
		return err
	}})
	for _, v := range verbs {
		for i := range 3 {
			kids, err := k.killedIn(ctx, l, v, i)
			if err != nil {
				return fmt.Errorf("%s: %w", v.name, err)
			}
			children = append(children, kids...)
		}
	}
	if err := k.torndown(ctx, l); err != nil {
		return err
	}
	return leftovers(work, dir, children)
}

func (k *Checker) killedIn(ctx context.Context, l launch, v verb, third int) ([]started, error) {
	p, err := k.ready(ctx, l)
	if err != nil {
		return nil, fmt.Errorf("a process after one that was killed: %w", err)
	}
	defer p.close()
	took, err := timed(ctx, k, p, v)
	if err != nil {
		return nil, err
	}
	done := make(chan error, 1)
	id := k.id()
	p.readers.Go(func() {
		done <- within(ctx, func(ctx context.Context) error { return v.call(ctx, p, id) })
	})
	time.Sleep(took * time.Duration(third) / 3)
	kids := descendants(p.pid)
	p.kill()
	if err := <-done; v.failed(err) && status.Code(err) != codes.Unavailable {
		return nil, broken("the call of a process that was killed: %s", tell(err))
	}
	return kids, nil
}

// torndown lets a process that knows nothing of the earlier ones tidy up.
func (k *Checker) torndown(ctx context.Context, l launch) error {
	p, err := k.ready(ctx, l)
	if err != nil {
		return fmt.Errorf("a process after those that were killed: %w", err)
	}
	defer p.close()
	for _, v := range k.verbs() {
		if !v.teardown {
			continue
		}
		if err := within(ctx, func(ctx context.Context) error { return v.call(ctx, p, k.id()) }); err != nil {
			return broken("%s in a new process: %s", v.name, tell(err))
		}
	}
	return nil
}

// leftovers are what outlived the killed processes and the teardown after them.
func leftovers(work, sockets string, children []started) error {
	var bad []error
	for _, d := range []string{"run", "tmp"} {
		entries, err := os.ReadDir(filepath.Join(work, d))
		if err != nil {
			return err
		}
		for _, e := range entries {
			bad = append(bad, broken("%s is left in its %s directory", e.Name(), d))
		}
	}
	// A socket is left by a process that is killed, and its host removes the directory.
	err := filepath.WalkDir(sockets, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() && d.Type()&os.ModeSocket == 0 {
			bad = append(bad, broken("%s is left in the directory of its socket", d.Name()))
		}
		return err
	})
	if err != nil {
		return err
	}
	for _, c := range children {
		// One that has a session of its own may have to notice first.
		for end := time.Now().Add(deathLimit); c.alive() && time.Now().Before(end); {
			time.Sleep(pause)
		}
		if c.alive() {
			bad = append(bad, &fault{
				fmt.Sprintf("its child %d (%s) is still running", c.pid, procField(c.pid, "Name")),
				"leave children in the plugin's process group, which is killed with it, or give them a PR_SET_PDEATHSIG",
			})
			_ = syscall.Kill(c.pid, syscall.SIGKILL) // by its number and start
		}
	}
	return errors.Join(bad...)
}
