package lifecycle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nucleus-runtime/nucleus/core/audit"
	"github.com/nucleus-runtime/nucleus/core/cgroups"
	"github.com/nucleus-runtime/nucleus/core/plan"
	"github.com/nucleus-runtime/nucleus/internal/failpoint"
)

// Status is where a sandbox is in its life.
type Status string

// The states, in OCI's words where it has one (runtime.md, "State").
const (
	StatusCreating      Status = "creating"
	StatusCreated       Status = "created" // its workload waits at the start gate
	StatusRunning       Status = "running"
	StatusPaused        Status = "paused"
	StatusCheckpointing Status = "checkpointing" // its state is being saved
	StatusStopping      Status = "stopping"      // its workload was asked to end
	StatusStopped       Status = "stopped"
)

// Status tells where the sandbox is.
func (s *Sandbox) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status
}

// become changes the status, but for a sandbox that has ended, and one that is to end
// stays so.
func (s *Sandbox) become(to Status) bool {
	s.mu.Lock()
	ok := s.status != StatusStopped && (s.status != StatusStopping || to == StatusStopped)
	if ok {
		if s.status != StatusStopping && (to == StatusStopping || to == StatusStopped) {
			close(s.ending)
		}
		s.status = to
	}
	s.mu.Unlock()
	if ok {
		s.notify()
	}
	return ok
}

// OnChange has f called after each change of the status from now on.
func (s *Sandbox) OnChange(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changed = f
}

func (s *Sandbox) notify() {
	s.mu.Lock()
	f := s.changed
	s.mu.Unlock()
	if f != nil {
		f()
	}
}

// Started is when the workload was let go, zero before.
func (s *Sandbox) Started() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.result.Started
}

// Abandon says that nobody wants a created sandbox to be started any more.
func (s *Sandbox) Abandon() {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.dropped:
	default:
		close(s.dropped)
	}
}

// Abandoned is closed by Abandon.
func (s *Sandbox) Abandoned() <-chan struct{} { return s.dropped }

// Plan is what the sandbox was made from.
func (s *Sandbox) Plan() *plan.Plan { return s.plan }

// InitPid is that of PID 1, as the host sees it.
func (s *Sandbox) InitPid() int { return s.init.Pid }

// Cgroup gives the directories of the group that the sandbox's processes are born in, by
// controller ("" on v2), nil for none.
func (s *Sandbox) Cgroup() map[string]string {
	if s.group == nil {
		return nil
	}
	return s.group.Paths()
}

// Stats reads the accounts of the sandbox's group; nil without a group.
func (s *Sandbox) Stats() (*cgroups.Stats, error) {
	if s.group == nil {
		return nil, nil
	}
	st, err := s.group.Stats()
	if err != nil {
		return nil, err
	}
	return &st, nil
}

// Pause stops every process of the sandbox where it is, init too.
func (s *Sandbox) Pause(ctx context.Context) error {
	s.freezing.Lock()
	defer s.freezing.Unlock()
	switch st := s.Status(); st {
	case StatusPaused:
		return nil
	case StatusRunning:
	default:
		e := &StateError{What: "pause", Status: st}
		if st == StatusCreated {
			e.Hint = "nucleus start " + s.dir.Name
		}
		return e
	}
	if s.group == nil {
		return &PhaseError{Phase: "pause", Hint: "nucleus doctor", Err: errors.New("the sandbox has no control group, whose freezer is what stops it")}
	}
	s.pauses.Add(1)
	if err := s.dir.Journal.Intent(stepFrozen, s.group.Record()); err != nil {
		return phase("cgroups", err)
	}
	if err := s.group.Freeze(ctx); err != nil {
		return errors.Join(phase("cgroups", err), s.dir.Journal.Retract(stepFrozen))
	}
	failpoint.Hit("frozen")
	if !s.become(StatusPaused) { // asked to end meanwhile
		return errors.Join(s.thaw(), &StateError{What: "pause", Status: s.Status()})
	}
	s.log.Emit(audit.Paused, nil, nil)
	return nil
}

// Resume lets a paused sandbox go on.
func (s *Sandbox) Resume(context.Context) error {
	s.freezing.Lock()
	if s.Status() == StatusPaused && s.foreign.stuck {
		return s.unstick()
	}
	defer s.freezing.Unlock()
	switch st := s.Status(); st {
	case StatusPaused:
	case StatusRunning:
		return nil
	default:
		return &StateError{What: "resume", Status: st}
	}
	if err := s.thaw(); err != nil {
		return err
	}
	s.become(StatusRunning)
	s.log.Emit(audit.Resumed, nil, nil)
	return nil
}

// thaw is called with freezing held.
func (s *Sandbox) thaw() error {
	if err := s.group.Thaw(context.Background()); err != nil {
		return phase("cgroups", err)
	}
	failpoint.Hit("thawed")
	return s.dir.Journal.Retract(stepFrozen)
}

// unfreeze lets processes go on that are to end, and says so before anybody could pause
// them again: below a v1 freezer not even SIGKILL ends one.
func (s *Sandbox) unfreeze(to Status) {
	s.freezing.Lock()
	defer s.freezing.Unlock()
	if s.Status() == StatusPaused && !s.foreign.stuck { // a program that holds it still is killed
		if err := s.thaw(); err != nil {
			s.log.Emit(audit.UndoFailed, err, map[string]any{"step": stepFrozen})
		}
	}
	s.become(to)
}

// unfreeze is the inverse of a pause.
func (*undoing) unfreeze(ctx context.Context, data json.RawMessage) error {
	var r cgroups.Record
	if err := json.Unmarshal(data, &r); err != nil {
		return err
	}
	if err := cgroups.Thaw(ctx, r); err != nil {
		return fmt.Errorf("letting the sandbox go on: %w", err)
	}
	return nil
}
