package lifecycle

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/audit"
	"github.com/nucleus-runtime/nucleus/core/initproto"
	"github.com/nucleus-runtime/nucleus/core/initproto/channel"
	"github.com/nucleus-runtime/nucleus/core/plan"
	"github.com/nucleus-runtime/nucleus/core/security"
	"github.com/nucleus-runtime/nucleus/internal/plainfile"
	"github.com/nucleus-runtime/nucleus/internal/procstatus"
	"github.com/nucleus-runtime/nucleus/sdk/hooks"
)

// receive waits for one message of init during the start. Anything but the one
// that is due ends the start, with init's reason if it gave one.
func (s *Sandbox) receive(ph string, want initproto.Kind) ([]byte, []int, error) {
	msg, fds, err := s.conn.Recv()
	if err != nil {
		return nil, nil, s.broken(ph, err)
	}
	k, err := initproto.KindOf(msg)
	if err == nil && k == want {
		return msg, fds, nil
	}
	channel.CloseAll(fds)
	if err != nil {
		return nil, nil, phase(ph, err)
	}
	switch k {
	case initproto.KindFailed:
		var f initproto.Failed
		if err := initproto.Decode(msg, &f); err != nil {
			return nil, nil, phase(ph, err)
		}
		return nil, nil, s.initFailed(ph, f)
	case initproto.KindExited:
		var x initproto.Exited
		if err := initproto.Decode(msg, &x); err != nil {
			return nil, nil, phase(ph, err)
		}
		return nil, nil, phase("security", s.stageFailure(x))
	}
	return nil, nil, phase(ph, fmt.Errorf("%w: kind %d from init, want %d", initproto.ErrMessage, k, want))
}

func (s *Sandbox) command() string {
	if len(s.plan.Process.Args) == 0 {
		return ""
	}
	return s.plan.Process.Args[0]
}

// initError is what init says went wrong. It unwraps to the errno.
type initError struct {
	what  string
	errno syscall.Errno
}

func (e *initError) Error() string { return audit.Clean(e.what) }
func (e *initError) Unwrap() error {
	if e.errno == 0 {
		return nil
	}
	return e.errno
}

func (s *Sandbox) initFailed(ph string, f initproto.Failed) error {
	e := &PhaseError{Phase: ph, Err: &initError{f.What, syscall.Errno(f.Errno)}}
	if err := s.insideFailed(f.Hook, e.Err); err != nil {
		return err
	}
	if f.Op >= 0 && int(f.Op) < len(s.prep.Origins) {
		e.Phase, e.Origin = "fs", s.prep.Origins[f.Op]
	}
	if f.Rule >= 0 && int(f.Rule) < len(s.setup.Landlock.Rules) {
		e.Phase = "security" // whatever the supervisor was at
		for _, r := range s.plan.Landlock.Rules {
			if r.Origin != "" && r.Path == s.setup.Landlock.Rules[f.Rule].Path {
				e.Origin, e.Hint = r.Origin+".paths", "name a path that exists in the sandbox"
			}
		}
	}
	if syscall.Errno(f.Errno) == unix.ENOSPC {
		e.Hint = "raise resources { rootfs_size = … }, which bounds what a sandbox holds in memory"
	}
	if e.Hint == "" && s.plan.Root.Kind == plan.RootOverlay && (syscall.Errno(f.Errno) == unix.EOVERFLOW || syscall.Errno(f.Errno) == unix.EACCES) {
		e.Hint = "chown -R the rootfs to ids that the sandbox maps (nucleus plan shows them), or write: writable = \"none\""
	}
	return e
}

// broken explains the end of the control socket: what init had to say last, or
// what the kernel says of init. A send that fails finds init's reason among
// what is still to be received.
func (s *Sandbox) broken(ph string, err error) error {
	if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
		if _, _, rerr := s.receive(ph, 0); rerr != nil {
			return rerr
		}
	}
	if !errors.Is(err, io.EOF) {
		return phase(ph, err)
	}
	if s.group != nil {
		if n, oerr := s.group.OOMKills(); oerr == nil && n > 0 {
			return &PhaseError{
				Phase: "cgroups", Origin: "resources.memory", Hint: "raise resources { memory = … }",
				Err: errors.New("init was killed by the kernel for lack of memory: the limit is less than the sandbox needs to start"),
			}
		}
	}
	return phase(ph, errors.New("init ended without a word"))
}

