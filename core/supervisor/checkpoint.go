package supervisor

import (
	"context"

	"github.com/nucleus-runtime/nucleus/core/control"
)

// Checkpoint saves the state of the sandbox to an image. It is not started again if it
// ends then.
func (v *Supervisor) Checkpoint(ctx context.Context, image string, leave bool) error {
	s, err := v.living("checkpoint")
	if err != nil {
		return err
	}
	return s.Checkpoint(ctx, image, leave)
}

func (v *Supervisor) askCheckpoint(ctx context.Context, m control.Message) error {
	var r CheckpointRequest
	if err := m.Decode(&r); err != nil {
		return err
	}
	if err := v.Checkpoint(ctx, r.Image, r.LeaveRunning); err != nil || r.LeaveRunning {
		return err
	}
	select {
	case <-v.done:
	case <-ctx.Done(): // of who has gone; the server's own end is the sandbox's
	}
	return nil
}
