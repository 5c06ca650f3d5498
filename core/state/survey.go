package state

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// What the sandboxes of a root have, as all of them have written it down. Who is told of
// it may remove whatever is not on the list, so that nothing may be made meanwhile that
// is not yet on it: an effect that such a list is about is announced, and not just written
// down. The lock is on the directory of all sandboxes.

// Announce is Journal.Intent for an effect that surveys are about.
func (d *Dir) Announce(ctx context.Context, step string, data any) error {
	unlock, err := lockSandboxes(ctx, filepath.Dir(d.Path), unix.LOCK_SH)
	if err != nil {
		return err
	}
	defer unlock()
	return d.Journal.Intent(step, data)
}

// Survey gives use every sandbox whose journal has the step's effect, alive or not, and
// lets nobody announce one until it returns.
func (r *Root) Survey(ctx context.Context, step string, use func(map[string]Record) error) error {
	unlock, err := lockSandboxes(ctx, filepath.Join(r.path, "sandboxes"), unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer unlock()
	refs, err := r.Refs()
	if err != nil {
		return err
	}
	all := make(map[string]Record)
	for _, x := range refs {
		if x.Kept() {
			continue // nothing of it is left
		}
		records, err := x.pending()
		if err != nil {
			switch alive, herr := x.held(); {
			case herr != nil:
				return herr
			case alive: // its supervisor knows what to undo
				return fmt.Errorf("sandbox %s, which is alive: %w", x.ID[:12], err)
			}
			return fmt.Errorf("sandbox %s: %w", x.ID[:12], &JournalError{Dir: x.Path, Err: err})
		}
		for _, rec := range records {
			if rec.Step == step {
				all[x.ID] = rec
			}
		}
	}
	return use(all)
}

// pending is Dir.Pending for who does not hold the sandbox.
func (x Ref) pending() ([]Record, error) {
	f, err := os.OpenFile(filepath.Join(x.Path, journalName), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil // it has not begun, or is gone since
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	// What is cut off, or nothing, of a journal would be a sandbox without effects.
	if _, err := sizeOf(f); err != nil {
		return nil, err
	}
	return pending(io.LimitReader(f, maxJournal))
}

func lockSandboxes(ctx context.Context, path string, how int) (unlock func(), err error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	for pause := time.Millisecond; ; pause = min(2*pause, 20*time.Millisecond) {
		err := flock(fd, how|unix.LOCK_NB)
		if err == nil {
			return func() { _ = unix.Close(fd) }, nil
		}
		if errors.Is(err, unix.EWOULDBLOCK) {
			select {
			case <-ctx.Done():
				err = context.Cause(ctx)
			case <-time.After(pause):
				continue
			}
		}
		_ = unix.Close(fd)
		return nil, fmt.Errorf("lock of the sandboxes %q: %w", path, err)
	}
}
