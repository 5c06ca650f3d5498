package main

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"os"
	"time"

	"github.com/nucleus-runtime/nucleus/core/control"
	"github.com/nucleus-runtime/nucleus/core/lifecycle"
	"github.com/nucleus-runtime/nucleus/core/state"
	"github.com/nucleus-runtime/nucleus/core/supervisor"
)

// record gives what is known of a sandbox: of a live one from its supervisor.
func (a *app) record(ctx context.Context, root *state.Root, x state.Ref) (*supervisor.Record, error) {
	if !x.Kept() {
		var r supervisor.Record
		err := ask(ctx, x, &r)
		if err == nil && !x.Kept() { // else its end is on record by now
			return &r, nil
		}
		if err != nil && !errors.Is(err, control.ErrNoSupervisor) && !(errors.Is(err, control.ErrGone) && over(x)) {
			return nil, spoilt(root, x, controlError(x, err))
		}
	}
	r, err := onRecord(ctx, x, !x.Kept() && held(root, x))
	return &r, err
}

// onRecord gives the record in a sandbox's directory. There is none early in a start, and none
// on a full disk: whoever holds the sandbox is asked. As long as nobody listens there, and if
// the supervisor was killed then, its id and its name are all that is known.
func onRecord(ctx context.Context, x state.Ref, held bool) (supervisor.Record, error) {
	r := supervisor.Record{Version: supervisor.RecordVersion, ID: x.ID, Name: x.Name, Status: lifecycle.StatusCreating}
	err := x.ReadJSON(supervisor.RecordName, &r)
	none := errors.Is(err, fs.ErrNotExist)
	if none {
		err = nil
		if held {
			soon, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			if err = ask(soon, x, &r); errors.Is(err, control.ErrNoSupervisor) {
				err = nil
			}
		}
	}
	dead := !held && r.Status != lifecycle.StatusStopped
	if none || dead {
		if _, err := os.Lstat(x.Path); errors.Is(err, fs.ErrNotExist) {
			return r, &state.NotFoundError{Ref: x.ID}
		}
	}
	if dead {
		died(&r)
	}
	switch {
	case err == nil || held:
	case x.Kept():
		err = &hintedError{err: err, hint: "nucleus rm " + cmp.Or(x.Name, x.ID)}
	default:
		err = &hintedError{err: err, hint: "nucleus gc"}
	}
	return r, err
}

// ask has the supervisor tell what it could not write down. Early in the start there is
// none that listens.
func ask(ctx context.Context, x state.Ref, r *supervisor.Record) error {
	c, err := control.Dial(ctx, x.Path)
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Call(ctx, supervisor.VerbState, nil, r)
}

// statusDead is a sandbox whose supervisor was killed: gc takes what is left of it.
const statusDead = "dead"

// died takes out of a record what the killed supervisor did not: its numbers may be those of
// other processes by now.
func died(r *supervisor.Record) {
	r.Status, r.Ready, r.Pid, r.InitPid, r.Supervisor = statusDead, false, 0, 0, 0
}
