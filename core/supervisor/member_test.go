package supervisor

import (
	"context"
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nucleus-runtime/nucleus/core/control"
	"github.com/nucleus-runtime/nucleus/core/lifecycle"
	"github.com/nucleus-runtime/nucleus/core/plan"
	"github.com/nucleus-runtime/nucleus/core/stack"
	"github.com/nucleus-runtime/nucleus/core/state"
	"github.com/nucleus-runtime/nucleus/sdk/network/member"
)

// door is a run that only others of its stack ask for something.
type door struct {
	Run
	asked chan member.Request
	err   error
	hangs bool
}

func (d *door) Connect(ctx context.Context, q member.Request) (member.Families, *os.File, error) {
	d.asked <- q
	if d.hangs {
		<-ctx.Done()
		return 0, nil, ctx.Err()
	}
	if d.err != nil || q.Protocol == member.None {
		return member.V4 | member.V6, nil, d.err
	}
	f, err := os.Open("/dev/null")
	return member.V4, f, err
}

// serveDoor is the supervisor of a job of a stack.
func serveDoor(t *testing.T, root *state.Root, s *Stack, job string, d *door, between bool) *Supervisor {
	t.Helper()
	dir, err := root.Create(state.NewID(), stack.Sandbox("shop", job), true)
	if err != nil {
		t.Fatal(err)
	}
	v := unmade(Config{Dir: dir, Plan: &plan.Plan{Name: "db"}, Stack: s, Locate: func(err error) error { return err }})
	d.asked = make(chan member.Request, 1)
	v.run, v.between = d, between
	if v.server, err = control.Listen(dir.Path); err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = v.server.Serve(context.Background(), v.handle)
	}()
	t.Cleanup(func() {
		_ = v.server.Close()
		<-served
		if err := dir.Remove(); err != nil {
			t.Error(err)
		}
	})
	return v
}

func TestConnectToAMember(t *testing.T) {
	tcp := member.Request{ID: 7, Protocol: member.TCP, Family: member.V4, Port: 5432, Job: "db"}
	mine, other := &Stack{Name: "shop"}, &Stack{Name: "shop-"}
	for name, x := range map[string]struct {
		stack  *Stack
		job    string // by the name of which the sandbox is found
		q      member.Request
		run    door
		ended  bool
		want   string // of the error
		absent bool
	}{
		"a connection":              {stack: mine, job: "db", q: tcp},
		"where it is":               {stack: mine, job: "db", q: member.Request{Job: "db"}},
		"nobody":                    {stack: mine, job: "cache", q: tcp, absent: true},
		"a sandbox of no stack":     {job: "db", q: tcp, absent: true, want: "is not job"},
		"a sandbox of another":      {stack: other, job: "db", q: tcp, absent: true, want: "is not job"},
		"another job":               {stack: mine, job: "web", q: member.Request{Job: "web"}, absent: true, want: `is not job "web"`},
		"between two runs":          {stack: mine, job: "db", q: tcp, ended: true, absent: true, want: "restarting"},
		"not running":               {stack: mine, job: "db", q: tcp, run: door{err: &lifecycle.StateError{What: "connect", Status: lifecycle.StatusPaused}}, absent: true, want: "paused"},
		"a refused connection":      {stack: mine, job: "db", q: tcp, run: door{err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}, want: "refused"},
		"what it cannot be for":     {stack: mine, job: "db", q: tcp, run: door{err: &lifecycle.PhaseError{Phase: "network", Err: errors.New("no init"), Hint: "make one"}}, want: "no init (make one)"},
		"more than it can be asked": {stack: mine, job: "db", q: tcp, run: door{err: &lifecycle.BusyError{What: "too many"}}, want: "too many"},
		"no answer":                 {stack: mine, job: "db", q: tcp, run: door{hangs: true}, want: "control message"},
	} {
		t.Run(name, func(t *testing.T) {
			root, err := state.Open(t.TempDir() + "/state")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { root.Close() })
			serveDoor(t, root, x.stack, x.job, &x.run, x.ended)
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			if x.run.hangs {
				cancel()
				ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
			}
			defer cancel()
			families, f, err := Connect(ctx, root, "shop", x.q)
			if name == "nobody" {
				x.want = "is not there"
			}
			if x.want == "" {
				if err != nil || families == 0 || (f != nil) != (x.q.Protocol != member.None) {
					t.Errorf("%d, a socket: %t, %v", families, f != nil, err)
				}
				want := x.q
				want.ID = 0
				if asked := <-x.run.asked; asked != want {
					t.Errorf("asked for %+v, want %+v", asked, want)
				}
				if f != nil {
					f.Close()
				}
				return
			}
			if f != nil || err == nil || !strings.Contains(err.Error(), x.want) || errors.Is(err, member.ErrAbsent) != x.absent {
				t.Errorf("%v, want %q; it counts as absent: %t, want %t", err, x.want, errors.Is(err, member.ErrAbsent), x.absent)
			}
			if len(x.run.asked) > 0 && x.absent && x.run.err == nil {
				t.Error("the sandbox was asked all the same")
			}
			var errno syscall.Errno
			if name == "a refused connection" && (!errors.As(err, &errno) || errno != syscall.ECONNREFUSED) {
				t.Errorf("%v has no errno", err)
			}
		})
	}
}
