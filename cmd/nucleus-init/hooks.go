package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/initproto"
	"github.com/nucleus-runtime/nucleus/core/initproto/channel"
)

// hookError says which hook failed.
type hookError struct {
	index int
	err   error
}

func (e *hookError) Error() string { return e.err.Error() }
func (e *hookError) Unwrap() error { return e.err }

// holdRoot waits before the new root is entered: the supervisor runs hooks of
// its own, then names those that run here.
func (in *initProcess) holdRoot(b *builder) error {
	if err := in.conn.Send(initproto.Encode(initproto.KindBuilt, nil)); err != nil {
		return err
	}
	msg, fds, err := in.receive(initproto.KindHooks)
	if err != nil {
		return err
	}
	defer channel.CloseAll(fds)
	var hs initproto.Hooks
	if err := initproto.Decode(msg, &hs); err != nil {
		return err
	}
	if len(hs.Hooks) == 0 {
		return nil
	}
	if len(fds) != len(hs.Hooks)+1 {
		return fmt.Errorf("%w: %d descriptors for %d hooks", initproto.ErrMessage, len(fds), len(hs.Hooks))
	}
	// Where the new root is has no name in this mount namespace: hooks find it as
	// their working directory.
	if err := unix.Fchdir(b.root); err != nil {
		return os.NewSyscallError("fchdir", err)
	}
	if err := in.spread(); err != nil {
		return err
	}
	for i, h := range hs.Hooks {
		if err := createHook(h, hs.State, fds[0], fds[i+1]); err != nil {
			return &hookError{i, err}
		}
	}
	return nil
}

// createHook runs a program of the host in this sandbox's namespaces. Whatever it
// has left running still sees the host's root, and is ended with it.
func createHook(h initproto.Hook, state []byte, out, program int) error {
	in, err := stateFile(state)
	if err != nil {
		return err
	}
	//nolint:forbidigo // a program of the host, which is not secured as what this sandbox runs is
	pid, err := syscall.ForkExec("/proc/self/fd/3", h.Args, &syscall.ProcAttr{
		Env: h.Env, Files: []uintptr{uintptr(in), uintptr(out), uintptr(out), uintptr(program)}, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	_ = unix.Close(in)
	if err != nil {
		return os.NewSyscallError("execve", err)
	}
	status := make(chan syscall.WaitStatus, 1)
	go func() {
		var ws syscall.WaitStatus
		for {
			if _, err := syscall.Wait4(pid, &ws, 0, nil); !errors.Is(err, unix.EINTR) {
				status <- ws
				return
			}
		}
	}()
	err = await(status, h, func() { _ = unix.Kill(-1, unix.SIGKILL) })
	_ = unix.Kill(-1, unix.SIGKILL) // ESRCH: nothing is left
	for {
		if _, werr := syscall.Wait4(-1, nil, 0, nil); werr != nil && !errors.Is(werr, unix.EINTR) {
			return err
		}
	}
}

// stateFile gives a descriptor that the state is read from.
func stateFile(state []byte) (int, error) {
	fd, err := unix.MemfdCreate("nucleus-state", unix.MFD_CLOEXEC)
	if err != nil {
		return -1, os.NewSyscallError("memfd_create", err)
	}
	if _, err := unix.Pwrite(fd, state, 0); err != nil {
		_ = unix.Close(fd)
		return -1, os.NewSyscallError("pwrite", err)
	}
	return fd, nil
}

// await waits for the end of a hook, and kills what is too slow.
func await(status <-chan syscall.WaitStatus, h initproto.Hook, kill func()) error {
	limit := time.Duration(h.Timeout) * time.Millisecond
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case ws := <-status:
		switch {
		case ws.Signaled():
			return fmt.Errorf("signal: %s", ws.Signal())
		case ws.ExitStatus() != 0:
			return fmt.Errorf("exit status %d", ws.ExitStatus())
		}
		return nil
	case <-timer.C:
		kill()
		// A process that another one traces is not reported before its tracer has
		// seen its end (ptrace(2)). This process ends now, and with it all of them.
		select {
		case <-status:
		case <-time.After(time.Second):
		}
		return fmt.Errorf("not done within its timeout of %s", limit)
	}
}

// hookWait hands the end of a hook from the goroutine that reaps to the one that
// waits for it.
type hookWait struct {
	mu     sync.Mutex
	pid    int
	status chan syscall.WaitStatus
}

func (w *hookWait) ended(pid int, ws syscall.WaitStatus) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.pid != 0 && pid == w.pid {
		w.pid = 0
		w.status <- ws
	}
}

// startHooks runs the sandbox's own hooks, with the same restrictions as the
// workload, which waits at its gate.
func (in *initProcess) startHooks(msg []byte, fds []int) error {
	var hs initproto.Hooks
	if err := initproto.Decode(msg, &hs); err != nil {
		return err
	}
	if len(fds) != 1 {
		return fmt.Errorf("%w: %d descriptors", initproto.ErrMessage, len(fds))
	}
	for i, h := range hs.Hooks {
		if err := in.startHook(h, &hs, fds[0]); err != nil {
			return &hookError{i, err}
		}
	}
	return in.conn.Send(initproto.Encode(initproto.KindHooksDone, nil))
}

func (in *initProcess) startHook(h initproto.Hook, all *initproto.Hooks, out int) error {
	stdin, err := stateFile(all.State)
	if err != nil {
		return err
	}
	defer unix.Close(stdin)
	note, err := sharedNote()
	if err != nil {
		return err
	}
	defer unmapNote(note)
	// Its gate stands open.
	var gate [2]int
	if err := unix.Pipe2(gate[:], unix.O_CLOEXEC); err != nil {
		return os.NewSyscallError("pipe2", err)
	}
	defer channel.CloseAll(gate[:])
	if _, err := unix.Write(gate[1], []byte{1}); err != nil {
		return os.NewSyscallError("write", err)
	}
	p := in.setup.Process
	p.Paths, p.Args, p.Env, p.SecretEnv, p.Gate = h.Args[:1], h.Args, h.Env, nil, 0
	if len(all.Filter) > 0 {
		p.Filter, p.FilterFlags = all.Filter, all.FilterFlags
	}
	pr, err := prepare(&p, initproto.Dial{}, gate[:], 0, note)
	if err != nil {
		return err
	}
	pr.stdio, pr.given = [3]uintptr{uintptr(stdin), uintptr(out), uintptr(out)}, true
	w := &in.hooks
	w.mu.Lock()
	pid, pidfd, errno := fork(pr)
	if errno != 0 {
		w.mu.Unlock()
		return os.NewSyscallError("clone", errno)
	}
	w.pid, w.status = pid, make(chan syscall.WaitStatus, 1)
	w.mu.Unlock()
	defer unix.Close(pidfd)
	err = await(w.status, h, func() {
		_ = unix.Kill(-pid, unix.SIGKILL) // ESRCH: it leads no group yet
		_ = unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0)
	})
	runtime.KeepAlive(pr)
	if x := initproto.DecodeNote(unsafe.Slice((*byte)(unsafe.Pointer(note)), initproto.NoteSize), 0); x.Errno != 0 {
		return syscall.Errno(x.Errno)
	}
	return err
}
