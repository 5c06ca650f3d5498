package conformance

import (
	"context"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/nucleus-runtime/nucleus/sdk/runtime"
)

// A workload with a state: what it has counted is in its memory alone. A fake that has
// no way to save that starts it again with a variable, which nobody else sets.
const counting = `i=0$FROM; while :; do i=$((i+1)); echo $i > /tmp/count; echo "n$i "; sleep 0.05; done`

// standStill is for how long a workload that is paused is looked at.
const standStill = 400 * time.Millisecond

func savesState(ctx context.Context, k *Checker) error {
	return k.inBoxOf(ctx, simple{args: []string{"/bin/sh", "-c", counting}, checkpoint: true}, func(b *box) error {
		if !b.how.Checkpoint.Given() {
			return skip("it has no checkpoints")
		}
		if err := b.start(); err != nil {
			return err
		}
		if !b.run.out.await("n3 ", boxLimit) {
			return broken("the workload did not start within %s; standard error: %q", boxLimit, b.run.errs)
		}
		dir, image, err := b.image()
		if err != nil {
			return err
		}
		defer image.Close()
		c := b.how.Checkpoint
		if err := b.does("Pause", c.Pause, nil); err != nil {
			return err
		}
		time.Sleep(standStill / 4) // what it has written may be on its way
		counted, err := b.standsStill("after Pause")
		if err != nil {
			return err
		}
		if err := b.does("Save", c.Save, image, runtime.WordImage, "/dev/fd/3"); err != nil {
			return err
		}
		if err := plainFiles(dir); err != nil {
			return err
		}
		if _, err := b.standsStill("after Save"); err != nil {
			return err
		}
		if err := b.does("Resume", c.Resume, nil); err != nil {
			return err
		}
		next := fmt.Sprintf("n%d ", counted+1)
		if !b.run.out.await(next, boxLimit) {
			return broken("after Resume the workload does not go on: %q; standard error: %q", last(b.run.out), b.run.errs)
		}
		if err := b.signal(b.run, "1", syscall.SIGKILL); err != nil {
			return err
		}
		if !b.run.endsWithin(boxLimit) {
			return broken("SIGKILL does not end it after Resume")
		}
		return b.restores(image, next)
	})
}

// restores starts another sandbox from an image.
func (b *box) restores(image *os.File, next string) error {
	again := &box{k: b.k, how: b.how, simple: b.simple}
	if err := again.open(); err != nil {
		return err
	}
	defer again.cell.Close()
	r, err := again.call(b.how.Checkpoint.Restore, image, runtime.WordImage, "/dev/fd/3", runtime.WordPIDFile, runPIDFile, runtime.WordFailureFile, runtime.StatePath+"/failure")
	if err != nil {
		return err
	}
	if !r.out.await("n", boxLimit) {
		return broken("what is restored writes nothing within %s; standard error: %q", boxLimit, r.errs)
	}
	if got := r.out.String(); !strings.HasPrefix(got, next) && !strings.HasPrefix(next, got) {
		return broken("what is restored goes on with %q, and not with %q", first(r.out), next)
	}
	if err := again.signal(r, "1", syscall.SIGKILL); err != nil {
		return err
	}
	return r.ended(128 + int(syscall.SIGKILL))
}

// does makes a call that has to succeed.
func (b *box) does(what string, c runtime.Command, further *os.File, words ...string) error {
	r, err := b.call(c, further, words...)
	if err != nil {
		return err
	}
	if err := r.ended(0); err != nil {
		return fmt.Errorf("the command %s: %w", what, err)
	}
	return nil
}

// standsStill tells what the workload has counted to, and that it does not go on.
func (b *box) standsStill(when string) (int, error) {
	before := last(b.run.out)
	time.Sleep(standStill)
	if after := last(b.run.out); after != before {
		return 0, broken("%s the workload goes on, from %q to %q", when, before, after)
	}
	n := 0
	if _, err := fmt.Sscanf(before, "n%d", &n); err != nil {
		return 0, broken("%s the workload has written %q", when, before)
	}
	return n, nil
}

func first(p *pipe) string { line, _, _ := strings.Cut(p.String(), "\n"); return line }

func last(p *pipe) string {
	s := strings.TrimSpace(p.String())
	return s[strings.LastIndex(s, "\n")+1:]
}

// image makes the directory of one.
func (b *box) image() (string, *os.File, error) {
	dir, err := b.k.newDir("i")
	if err != nil {
		return "", nil, err
	}
	// The program is another user of the host's where a cell has a range of ids.
	if err := os.Chmod(dir, 0o777); err != nil {
		return "", nil, err
	}
	f, err := os.Open(dir)
	return dir, f, err
}

// plainFiles looks at what an image is of.
func plainFiles(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.Type().IsRegular() {
			return broken("Save has written %q, which is no regular file", e.Name())
		}
	}
	if len(entries) == 0 {
		return broken("Save has written no file")
	}
	return nil
}
