package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/cmd/nucleus/internal/signals"
	"github.com/nucleus-runtime/nucleus/core"
	"github.com/nucleus-runtime/nucleus/core/audit"
	"github.com/nucleus-runtime/nucleus/core/supervisor"
	"github.com/nucleus-runtime/nucleus/internal/failpoint"
	"github.com/nucleus-runtime/nucleus/internal/processors"
)

// A sandbox that is not in the foreground has a process of its own, the same program
// with the same arguments and one flag more: the descriptor on which it tells whoever
// called that the sandbox is ready. Until then it uses the caller's standard error.

const supervisorFlag = "supervisor-fd"

// readyMessage is what it tells.
type readyMessage struct {
	ID      string `json:"id"`
	Started bool   `json:"started,omitempty"` // it runs, and another message comes when it is ready
	Ended   bool   `json:"ended,omitempty"`   // before its readiness probe has passed
	Code    int    `json:"code,omitempty"`    // with which it has ended then
}

// supervises tells whether this is such a process.
func (a *app) supervises() bool { return a.supervisorFD != 0 }

// readyPipe takes over the descriptor, which may be somebody's mistake.
func (a *app) readyPipe() error {
	var st unix.Stat_t
	if err := unix.Fstat(a.supervisorFD, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO || a.supervisorFD < 3 {
		return &usageError{err: fmt.Errorf("-%s %d: not a pipe that nucleus has made", supervisorFlag, a.supervisorFD), hint: "nucleus run -detach -config job.hcl"}
	}
	unix.CloseOnExec(a.supervisorFD)
	// Executed through /proc/self/exe, it would be called exe in ps.
	name := []byte("nucleus\x00")
	if err := unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&name[0])), 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl PR_SET_NAME", err)
	}
	a.ready = os.NewFile(uintptr(a.supervisorFD), "ready")
	a.inherited = append(a.inherited, a.ready)
	return nil
}

// takeStackLock takes over the descriptor that nucleus up has passed.
func (a *app) takeStackLock(fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || fd < 3 {
		return &usageError{err: fmt.Errorf("-%s %d: not a lock that nucleus has made", stackLockFlag, fd), hint: "nucleus up -config stack.hcl"}
	}
	unix.CloseOnExec(fd)
	a.stackLock = os.NewFile(uintptr(fd), "stack lock")
	a.inherited = append(a.inherited, a.stackLock)
	return nil
}

// leave starts the process of its own, and waits until it says that the sandbox is
// ready, or ends.
func (a *app) leave(f *runFlags) error {
	var in *os.File
	if f.config == "-" {
		in = a.stdin
	}
	caught, release, err := signals.Catch(unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT)
	if err != nil {
		return fmt.Errorf("catching signals: %w", err)
	}
	defer release()
	events, err := callersDescriptor(f)
	if err != nil {
		return err
	}
	p, r, err := a.startSupervisor(f.parent, os.Args, in, a.stderr, events, nil)
	if err != nil {
		return err
	}
	defer r.Close()
	failpoint.Hit("supervisor started")
	told := make(chan []byte, 1)
	go func() {
		line, _ := bufio.NewReader(io.LimitReader(r, 4096)).ReadBytes('\n') // without a line the process has failed, and said why
		told <- line
	}()
	var ending unix.Signal
	for {
		select {
		case n := <-caught:
			ending = n
			_ = p.Signal(n) // it is gone: that is what is wanted
			// The workload may run already, and take any other signal for something else.
			_ = p.Signal(unix.SIGTERM)
		case line := <-told:
			var m readyMessage
			if json.Unmarshal(line, &m) == nil && m.ID != "" {
				_ = p.Release()
				if ending != 0 {
					return exitError(128 + int(ending))
				}
				if m.Ended {
					return neverReady(m, f.keep)
				}
				_, err := fmt.Fprintln(a.out, m.ID)
				return err
			}
			st, err := p.Wait()
			if err != nil {
				return fmt.Errorf("waiting for the supervisor: %w", err)
			}
			if ending != 0 {
				return exitError(128 + int(ending))
			}
			code := st.ExitCode()
			if code <= 0 {
				return fmt.Errorf("the supervisor has ended before the sandbox was ready: %s", st)
			}
			return exitError(code)
		}
	}
}

// neverReady tells of a workload that has ended by itself before it was ready.
func neverReady(m readyMessage, kept bool) error {
	hint := "nucleus run -detach -keep, and nucleus logs tells what it wrote; or leave out -detach"
	if kept {
		hint = "nucleus logs " + m.ID
	}
	return &hintedError{err: fmt.Errorf("the workload has ended with exit code %d before it was ready", m.Code), hint: hint}
}

