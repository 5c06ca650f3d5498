package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/exec"
	"github.com/nucleus-runtime/nucleus/core/initproto"
	"github.com/nucleus-runtime/nucleus/core/plan"
	"github.com/nucleus-runtime/nucleus/core/probe"
)

// dial is a try of a probe with a connection: a process of the sandbox makes it, under
// what holds for the workload. It executes nothing, and what it says of the answer is
// no more to be trusted than the workload is.
func (s *Sandbox) dial(ctx context.Context, p plan.Probe) error {
	if err := s.mayExec(); err != nil {
		return err
	}
	w := s.process
	// Its working directory is the root: the workload can take its own away.
	sp := &initproto.Spawn{Cwd: "/", UID: w.UID, GID: w.GID, Groups: w.Groups}
	for _, a := range p.Addrs {
		sp.Dial.Addrs = append(sp.Dial.Addrs, initproto.Addr{IP: a.Addr().AsSlice(), Port: uint32(a.Port())})
	}
	if p.HTTP != "" {
		_, request, err := probe.HTTPRequest(p.HTTP)
		if err != nil {
			return err
		}
		sp.Dial.Request, sp.Dial.Answer = request, uint32(probe.StatusSize)
	}
	pr, err := s.further(context.WithoutCancel(ctx), sp, Command{Quiet: true})
	if err != nil {
		return err
	}
	inTime := pr.endsWithin(ctx)
	if pr.err != nil {
		return pr.err
	}
	return outcome(p, pr.end, inTime)
}

// outcome judges a process that has dialled, whether it has ended by itself or was
// killed when its time was over.
func outcome(p plan.Probe, end initproto.Ended, inTime bool) error {
	x := end.Exited
	if x.Step < initproto.StepSocket {
		if err := exec.StageFailure(x, ""); err != nil {
			return err
		}
	}
	if p.HTTP == "" && x.Step == initproto.StepAnswered {
		return nil
	}
	if len(end.Answer) > 0 {
		// That is not changed by how the process ended, or would go on.
		if _, err := probe.HTTPStatus(end.Answer); !errors.Is(err, probe.ErrShortAnswer) {
			return err
		}
	}
	ws := syscall.WaitStatus(x.Status)
	e := &dialError{Addrs: p.Addrs, Step: x.Step, Errno: syscall.Errno(x.Errno), Answer: end.Answer, Slow: !inTime}
	if i := int(x.ExecIndex); x.Errno == 0 && i < len(p.Addrs) {
		e.Addrs = p.Addrs[i : i+1] // those before it have failed
	}
	if inTime && ws.Signaled() {
		e.Signal = ws.Signal()
	}
	return e
}

// dialError is a try that had no answer to judge.
type dialError struct {
	Addrs  []netip.AddrPort
	Step   initproto.Step
	Errno  syscall.Errno
	Signal syscall.Signal // that ended it, 0 for none
	Answer []byte         // what there was of it
	Slow   bool           // it was at Step when its time was over
}

func (e *dialError) Unwrap() error {
	if e.Errno == 0 {
		return nil
	}
	return e.Errno
}

func (e *dialError) Error() string {
	var where []string
	for _, a := range e.Addrs {
		where = append(where, a.String())
	}
	at := strings.Join(where, ", then ")
	what, ok := map[initproto.Step]string{
		initproto.StepSocket: "no socket for " + at, initproto.StepConnect: "connecting to " + at,
		initproto.StepSend: "sending the request to " + at, initproto.StepReceive: "waiting for the answer of " + at,
		initproto.StepAnswered: at + " closed the connection",
	}[e.Step]
	if !ok {
		what = "the probe's process ended at: " + e.Step.String()
	}
	if len(e.Answer) > 0 {
		what += fmt.Sprintf(" after %q", e.Answer)
	}
	switch {
	case e.Errno != 0:
		what += ": " + e.Errno.Error()
	case e.Signal == unix.SIGSYS:
		what += ": refused by the seccomp filter"
	case e.Signal != 0:
		what += fmt.Sprintf(": signal %d ended the probe", e.Signal)
	case e.Step == initproto.StepAnswered && len(e.Answer) == 0:
		what += " without an answer"
	}
	return what
}

// dialHint is the remedy, "" if there is none but a workload that answers.
func dialHint(p *plan.Plan, e *dialError) string {
	refused := e.Signal == unix.SIGSYS
	for _, n := range []syscall.Errno{unix.EPERM, unix.EACCES, unix.ENOSYS} {
		refused = refused || e.Errno == n
	}
	switch {
	case refused && p.Seccomp.Profile != "":
		return `the profile must allow what a probe needs, as in security, seccomp: allow = ["socket", "connect", "write"]; or probe by exec`
	case refused:
		return `something on this host refuses connections to the workload: probe by exec`
	case e.Errno == unix.EAFNOSUPPORT || e.Errno == unix.EADDRNOTAVAIL:
		return "the sandbox has no such address: this kernel may have no IPv6; write an IPv4 address"
	case e.Errno == unix.ENETUNREACH && p.Network.Backend == "none":
		return fmt.Sprintf(`network "none" has loopback alone: http = "http://127.0.0.1:%d/"`, e.Addrs[0].Port())
	}
	return ""
}
