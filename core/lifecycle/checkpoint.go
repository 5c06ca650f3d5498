package lifecycle

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/nucleus-runtime/nucleus/core/audit"
	"github.com/nucleus-runtime/nucleus/core/checkpoint"
	"github.com/nucleus-runtime/nucleus/core/fs"
	"github.com/nucleus-runtime/nucleus/internal/failpoint"
	"github.com/nucleus-runtime/nucleus/sdk/runtime"
)

// identity is what an image and the sandbox that it is restored in have in common.
type identity struct{ program, config string }

const askForCheckpoint = "write checkpoint = true in the job's runtime block"

// mayCheckpoint notes what images of the sandbox are compared by, if there are to be any,
// and looks at whether it can go on from the image that it was given.
func (s *Sandbox) mayCheckpoint() error {
	r, a := s.plan.Runtime, s.foreign.answer
	if !r.Checkpoint {
		return nil
	}
	program, err := sum(a.File)
	if err != nil {
		return phase("exec", fmt.Errorf("reading the program of runtime %q: %w", r.Plugin, err))
	}
	config := sha256.Sum256(a.Spec)
	s.foreign.checkpoint = identity{program, hex.EncodeToString(config[:])}
	if s.cfg.Image == nil {
		return nil
	}
	if err := s.cfg.Image.Fits(r.Plugin, program, s.foreign.checkpoint.config); err != nil {
		return ImagePhase(err)
	}
	return nil
}

// mayRestore refuses an image for what can have none.
func (s *Sandbox) mayRestore() error {
	r := s.plan.Runtime
	switch {
	case s.cfg.Image == nil:
		return nil
	case r == nil:
		return &PhaseError{Phase: "checkpoint", Err: fmt.Errorf("image %q is restored by runtime %q, and the job has the native one", s.cfg.Image.Path, s.cfg.Image.Runtime), Hint: "restore it with the job that it was made with"}
	case !r.Checkpoint:
		return &PhaseError{Phase: "checkpoint", Origin: "runtime", Err: errors.New("the job does not ask for checkpoints, and so cannot be restored"), Hint: askForCheckpoint}
	}
	return nil
}

// sum gives the SHA-256 of a file, and leaves it as it was.
func sum(f *os.File) (string, error) {
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(f, 0, 1<<62)); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// ImagePhase marks an error of an image, and keeps its remedy.
func ImagePhase(err error) error {
	e := &PhaseError{Phase: "checkpoint", Err: err}
	var ie *checkpoint.Error
	var se *stuckError
	switch {
	case errors.As(err, &se):
		e.Hint = se.hint()
	case errors.As(err, &ie):
		e.Hint = ie.Hint
	}
	return e
}

// Checkpoint saves the state of a running sandbox to an image of that path, which holds
// nothing yet. With leave the sandbox goes on then, and without it is to end. If nothing
// could be saved there is no image, and it goes on in either case.
func (s *Sandbox) Checkpoint(ctx context.Context, path string, leave bool) (err error) {
	r := s.plan.Runtime
	switch {
	case r == nil:
		return &PhaseError{Phase: "checkpoint", Err: errors.New("the native runtime cannot save the state of a sandbox"), Hint: `write runtime "gvisor" { checkpoint = true } in the job`}
	case !r.Checkpoint:
		return &PhaseError{Phase: "checkpoint", Origin: "runtime", Err: errors.New("the job does not ask for checkpoints"), Hint: askForCheckpoint}
	}
	if err := s.beginSaving(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // whoever ends the sandbox does not wait for this
		select {
		case <-s.ending:
			cancel()
		case <-ctx.Done():
		}
	}()
	paused, noted := false, false
	d, err := checkpoint.Begin(path, func(dir string) error {
		noted = true
		return s.dir.Journal.Intent(stepImage, dir)
	})
	if err != nil && noted {
		err = errors.Join(err, s.dir.Journal.Retract(stepImage))
	}
	if err == nil {
		defer d.Close()
		failpoint.Hit("image begun")
		if paused, err = s.save(ctx, d); err != nil {
			err = errors.Join(err, s.discard(d))
		} else {
			failpoint.Hit("image published")
			err = s.dir.Journal.Retract(stepImage)
		}
	}
	if err != nil || leave {
		err = errors.Join(err, s.endSaving(paused))
	}
	if err != nil {
		if s.over() {
			err = errEnded
		}
		err = ImagePhase(err)
		s.log.Emit(audit.CheckpointFailed, err, nil)
		if s.Status() == StatusPaused {
			s.log.Emit(audit.Paused, nil, nil)
		}
		return err
	}
	s.log.Emit(audit.Checkpointed, nil, map[string]any{"image": path, "left_running": leave})
	if !leave {
		s.ask(request{what: reqSaved})
	}
	return nil
}

