package lifecycle

import (
	"errors"

	"github.com/nucleus-runtime/nucleus/core/cgroups"
	"github.com/nucleus-runtime/nucleus/core/fs"
	"github.com/nucleus-runtime/nucleus/core/namespaces"
	"github.com/nucleus-runtime/nucleus/core/state"
)

// PhaseError tells in which phase a start failed, and which part of the job
// the failed step came from.
type PhaseError struct {
	Phase  string
	Origin string // the job's path, "" for a default
	Hint   string
	Err    error
}

func (e *PhaseError) Error() string { return e.Phase + ": " + e.Err.Error() }
func (e *PhaseError) Unwrap() error { return e.Err }

// StartError is a start that failed once the sandbox had an id.
type StartError struct {
	ID, Name string
	Err      error
}

func (e *StartError) Error() string { return e.Err.Error() }
func (e *StartError) Unwrap() error { return e.Err }

// StatePhase marks an error of what a sandbox keeps on disk.
func StatePhase(err error) error { return phase("state", err) }

// phase marks an error with the phase that it happened in.
func phase(name string, err error) error {
	if err == nil {
		return nil
	}
	var known *PhaseError
	if errors.As(err, &known) {
		return err
	}
	e := &PhaseError{Phase: name, Err: err}
	var fe *fs.Error
	if errors.As(err, &fe) {
		e.Origin, e.Hint = fe.Origin, fe.Hint
	}
	var full *state.FullError
	if errors.As(err, &full) {
		e.Phase, e.Hint = "state", "make room in the state root's file system, or choose another: NUCLEUS_STATE_ROOT=DIR nucleus run …"
	}
	var ue *namespaces.UnsupportedError
	if errors.As(err, &ue) {
		e.Origin, e.Hint = ue.Origin, ue.Remedy
	}
	var ce *cgroups.UnsupportedError
	if errors.As(err, &ce) {
		e.Hint = ce.Remedy
	}
	return e
}
