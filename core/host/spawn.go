package host

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

const selfExe = "/proc/self/exe"

// maxReport bounds what is read from a probe child.
const maxReport = 64 << 10

// startError is a child that could not be started, with the system's reason:
// for a child in new namespaces, mostly the answer itself.
type startError struct{ err error }

func (e *startError) Error() string { return "starting the probe: " + e.err.Error() }
func (e *startError) Unwrap() error { return e.err }

// killedError is a child that a signal ended.
type killedError struct{ signal syscall.Signal }

func (e *killedError) Error() string { return fmt.Sprintf("the probe was killed by %v", e.signal) }

// ask runs one probe in a child and returns its answer. The child is killed
// when ctx ends, and dies with the thread that started it.
func ask(ctx context.Context, name, arg string, attr *syscall.SysProcAttr) (answer, error) {
	// The parent-death signal follows the thread that forked (golang#27505).
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	report, reportW, err := os.Pipe()
	if err != nil {
		return answer{}, fmt.Errorf("making a pipe: %w", err)
	}
	defer report.Close()
	noise, noiseW, err := os.Pipe()
	if err != nil {
		reportW.Close()
		return answer{}, fmt.Errorf("making a pipe: %w", err)
	}
	defer noise.Close()

	attr.Pdeathsig = syscall.SIGKILL
	// Not /dev/null for the standard descriptors: it may be missing here. The
	// Go runtime aborts if it has to open it and cannot.
	proc, err := os.StartProcess(selfExe, []string{childName, name, arg}, &os.ProcAttr{
		Env:   []string{"GOTRACEBACK=single"},
		Files: []*os.File{noiseW, noiseW, noiseW, reportW},
		Sys:   attr,
	})
	reportW.Close()
	noiseW.Close()
	if err != nil {
		return answer{}, &startError{startCause(err)}
	}
	// os.Process signals through a pidfd where the kernel has them, and else
	// the pid cannot be reused before Wait below.
	stop := context.AfterFunc(ctx, func() { _ = proc.Kill() })
	defer stop()

	text := make(chan []byte, 1)
	go func() {
		b, _ := io.ReadAll(io.LimitReader(noise, maxReport))
		text <- b
	}()
	data, readErr := io.ReadAll(io.LimitReader(report, maxReport))
	if readErr != nil {
		_ = proc.Kill()
	}
	state, err := proc.Wait()
	stderr := <-text
	switch {
	case ctx.Err() != nil:
		return answer{}, fmt.Errorf("the probe did not answer in time: %w", ctx.Err())
	case err != nil:
		return answer{}, fmt.Errorf("waiting for the probe: %w", err)
	case readErr != nil:
		return answer{}, fmt.Errorf("reading the probe's answer: %w", readErr)
	}
	if ws, ok := state.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return answer{}, &killedError{ws.Signal()}
	}
	var a answer
	if err := json.Unmarshal(data, &a); err != nil || (!a.Ran && a.Err == "") {
		first, _, _ := bytes.Cut(bytes.TrimSpace(stderr), []byte{'\n'})
		return answer{}, fmt.Errorf("the probe gave no answer (%v): %q", state, first)
	}
	return a, nil
}

// startCause strips os.PathError: its path would be an implementation detail.
func startCause(err error) error {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}

// userNSAttr starts a child as root of a new user namespace with a single id,
// which is what every user may do where user namespaces are allowed at all.
func userNSAttr(flags uintptr) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | flags,
		Credential:  &syscall.Credential{Uid: 0, Gid: 0, NoSetGroups: true},
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
	}
}

// holder is a child that keeps a user namespace alive.
type holder struct {
	proc *os.Process
	stop *os.File
}

func hold(attr *syscall.SysProcAttr) (*holder, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("making a pipe: %w", err)
	}
	defer r.Close()
	attr.Pdeathsig = syscall.SIGKILL
	proc, err := os.StartProcess(selfExe, []string{childName, holdProbe}, &os.ProcAttr{
		Files: []*os.File{r, r, r}, Sys: attr,
	})
	if err != nil {
		w.Close()
		return nil, &startError{startCause(err)}
	}
	return &holder{proc, w}, nil
}

// release ends the child. It must be called on the thread that called hold, or
// at least before that thread ends.
func (h *holder) release() {
	h.stop.Close()
	_ = h.proc.Kill()
	_, _ = h.proc.Wait()
}
