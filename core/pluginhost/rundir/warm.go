package rundir

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/internal/procid"
)

const (
	// warmFile has a Warm. When it was last changed is when the plugin was last used.
	warmFile = "warm"
	maxWarm  = 16 << 10
	// MaxUses of one process: plugins forget no instance, so this bounds what one may
	// come to hold.
	MaxUses = 1000
	// slack is how much longer than it was told a plugin may stay: the SDK lets calls
	// and the author's Close take five seconds each.
	slack = 15 * time.Second
)

// Warm is the record of a plugin process that outlives its host. Its directory is
// locked shared by each host that uses it.
type Warm struct {
	Name    string        `json:"name"`
	Service string        `json:"service"`
	Digest  string        `json:"digest"`
	Key     string        `json:"key"` // all that two hosts have to agree on to share it
	PID     int           `json:"pid"`
	Start   uint64        `json:"start"`
	Boot    string        `json:"boot"`
	UID     uint32        `json:"uid"`
	Socket  string        `json:"socket"`
	Keep    time.Duration `json:"keep"`
	Uses    int           `json:"uses"`
	// Over says that nobody is to come any more. Who leaves last ends it.
	Over bool `json:"over"`
}

// Keep writes the record of the plugin in d, whose only host this process is, and lets
// others in. What tells its process from others is filled in here.
func (d *Dir) Keep(w Warm) (err error) {
	top, err := locked(filepath.Dir(d.Path), unix.LOCK_EX, lockTime)
	if err != nil {
		return err
	}
	defer top.Close()
	if w.Start, err = startOf(w.PID); err != nil {
		return err
	}
	if w.Boot, err = procid.Boot(); err != nil {
		return err
	}
	w.Uses = 1
	if err := w.write(d.Path); err != nil {
		return err
	}
	// The kernel lets go of one lock before it takes the other (flock(2)): that is
	// what the parent's is for.
	return os.NewSyscallError("flock", flock(d.lock, unix.LOCK_SH))
}

// Attach looks for a plugin that was kept under a key, and is still the process that
// its record means. All nil is none. What the dead have left is swept on the way.
func Attach(parents []string, key string) (*Dir, *Warm, *Process) {
	for _, parent := range parents {
		if check(parent) != nil {
			continue
		}
		if d, w, p := attachIn(parent, key); d != nil {
			return d, w, p
		}
	}
	return nil, nil, nil
}

func attachIn(parent, key string) (*Dir, *Warm, *Process) {
	top, err := locked(parent, unix.LOCK_EX, lockTime)
	if err != nil {
		return nil, nil, nil
	}
	defer top.Close()
	_ = sweep(parent, groupTime) // gc tells
	entries, err := os.ReadDir(parent)
	if err != nil {
		return nil, nil, nil
	}
	for _, e := range entries {
		path := filepath.Join(parent, e.Name())
		w, _, err := readWarm(path)
		if err != nil || w.Key != key || w.Over {
			continue
		}
		lock, err := locked(path, unix.LOCK_SH, 0)
		if err != nil {
			continue
		}
		if p := w.process(); p != nil {
			w.Uses++
			w.Over = w.Uses >= MaxUses
			if w.write(path) == nil {
				return &Dir{path, lock}, w, p
			}
			p.Close()
		}
		_ = lock.Close()
	}
	return nil, nil, nil
}

// Release leaves a plugin that was kept. If it does not stay it is the caller's alone,
// who has to end it: it is spoilt, or was used often enough, and nobody else uses it.
func (d *Dir) Release(spoilt bool) (stays bool) {
	top, err := locked(filepath.Dir(d.Path), unix.LOCK_EX, lockTime)
	if err != nil {
		_ = d.lock.Close()
		return true
	}
	defer top.Close()
	w, _, err := readWarm(d.Path)
	over := err != nil || spoilt || w.Over // nobody finds it without its record
	if err == nil && over && !w.Over {
		w.Over = true
		_ = w.write(d.Path)
	}
	if flock(d.lock, unix.LOCK_EX) == nil && over {
		return false
	}
	now := time.Now()
	_ = os.Chtimes(filepath.Join(d.Path, warmFile), now, now)
	_ = d.lock.Close()
	return true
}

// End ends a plugin that was found, and is the caller's alone, with all that is its.
func (d *Dir) End(ctx context.Context) error {
	return errors.Join(empty(ctx, d.Path), d.lock.Close())
}

// stays tells whether a plugin that nobody uses was kept, and may be.
func stays(dir string) bool {
	w, used, err := readWarm(dir)
	if err != nil || w.Over {
		return false
	}
	// A clock that was set back would make it stay for as long.
	if age := time.Since(used); age < -slack || age > w.Keep+slack {
		return false
	}
	p := w.process()
	if p == nil {
		return false
	}
	p.Close()
	return true
}

// empty ends what a directory has the records of, and removes it.
func empty(ctx context.Context, dir string) error {
	var ended error
	if w, _, err := readWarm(dir); err == nil {
		if p := w.process(); p != nil {
			ended = p.Kill(ctx)
			p.Close()
		}
	}
	if err := errors.Join(ended, removeGroup(ctx, dir)); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

// process is the process that the record means, nil if it has ended, or cannot be told
// from another.
func (w *Warm) process() *Process {
	if boot, err := procid.Boot(); err != nil || boot != w.Boot {
		return nil
	}
	p, err := open(w.PID)
	if err != nil {
		return nil
	}
	// In this order: while it lives, its number is nobody else's.
	if start, err := startOf(w.PID); err != nil || start != w.Start || !p.Alive() {
		p.Close()
		return nil
	}
	return p
}

// write replaces the record as a whole.
func (w *Warm) write(dir string) error {
	b, err := json.Marshal(w)
	if err != nil {
		return err
	}
	next := filepath.Join(dir, warmFile+".new")
	if err := os.WriteFile(next, b, 0o600); err != nil {
		return err
	}
	return os.Rename(next, filepath.Join(dir, warmFile))
}

// readWarm takes nothing that another user could have written.
func readWarm(dir string) (w *Warm, used time.Time, err error) {
	if err := check(dir); err != nil {
		return nil, used, err
	}
	f, err := os.OpenFile(filepath.Join(dir, warmFile), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, used, err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, used, os.NewSyscallError("fstat", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Mode&0o077 != 0 || st.Uid != uint32(os.Geteuid()) {
		return nil, used, fmt.Errorf("%s: mode %o of user %d", f.Name(), st.Mode, st.Uid)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxWarm))
	if err != nil {
		return nil, used, err
	}
	w = &Warm{}
	if err := json.Unmarshal(b, w); err != nil {
		return nil, used, err
	}
	return w, time.Unix(st.Mtim.Unix()), nil
}
