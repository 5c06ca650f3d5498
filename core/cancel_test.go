package core_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/nucleus-runtime/nucleus/core"
	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

// A start that is cancelled as its last step is done has killed init: it is no start, and
// not one of a sandbox that is about to end.
func TestAStartThatIsCancelledAtItsEndIsNone(t *testing.T) {
	testutil.Needs(t, testutil.UserNS)
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	o := options
	o.Lap = func(step string) {
		if step == "posture verified" {
			cancel(errors.New("nobody wants it"))
		}
	}
	rt, err := core.New(o)
	if err != nil {
		t.Fatal(err)
	}
	s, err := rt.Create(ctx, planOf(t, rt, "/bin/true"), core.RunOptions{})
	if err == nil {
		t.Error(s.Destroy(t.Context()))
	}
	if err == nil || !strings.Contains(err.Error(), "start cancelled: nobody wants it") {
		t.Errorf("error %v", err)
	}
}
