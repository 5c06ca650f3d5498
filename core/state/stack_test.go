package state

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
)

func TestOneAtATimeWorksOnAStack(t *testing.T) {
	r := open(t, filepath.Join(t.TempDir(), "state"))
	var inside, waited atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 20 {
				lock, err := r.LockStack(t.Context(), "app", func() { waited.Add(1) })
				if err != nil {
					t.Error(err)
					return
				}
				if n := inside.Add(1); n != 1 {
					t.Errorf("%d hold the lock", n)
				}
				inside.Add(-1)
				lock.Release()
			}
		})
	}
	wg.Wait()
	if _, err := os.Lstat(filepath.Join(r.Path(), "stacks")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the lock is still there: %v", err)
	}
	t.Logf("waited %d times", waited.Load())
}

func TestWaitingForAStackCanBeGivenUp(t *testing.T) {
	r := open(t, filepath.Join(t.TempDir(), "state"))
	lock, err := r.LockStack(t.Context(), "app", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Release()
	other, err := r.LockStack(t.Context(), "other", nil)
	if err != nil {
		t.Fatal(err)
	}
	other.Release()
	why := errors.New("interrupted")
	ctx, cancel := context.WithCancelCause(t.Context())
	if _, err := r.LockStack(ctx, "app", func() { cancel(why) }); !errors.Is(err, why) {
		t.Errorf("%v, want %v", err, why)
	}
	var bad *NameError
	if _, err := r.LockStack(t.Context(), "../app", nil); !errors.As(err, &bad) {
		t.Errorf("a name with a slash: %v", err)
	}
}