// over tells whether the sandbox has ended, or is to.
func (s *Sandbox) over() bool {
	select {
	case <-s.ending:
		return true
	default:
		return false
	}
}

// idleWait bounds the wait for probes, which are commands that nobody has asked for.
const idleWait = 10 * time.Second

// beginSaving says that the state is being saved: from then on nobody makes a process
// in the sandbox, nor pauses it.
func (s *Sandbox) beginSaving() error {
	if err := s.becomeSaving(); err != nil {
		return err
	}
	for end := time.Now().Add(idleWait); ; time.Sleep(5 * time.Millisecond) {
		switch n, all := s.spawned.asked(), s.spawned.all(); {
		case n > 0:
			s.become(StatusRunning)
			return s.commandsRun(n)
		case all == 0 || s.over():
			return nil
		case time.Now().After(end):
			s.become(StatusRunning)
			return &PhaseError{Phase: "checkpoint", Err: errors.New("a probe of the job does not come to its end"), Hint: "try again"}
		}
	}
}

func (s *Sandbox) becomeSaving() error {
	s.freezing.Lock()
	defer s.freezing.Unlock()
	st := s.Status()
	if st != StatusRunning {
		e := &StateError{What: "checkpoint", Status: st}
		switch st {
		case StatusCreated:
			e.Hint = "nucleus start " + s.dir.Name
		case StatusPaused:
			e.Hint = "nucleus resume " + s.dir.Name
		case StatusCheckpointing:
			e.Hint = "try again when the other nucleus checkpoint is done"
		}
		return e
	}
	if n := s.spawned.asked(); n > 0 {
		return s.commandsRun(n)
	}
	s.pauses.Add(1)
	s.become(StatusCheckpointing)
	return nil
}

func (s *Sandbox) commandsRun(n int) error {
	return &PhaseError{
		Phase: "checkpoint", Hint: "wait for their end, or end them",
		Err: fmt.Errorf("commands of nucleus exec run in the sandbox (%d), and their streams would be nobody's when it is restored", n),
	}
}

// resumeTime is for a program that lets its sandbox go on, which takes milliseconds.
const resumeTime = 30 * time.Second

// endSaving has the sandbox go on. Where that fails it counts as paused: nobody knows
// whether it goes on, and Resume tries it again.
func (s *Sandbox) endSaving(paused bool) (err error) {
	if paused {
		ctx, cancel := context.WithTimeout(context.Background(), resumeTime)
		defer cancel()
		err = s.callProgram(ctx, "let the sandbox go on", s.foreign.answer.Checkpoint.Resume, nil)
	}
	s.freezing.Lock()
	defer s.freezing.Unlock()
	to := StatusRunning
	if s.foreign.stuck = err != nil; err != nil {
		to = StatusPaused
	}
	s.pauses.Add(1)
	s.become(to)
	if err == nil || s.over() {
		return nil // it need not
	}
	return &stuckError{name: s.dir.Name, err: err}
}

// stuckError is of a sandbox that does not go on after its state was saved.
type stuckError struct {
	name string
	err  error
}

func (e *stuckError) Error() string { return "the sandbox stays paused: " + e.err.Error() }
func (e *stuckError) Unwrap() error { return e.err }
func (e *stuckError) hint() string {
	return "nucleus resume " + e.name + ", or nucleus kill " + e.name
}

