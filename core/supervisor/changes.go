package supervisor

import (
	"context"
	"os"

	"github.com/nucleus-runtime/nucleus/core/control"
)

// Changes writes what the present run has changed in its overlay to out.
func (v *Supervisor) Changes(ctx context.Context, out *os.File, content bool) error {
	s, err := v.living("diff")
	if err != nil {
		return err
	}
	return s.Changes(ctx, out, content)
}

func (v *Supervisor) askChanges(ctx context.Context, m control.Message, fds []*os.File) error {
	var r DiffRequest
	if err := m.Decode(&r); err != nil {
		return err
	}
	if len(fds) != 1 {
		return &control.Error{Code: control.CodeBadRequest, Text: "diff: the descriptor to write to is missing"}
	}
	return v.Changes(ctx, fds[0], r.Content)
}