func (s *Sandbox) awaitFS(ctx context.Context) error {
	if err := s.connect(ctx); err != nil {
		return err
	}
	if err := s.createHooks(ctx); err != nil {
		return err
	}
	msg, fds, err := s.receive("fs", initproto.KindFSDone)
	if err != nil {
		return s.fsFailed(err)
	}
	if fds, err = s.listenNotices(fds); err != nil {
		return err
	}
	if err := s.keepLayers(fds); err != nil {
		return err
	}
	s.hooksDone()
	var done initproto.FSDone
	if err := initproto.Decode(msg, &done); err != nil {
		return phase("fs", err)
	}
	s.log.Emit(audit.Filesystem, nil, map[string]any{"root": s.plan.Root.Kind, "operations": len(s.prep.Ops)})
	s.secretsPlaced()
	r := <-s.streamed
	s.streamed = nil
	if r.err != nil {
		return phase("fs", r.err)
	}
	for i, sum := range r.sums {
		if i >= len(done.Digests) || done.Digests[i] != sum.Digest {
			return phase("fs", fmt.Errorf("context: what arrived inside is not what was sent (%s)", sum.Digest))
		}
		s.log.Emit(audit.ContextVerified, nil, map[string]any{"digest": sum.Digest, "method": "copy", "files": sum.Files, "bytes": sum.Bytes, "left": sum.Left, "skipped": sum.Skipped})
	}
	return nil
}

// fsFailed ends a start whose file system init could not build.
func (s *Sandbox) fsFailed(err error) error {
	if r := s.drainStreams(); r.err != nil {
		return phase("fs", r.err) // the packing side knows the reason better
	}
	return err
}

// packing is how long a start that failed waits for what the packing side has to say. Only
// a file system that does not answer takes it longer to see that init has gone.
const packing = time.Second

// drainStreams collects the packing goroutine of a start that failed. Init is
// gone or going, so its pipe breaks; or it was the packing side that closed it, and is about
// to say why.
func (s *Sandbox) drainStreams() streamResult {
	s.abort()
	if s.streamed == nil {
		return streamResult{} // not begun, or all is known
	}
	late := time.NewTimer(packing)
	defer late.Stop()
	select {
	case r := <-s.streamed:
		s.streamed = nil
		var pe *os.PathError
		if r.err != nil && (errors.Is(r.err, unix.EPIPE) || errors.As(r.err, &pe) && errors.Is(pe, unix.EPIPE)) {
			return streamResult{}
		}
		return r
	case <-late.C:
		return streamResult{}
	}
}

func (s *Sandbox) awaitStage2(context.Context) error {
	_, fds, err := s.receive("security", initproto.KindStage2)
	if err != nil {
		return err
	}
	want := 1
	if !s.plan.Init {
		want++
	}
	if s.plan.Process.Terminal {
		want++
	}
	if len(fds) != want {
		channel.CloseAll(fds)
		return phase("security", fmt.Errorf("%w: %d descriptors", initproto.ErrMessage, len(fds)))
	}
	s.workFD = fds[0]
	if !s.plan.Init {
		s.note = os.NewFile(uintptr(fds[1]), "note")
	}
	if s.plan.Process.Terminal {
		if err := s.stdio.Terminal(os.NewFile(uintptr(fds[want-1]), "terminal")); err != nil {
			return phase("exec", err)
		}
	}
	if s.workPid, err = pidOf(s.workFD); err != nil {
		return s.reason("security", err)
	}
	return nil
}

// lastWords is how long init may take to say why a process could not be looked
// at, if that process is not known to be gone. If it is, the reason is certain to
// come, and only a machine that stands still makes us wait as long as lastWordsGone.
const (
	lastWords     = 200 * time.Millisecond
	lastWordsGone = 10 * time.Second
)

