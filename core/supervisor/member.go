package supervisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/nucleus-runtime/nucleus/core/control"
	"github.com/nucleus-runtime/nucleus/core/lifecycle"
	"github.com/nucleus-runtime/nucleus/core/stack"
	"github.com/nucleus-runtime/nucleus/core/state"
	"github.com/nucleus-runtime/nucleus/sdk/network/member"
)

// ConnectRequest asks for a connection to a port of the sandbox, or only where it is.
type ConnectRequest struct {
	// Stack and Job are what the sandbox has to be.
	Stack    string          `json:"stack"`
	Job      string          `json:"job"`
	Protocol member.Protocol `json:"protocol,omitempty"`
	Family   member.Families `json:"family,omitempty"`
	Port     uint16          `json:"port,omitempty"`
}

// Connected tells what came of it. The socket is passed with it, if one was asked for and
// there is no Errno.
type Connected struct {
	Families member.Families `json:"families,omitempty"`
	Errno    uint16          `json:"errno,omitempty"`
}

// connect serves another member of the sandbox's stack. That its rules allow it is the
// asking supervisor's to say, which could as well execute anything in here.
func (v *Supervisor) connect(ctx context.Context, c *control.Conn, m control.Message) {
	var r ConnectRequest
	if err := m.Decode(&r); err != nil {
		v.fail(c, err)
		return
	}
	if v.cfg.Stack == nil || v.cfg.Stack.Name != r.Stack || v.cfg.Plan.Name != r.Job {
		_ = c.Fail(&control.Error{Code: control.CodeState, Text: fmt.Sprintf("connect: the sandbox is not job %q of stack %q", r.Job, r.Stack)}) // as in fail
		return
	}
	run, err := v.living("connect")
	var file *os.File
	var a Connected
	if err == nil {
		a.Families, file, err = run.Connect(ctx, member.Request{Protocol: r.Protocol, Family: r.Family, Port: r.Port, Job: r.Job})
	}
	var errno syscall.Errno
	var busy *lifecycle.BusyError
	switch {
	case errors.As(err, &busy):
		_ = c.Fail(&control.Error{Code: control.CodeBusy, Text: busy.Error()}) // as in fail
	case errors.As(err, &errno):
		a.Errno = uint16(errno)
		v.answer(c, a, nil)
	case err != nil:
		v.fail(c, err)
	case file == nil:
		v.answer(c, a, nil)
	default:
		_ = c.Send(control.KindOK, a, file) // as in fail
		_ = file.Close()
	}
}

// Connect asks the supervisor of another member of a stack, which is found anew each
// time: where a job is may have changed. The error is member.ErrAbsent if it is not
// there.
func Connect(ctx context.Context, root *state.Root, stackName string, q member.Request) (member.Families, *os.File, error) {
	ref, err := root.Find(stack.Sandbox(stackName, q.Job))
	var none *state.NotFoundError
	if errors.As(err, &none) {
		return 0, nil, member.ErrAbsent
	}
	if err != nil {
		return 0, nil, err
	}
	c, err := control.Dial(ctx, ref.Path)
	if errors.Is(err, control.ErrNoSupervisor) {
		return 0, nil, member.ErrAbsent
	}
	if err != nil {
		return 0, nil, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	err = c.Send(VerbConnect, ConnectRequest{Stack: stackName, Job: q.Job, Protocol: q.Protocol, Family: q.Family, Port: q.Port})
	if err != nil && !errors.Is(err, control.ErrGone) { // then there may be an answer
		return 0, nil, err
	}
	m, files, err := c.Recv()
	if err == nil {
		err = m.Err()
	}
	var a Connected
	if err == nil {
		err = m.Decode(&a)
	}
	want := 0
	if q.Protocol != member.None && a.Errno == 0 {
		want = 1
	}
	if err == nil && len(files) != want {
		err = fmt.Errorf("connect: %d descriptors came, want %d", len(files), want)
	}
	if err == nil && a.Errno != 0 {
		err = os.NewSyscallError("connect", syscall.Errno(a.Errno))
	}
	if err != nil {
		control.CloseAll(files)
		return a.Families, nil, connectError(err)
	}
	if want == 0 {
		return a.Families, nil, nil
	}
	return a.Families, files[0], nil
}

// connectError makes one of all ways in which a sandbox is not there.
func connectError(err error) error {
	var e *control.Error
	switch {
	case errors.As(err, &e) && e.Code == control.CodeState:
		return fmt.Errorf("%w: %s", member.ErrAbsent, e.Text)
	case e != nil && e.Hint != "":
		return fmt.Errorf("%w (%s)", err, e.Hint)
	}
	return err
}
