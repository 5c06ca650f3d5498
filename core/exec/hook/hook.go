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
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/plan"
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

// State is what a hook reads: the state of the sandbox as OCI has it.
func State(id, status string, pid int, bundle, name string) ([]byte, error) {
	return json.Marshal(specs.State{
		Version: specs.Version, ID: id, Status: specs.ContainerState(status), Pid: pid, Bundle: bundle,
		Annotations: map[string]string{"org.nucleus-runtime.name": name},
	})
}

// Open opens the host's program of a hook. It and every directory on the way to
// it must belong to root or to the caller, and no one else may write to them:
// whoever could would run programs as the caller.
func Open(h plan.Hook) (*os.File, error) {
	f, err := open(h.Command[0])
	if err != nil {
		var te *trustError
		e := &Error{Hook: h, Err: err, Hint: "name an executable file of this host by its absolute path"}
		if errors.As(err, &te) {
			e.Hint = "let it belong to root or to you, and take everybody else's right to write from it: chmod go-w " + te.path
		}
		return nil, e
	}
	return f, nil
}

// trustError tells that somebody else could change what a hook runs.
type trustError struct{ path, why string }

func (e *trustError) Error() string { return fmt.Sprintf("%s: %s", e.path, e.why) }

// maxLinks is the kernel's own limit of links on a path (path_resolution(7)).
const maxLinks = 40

// open resolves a path step by step, and looks at each step before the next.
func open(name string) (*os.File, error) {
	at, err := openRoot()
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(at) }()
	sofar, rest, links := "/", elements(name), 0
	for len(rest) > 0 {
		if err := trusted(at, sofar, unix.S_IFDIR); err != nil {
			return nil, err
		}
		next, err := unix.Openat(at, rest[0], unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		here := filepath.Join(sofar, rest[0])
		rest = rest[1:]
		target, err := readLink(next)
		if errors.Is(err, unix.ENOENT) { // no link (readlinkat(2), of an empty path)
			_ = unix.Close(at)
			at, sofar = next, here
			continue
		}
		if err == nil {
			err = trusted(next, here, unix.S_IFLNK)
		}
		_ = unix.Close(next)
		if err != nil {
			return nil, err
		}
		if links++; links > maxLinks {
			return nil, unix.ELOOP
		}
		rest = append(elements(target), rest...)
		if !strings.HasPrefix(target, "/") {
			continue
		}
		root, err := openRoot()
		if err != nil {
			return nil, err
		}
		_ = unix.Close(at)
		at, sofar = root, "/"
	}
	if err := trusted(at, sofar, unix.S_IFREG); err != nil {
		return nil, err
	}
	self := fmt.Sprintf("/proc/self/fd/%d", at)
	if err := unix.Faccessat(unix.AT_FDCWD, self, unix.X_OK, unix.AT_EACCESS); err != nil {
		return nil, err
	}
	// For reading, as the interpreter of a script opens it. A program that may be
	// executed only is executed through the path descriptor.
	fd, err := unix.Open(self, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.EACCES) {
		fd, err = unix.FcntlInt(uintptr(at), unix.F_DUPFD_CLOEXEC, 0)
	}
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

func openRoot() (int, error) {
	return unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
}

func elements(path string) []string {
	return slices.DeleteFunc(strings.Split(path, "/"), func(e string) bool { return e == "" })
}

func readLink(fd int) (string, error) {
	b := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fd, "", b)
	return string(b[:max(n, 0)]), err
}

// trusted checks that a file has the type that it must have, and that only root
// and the caller can change it: what a directory holds, where a link leads.
func trusted(fd int, name string, kind uint32) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	switch found := st.Mode & unix.S_IFMT; {
	case found != kind && kind == unix.S_IFREG:
		return fmt.Errorf("%s: not a regular file", name)
	case found != kind:
		return unix.ENOTDIR
	case st.Uid != 0 && st.Uid != uint32(os.Geteuid()):
		return &trustError{name, fmt.Sprintf("belongs to user %d", st.Uid)}
	case kind == unix.S_IFLNK, st.Mode&0o022 == 0:
		return nil
	case kind == unix.S_IFDIR && st.Mode&unix.S_ISVTX != 0:
		return nil // sticky: only its owner and a file's own may replace the file (inode(7))
	}
	return &trustError{name, fmt.Sprintf("others can write to it (mode %04o)", st.Mode&0o7777)}
}

// Tail keeps the end of what is written to it. The zero value is ready.
type Tail struct{ b []byte }

const tailSize = 2048

func (t *Tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	if n := len(t.b) - tailSize; n > 0 {
		t.b = append(t.b[:0], t.b[n:]...)
	}
	return len(p), nil
}

func (t *Tail) String() string { return strings.TrimSpace(string(t.b)) }

// gone is how long what a hook has left running may hold its output.
const gone = 200 * time.Millisecond

// Run runs a hook on the host, in a session of its own, and waits for it. It
// gives up at the hook's timeout or at the end of ctx, and then kills the hook
// with its process group; the hook dies with this process, too.
func Run(ctx context.Context, h plan.Hook, program *os.File, state []byte) error {
	ctx, cancel := context.WithTimeoutCause(ctx, h.Timeout, &TimeoutError{h.Timeout})
	defer cancel()
	var out Tail
	cmd := exec.CommandContext(ctx, "/proc/self/fd/3")
	cmd.Args, cmd.Env, cmd.Dir, cmd.Stdin, cmd.ExtraFiles = h.Command, Env(h), "/", bytes.NewReader(state), []*os.File{program}
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = gone
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	// The parent-death signal follows the thread (golang#27505).
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := cmd.Run()
	switch {
	case err == nil, errors.Is(err, exec.ErrWaitDelay): // done; what it left behind holds the output
		return nil
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	}
	return &Error{Hook: h, Err: err, Output: out.String()}
}