// reason explains why a process of the sandbox could not be looked at. It may be
// gone, since it failed at one of its steps before we came to it: init tells
// which, or the note of a stage 2 that is init itself. If neither does, err is all
// that is known.
func (s *Sandbox) reason(ph string, err error) error {
	patience := lastWords
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) {
		patience = lastWordsGone
	}
	if !s.plan.Init {
		if s.note == nil {
			if aerr := s.awaitStage2(context.Background()); aerr != nil {
				return aerr
			}
		}
		if !ready(s.init.PidFD, patience) {
			return phase(ph, err)
		}
		if m := s.noted(); m.err == nil {
			if ferr := s.stageFailure(m.exited); ferr != nil {
				return phase("security", ferr)
			}
		}
		return phase(ph, err)
	}
	for range 2 { // that stage 2 was made may come before how it ended
		if !ready(s.conn.FD(), patience) {
			break
		}
		_, passed, rerr := s.receive(ph, initproto.KindStage2)
		channel.CloseAll(passed)
		if rerr != nil {
			return rerr
		}
	}
	return phase(ph, err)
}

// ready waits until a descriptor can be read, or its other end is gone.
func ready(fd int, within time.Duration) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for end := time.Now().Add(within); ; {
		n, err := unix.Poll(fds, int(max(0, time.Until(end)).Milliseconds()))
		if !errors.Is(err, unix.EINTR) {
			return err == nil && n > 0
		}
	}
}

// pidOf tells the pid, in our PID namespace, that a pidfd stands for.
func pidOf(fd int) (int, error) {
	b, err := plainfile.Read("/proc/self/fdinfo/" + strconv.Itoa(fd))
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(procstatus.Text(b).Get("Pid"))
	if err != nil || pid <= 0 {
		return 0, fmt.Errorf("pidfd of stage 2: %w", unix.ESRCH)
	}
	return pid, nil
}

// audit reads the sandbox's mounts back from the kernel.
func (s *Sandbox) audit(ctx context.Context) error {
	mounts, err := plainfile.Read(fmt.Sprintf("/proc/%d/mountinfo", s.init.Pid))
	if err != nil {
		return s.reason("fs", err)
	}
	bad, err := s.prep.Audit(bytes.NewReader(mounts))
	if err == nil && len(bad) > 0 {
		err = &security.PostureError{Differences: bad}
		if !ready(s.init.PidFD, 0) {
			return phase("fs", err)
		}
	}
	if err != nil {
		return s.reason("fs", err)
	}
	s.log.Emit(audit.MountAudit, nil, nil)
	if s.plan.Runtime != nil {
		if err := s.findCommand(s.command(), s.plan.Process.Cwd, s.plan.ExecPaths); err != nil {
			return phase("exec", err)
		}
	}
	if s.plan.Context == nil || s.plan.Context.Method != "bind" || !s.plan.Context.Verify {
		return nil
	}
	fd, err := s.openRoot(unix.O_RDONLY)
	if err != nil {
		return s.reason("fs", err)
	}
	root := os.NewFile(uintptr(fd), "the sandbox's root")
	defer root.Close()
	if err := s.prep.VerifyBind(ctx, root); err != nil {
		return phase("fs", err)
	}
	s.log.Emit(audit.ContextVerified, nil, map[string]any{"method": "bind"})
	return nil
}

// verifyPosture reads back what holds for the process that is about to become
// the workload. Any difference ends the start.
func (s *Sandbox) verifyPosture(context.Context) error {
	err := security.ReadPosture(s.workPid, security.Expected{Own: s.own, Plan: s.plan, Process: s.process, InitPid: s.init.Pid, Cgroup: s.Cgroup()})
	if err == nil && s.plan.Init {
		err = security.ReadInitPosture(s.init.Pid, s.own, s.setup)
	}
	if err == nil {
		err = s.follow(s.workFD, len(s.process.Listen))
	}
	var known *PhaseError
	if errors.As(err, &known) {
		return err
	}
	var pe *security.PostureError
	if errors.As(err, &pe) {
		return phase("security", err)
	}
	if err != nil {
		return s.reason("security", err)
	}
	s.log.Emit(audit.Security, nil, map[string]any{"landlock_abi": s.plan.Landlock.ABI, "seccomp": s.plan.Seccomp.Source, "seccomp_mode": s.plan.Seccomp.Mode, "capabilities": s.plan.Process.Capabilities.Bounding})
	s.log.Emit(audit.Posture, nil, map[string]any{"pid": s.workPid})
	s.tell(hooks.PostSecurity, nil)
	return nil
}
