// Package hook owns command hooks: programs that a job wants run at phases of
// its sandbox's life, with the OCI state on their standard input. It checks and
// opens a program, and runs it on the host. When hooks run is the lifecycle's to
// say, and what runs inside a sandbox is init's.
package hook

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/plan"
	"github.com/nucleus-runtime/nucleus/core/trusted"
	"github.com/nucleus-runtime/nucleus/internal/processors"
	"github.com/nucleus-runtime/nucleus/internal/tail"
)

// path is what a hook that does not say otherwise finds its programs in.
const path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Error is a hook that could not be run, or that failed.
type Error struct {
	Hook   plan.Hook
	Err    error
	Output string // the end of what it printed
	Hint   string
}

func (e *Error) Error() string {
	s := fmt.Sprintf("hook %s %q: %s", e.Hook.Phase, e.Hook.Command[0], e.Err)
	if e.Output != "" {
		s += ": " + e.Output
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }

// TimeoutError tells that a hook took longer than its timeout.
type TimeoutError struct{ After time.Duration }

func (e *TimeoutError) Error() string {
	return fmt.Sprintf("not done within its timeout of %s", e.After)
}

// Env gives the whole environment of a hook.
func Env(h plan.Hook) []string {
	if slices.ContainsFunc(h.Env, func(kv string) bool { return strings.HasPrefix(kv, "PATH=") }) {
		return h.Env
	}
	return append([]string{path}, h.Env...)
}

// NameAnnotation is the annotation of a state that has the sandbox's name.
const NameAnnotation = "org.nucleus-runtime.name"

// State is what a hook reads: the state of the sandbox as OCI has it.
func State(id, status string, pid int, bundle, name string) ([]byte, error) {
	return json.Marshal(specs.State{
		Version: specs.Version, ID: id, Status: specs.ContainerState(status), Pid: pid, Bundle: bundle,
		Annotations: map[string]string{NameAnnotation: name},
	})
}

// Open opens the host's program of a hook. Whoever could change it, or put
// something else in its place, would run programs as the caller.
func Open(h plan.Hook) (*os.File, error) {
	f, err := trusted.Executable(h.Command[0])
	if err != nil {
		e := &Error{Hook: h, Err: err, Hint: "name an executable file of this host by its absolute path"}
		var te *trusted.Error
		if errors.As(err, &te) {
			e.Hint = te.Remedy()
		}
		return nil, e
	}
	return f, nil
}

// gone is how long what a hook has left running may hold its output.
const gone = 200 * time.Millisecond

// Run runs a hook on the host, in a session of its own, and waits for it. It
// gives up at the hook's timeout or at the end of ctx, and then kills the hook
// with its process group; the hook dies with this process, too.
func Run(ctx context.Context, h plan.Hook, program *os.File, state []byte) error {
	ctx, cancel := context.WithTimeoutCause(ctx, h.Timeout, &TimeoutError{h.Timeout})
	defer cancel()
	var out tail.Tail
	cmd := exec.CommandContext(ctx, "/proc/self/fd/3")
	cmd.Args, cmd.Env, cmd.Dir, cmd.Stdin, cmd.ExtraFiles = h.Command, Env(h), "/", bytes.NewReader(state), []*os.File{program}
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = gone
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	// The parent-death signal follows the thread (golang#27505).
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	processors.Punctual()
	err := cmd.Run()
	switch {
	case err == nil, errors.Is(err, exec.ErrWaitDelay): // done; what it left behind holds the output
		return nil
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	}
	return &Error{Hook: h, Err: err, Output: out.String()}
}