// unstick is Resume where the program holds the sandbox still. It is called with freezing
// held, and lets go of it: whoever ends the sandbox does not wait for a call of the program.
func (s *Sandbox) unstick() error {
	s.become(StatusCheckpointing) // nobody pauses it meanwhile
	s.freezing.Unlock()
	var se *stuckError
	err := s.endSaving(true)
	switch {
	case errors.As(err, &se):
		return &PhaseError{Phase: "resume", Origin: "runtime", Err: err, Hint: se.hint()}
	case s.over():
		return errEnded
	}
	s.log.Emit(audit.Resumed, nil, nil)
	return nil
}

// save fills a draft and makes it the image. It tells whether the workload stands still
// afterwards.
func (s *Sandbox) save(ctx context.Context, d *checkpoint.Draft) (paused bool, err error) {
	data, err := d.Data()
	if err != nil {
		return false, err
	}
	defer data.Close()
	lent, err := fs.Lend(ctx, s.plan, data, fs.Options{Privileged: s.cfg.Privileged, Helper: s.cfg.InitPath, UserNS: s.userNS})
	if err != nil {
		return false, err
	}
	defer lent.Close()
	a := s.foreign.answer
	if err := s.callProgram(ctx, "pause the workload", a.Checkpoint.Pause, nil); err != nil {
		return ctx.Err() != nil, err // interrupted, it may have come that far
	}
	if err := s.callProgram(ctx, "save the state", a.Checkpoint.Save, lent, runtime.WordImage, programImage); err != nil {
		return true, err
	}
	failpoint.Hit("image saved")
	return true, d.Publish(ctx, checkpoint.Manifest{
		Created: time.Now().UTC(), Job: s.plan.Name, Sandbox: s.dir.ID, Runtime: s.plan.Runtime.Plugin,
		Program: s.foreign.checkpoint.program, ProgramVersion: a.Facts["version"], Config: s.foreign.checkpoint.config,
	})
}

// programImage is how Save's program reaches the directory.
const programImage = "/dev/fd/3"

// discard takes back a draft.
func (s *Sandbox) discard(d *checkpoint.Draft) error {
	if err := d.Discard(); err != nil {
		return err // the journal has it
	}
	return s.dir.Journal.Retract(stepImage)
}

// discardImage is the inverse of a draft.
func (*undoing) discardImage(_ context.Context, data json.RawMessage) error {
	var dir string
	if err := json.Unmarshal(data, &dir); err != nil {
		return err
	}
	return checkpoint.Remove(dir)
}

// maxSaid bounds what is shown of why a call has failed.
const maxSaid = 4 << 10

// callProgram makes a call of the program and waits until it has done it.
func (s *Sandbox) callProgram(ctx context.Context, what string, c runtime.Command, pass *os.File, words ...string) error {
	read, write, err := os.Pipe()
	if err != nil {
		return os.NewSyscallError("pipe2", err)
	}
	defer read.Close()
	said := make(chan string, 1)
	go func() {
		var b bytes.Buffer
		_, _ = io.Copy(&b, io.LimitReader(read, maxSaid)) // what there is of it
		_, _ = io.Copy(io.Discard, read)
		said <- b.String()
	}()
	p, err := s.startProgram(ctx, c, write, pass, words...)
	_ = write.Close() // the program has its own
	if err != nil {
		return err
	}
	if !p.endsWithin(ctx) {
		return fmt.Errorf("interrupted: %w", context.Cause(ctx))
	}
	code, _, err := p.Wait()
	if err == nil && code != 0 {
		// What it has started may have the pipe for longer.
		text := "it says nothing of it"
		select {
		case t := <-said:
			if t = failureText(t); t != "" {
				text = t
			}
		case <-time.After(lastWords):
		}
		err = fmt.Errorf("the program of runtime %q does not %s (exit code %d): %s", s.plan.Runtime.Plugin, what, code, strings.TrimSpace(text))
	}
	return err
}

// asked counts the commands that somebody waits for, and all counts probes and calls of
// the program as well.
func (t *spawns) asked() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := 0
	for _, p := range t.byID {
		if !p.quiet {
			n++
		}
	}
	return n
}

func (t *spawns) all() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.byID)
}