// startSupervisor starts this program once more, in a session of its own and, where there
// is a place for one (cgroupParent as in -cgroup-parent), a control group apart from ours,
// and gives the pipe on which it tells that its sandbox is ready. Its standard input is /dev/null if in
// is nil, and so is its output. What events is, if anything, keeps its number. lock is that
// of the stack, nil for none.
func (a *app) startSupervisor(cgroupParent string, args []string, in, stderr, events, lock *os.File) (p *os.Process, told *os.File, err error) {
	told, w, err := os.Pipe()
	if err != nil {
		return nil, nil, os.NewSyscallError("pipe2", err)
	}
	defer w.Close()
	defer func() {
		if err != nil {
			_ = told.Close()
		}
	}()
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		return nil, nil, err
	}
	defer null.Close()
	if in == nil {
		in = null
	}
	fd, files := 3, []*os.File{in, null, stderr, w}
	if events != nil {
		at := int(events.Fd())
		files = append(files, make([]*os.File, max(0, at+1-len(files)))...)
		if files[at] = events; at == fd {
			files = append(files, w)
			fd++
		}
	}
	args = slices.Insert(slices.Clone(args), 1, "--"+supervisorFlag+"="+strconv.Itoa(fd))
	if lock != nil {
		args = append(args, "--"+stackLockFlag+"="+strconv.Itoa(len(files)))
		files = append(files, lock)
	}
	host, err := a.hostConfiguration()
	if err != nil {
		return nil, nil, err
	}
	err = supervisor.Apart(cmp.Or(cgroupParent, host.CgroupParent), a.sandboxes, func(group *os.File) error {
		sys := &syscall.SysProcAttr{Setsid: true}
		if group != nil {
			sys.UseCgroupFD, sys.CgroupFD = true, int(group.Fd())
		}
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		processors.Punctual()
		//nolint:forbidigo // this program once more: its environment and arguments are what it would have itself
		p, err = os.StartProcess("/proc/self/exe", args, &os.ProcAttr{Files: files, Env: os.Environ(), Sys: sys})
		return err
	})
	if err != nil {
		return nil, nil, fmt.Errorf("starting the supervisor: %w", err)
	}
	return p, told, nil
}

// callersDescriptor is the one that the caller named on the command line, nil for none.
func callersDescriptor(f *runFlags) (*os.File, error) {
	if !strings.HasPrefix(f.events, "fd:") {
		return nil, nil
	}
	x, err := audit.OpenSink(f.events)
	if err == nil && x.Fd() < 3 {
		err = fmt.Errorf("events to %q: a detached sandbox lets go of its caller's standard streams", f.events)
	}
	if err != nil {
		return nil, &hintedError{err: err, hint: "correct -events: a file in a directory that exists, or fd:N for another open descriptor"}
	}
	return x, nil
}

// tellReady says that the sandbox is ready, and lets go of the caller's descriptors. If
// nobody listens any more, the lock of the stack stays held: the sandbox has to go first.
func (a *app) tellReady(m readyMessage) error {
	defer a.ready.Close()
	if err := a.tell(m); err != nil {
		return fmt.Errorf("nobody waits for the sandbox any more: %w", err)
	}
	if a.stackLock != nil {
		_ = a.stackLock.Close() // nothing was written to it
	}
	failpoint.Hit("ready told")
	// From here on this process is there for one sandbox, perhaps beside hundreds of its
	// kind: Go would let 4 MiB of garbage gather in each. With less than half of that it
	// would collect during the start already, which costs more than it saves.
	debug.SetGCPercent(50)
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	for fd := range 3 {
		if err := unix.Dup3(int(null.Fd()), fd, 0); err != nil {
			return os.NewSyscallError("dup3", err)
		}
	}
	//nolint:forbidigo // nothing relative is opened from here on, and the caller's directory can be unmounted
	return os.Chdir("/")
}

func (a *app) tell(m readyMessage) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	_, err = a.ready.Write(append(b, '\n'))
	return err
}

// awaitStart tells that a sandbox was created, and waits until somebody wants it to be
// started, or not any more.
func (a *app) awaitStart(ctx context.Context, s *core.Sandbox) error {
	if err := a.tellReady(readyMessage{ID: s.ID()}); err != nil {
		return err
	}
	select {
	case <-s.StartAsked():
		return nil
	case <-s.Abandoned():
		return errors.New("removed before it was started")
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// awaitRunning tells that the workload runs, and is ready. One that has ended by then has told why,
// or was that quick: with a probe to pass that is an end too early. early has both told, each when
// it is so.
func (a *app) awaitRunning(s *core.Sandbox, probed, early bool) {
	m := readyMessage{ID: s.ID()}
	if early {
		select {
		case <-s.Running():
			_ = a.tell(readyMessage{ID: s.ID(), Started: true}) // nobody waits any more: that is found out below
		case <-s.Ended():
		}
	}
	look := time.NewTicker(200 * time.Millisecond)
	defer look.Stop()
	for waits := true; waits; {
		select {
		case <-s.Ready():
			waits = false
		case <-s.Ended():
			res, err := s.Wait()
			if err != nil {
				return // the caller hears of it by our exit code
			}
			select {
			case <-s.Ready():
			default:
				m.Ended, m.Code = probed, res.ExitCode
			}
			waits = false
		case <-look.C:
			if abandoned(a.ready) {
				s.Kill()
				return
			}
		}
	}
	if err := a.tellReady(m); err != nil {
		s.Kill()
	}
}

// abandoned tells whether nobody reads what is written to a pipe (poll(2), POLLERR).
func abandoned(w *os.File) bool {
	p := []unix.PollFd{{Fd: int32(w.Fd())}}
	n, err := unix.Poll(p, 0)
	return err == nil && n == 1 && p[0].Revents&unix.POLLERR != 0
}
