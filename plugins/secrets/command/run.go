package command

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
	"unicode"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/plugins/secrets/fault"
	"github.com/nucleus-runtime/nucleus/plugins/secrets/internal/batch"
	"github.com/nucleus-runtime/nucleus/plugins/secrets/internal/wipe"
)

const (
	outputLimit = 1 << 20
	tailKept    = 64 << 10
	tailShown   = 2 << 10
)

// gone is how long what a command has left running may hold its output.
const gone = 200 * time.Millisecond

// trusted walks up from a program: who may write to a directory may replace what
// is in it.
func trusted(path string) error {
	for at := path; ; at = filepath.Dir(at) {
		var st unix.Stat_t
		if err := unix.Lstat(at, &st); err != nil {
			return fault.New(fault.FailedPrecondition, "let the provider's user see it", "stat %q: %w", at, err)
		}
		sticky := st.Mode&unix.S_IFMT == unix.S_IFDIR && st.Mode&unix.S_ISVTX != 0
		switch {
		case at == path && st.Mode&unix.S_IFMT != unix.S_IFREG:
			return fault.New(fault.FailedPrecondition, "name a program", "%q is not a regular file", path)
		case st.Uid != 0 && int(st.Uid) != os.Geteuid():
			return fault.New(fault.PermissionDenied, "let it belong to root", "%q belongs to user %d, who could change what is run", at, st.Uid)
		case st.Mode&0o022 != 0 && !sticky:
			return fault.New(fault.PermissionDenied, "chmod go-w "+at, "%q has mode %04o: others could change what is run", at, st.Mode&0o7777)
		case at == "/":
			return nil
		}
	}
}

// output keeps what it reads, up to a limit. It reads from the pipe into its own
// memory: through io.Writer each byte would pass a buffer that nobody overwrites.
type output struct {
	b   []byte
	err error
	end func() // of the command, when it says too much
}

func (o *output) ReadFrom(r io.Reader) (int64, error) {
	o.b, o.err = wipe.Read(r, outputLimit)
	if errors.Is(o.err, wipe.ErrTooLong) {
		o.end()
	}
	return int64(len(o.b)), o.err
}

func (o *output) Write([]byte) (int, error) { return 0, errors.ErrUnsupported }

// tail keeps the end of what is written to it.
type tail struct{ b []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	if n := len(t.b) - tailKept; n > 0 {
		t.b = append(t.b[:0], t.b[n:]...)
	}
	return len(p), nil
}

// without gives the end of the text without what the command printed as its secret:
// all of it, its lines, its words.
func (t *tail) without(value []byte) string {
	text := t.b
	scrub := func(part []byte, shortest int) {
		if part = bytes.TrimSpace(part); len(part) >= shortest {
			text = bytes.ReplaceAll(text, part, []byte("***"))
		}
	}
	scrub(value, 1)
	for line := range bytes.Lines(value) {
		scrub(line, 2)
	}
	for word := range bytes.FieldsSeq(value) {
		scrub(word, 4)
	}
	if n := len(text) - tailShown; n > 0 {
		text = text[n:]
	}
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if unicode.IsControl(r) && r != '\n' {
			return -1
		}
		return r
	}, strings.ToValidUTF8(string(text), "")))
}

var errTimeout = errors.New("timeout")

// run runs the command in a session of its own and gives its output. At its timeout,
// or at the end of ctx, it kills the command's process group; the command dies with
// this process, too.
func (b bound) run(ctx context.Context) ([]byte, error) {
	program, err := b.program()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, b.timeout, errTimeout)
	defer cancel()
	out, said := output{end: cancel}, tail{}
	//nolint:forbidigo // it is what this provider is for; environment, descriptors and death are thought of below
	cmd := exec.CommandContext(ctx, program)
	cmd.Args, cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = b.argv(), b.environment(), "/", &out, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = gone
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	// What this process inherited without close-on-exec, its lifeline for one, is not
	// the command's. Before Linux 5.11 there is no such call, and the SDK's care alone.
	_ = unix.CloseRange(3, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC)
	// The parent-death signal follows the thread (golang#27505).
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err = cmd.Run()
	if err == nil {
		return b.trimmed(out.b), nil
	}
	defer func() { wipe.Bytes(out.b, said.b) }()
	shown := ""
	if out.err == nil { // else nobody knows what to leave out
		shown = said.without(out.b)
	}
	return nil, b.failed(ctx, err, out, shown)
}

func (b bound) trimmed(v []byte) []byte {
	if b.trim {
		return batch.Trim(v)
	}
	return v
}

func (b bound) failed(ctx context.Context, err error, out output, said string) error {
	if said != "" {
		said = ": " + said
	}
	var exit *exec.ExitError
	switch {
	case errors.Is(out.err, wipe.ErrTooLong):
		return fault.New(fault.FailedPrecondition, "a secret is not data: mount a volume", "command %q: it prints more than 1 MiB", b.Name)
	case errors.Is(context.Cause(ctx), errTimeout):
		return fault.New(fault.Unavailable, "raise timeout in the host configuration, or see what it waits for",
			"command %q: not done within %s%s", b.Name, b.timeout, said)
	case ctx.Err() != nil:
		return fault.New(fault.DeadlineExceeded, "raise the timeout of the plugin's calls", "command %q: %w", b.Name, context.Cause(ctx))
	case errors.Is(err, exec.ErrWaitDelay):
		return fault.New(fault.FailedPrecondition, "let it wait for its children, or close their output",
			"command %q: it left a process behind that still has its output: the value may not be whole", b.Name)
	case errors.As(err, &exit):
		return fault.New(fault.FailedPrecondition, "run it by hand as the provider's user", "command %q: %s%s", b.Name, exit.ProcessState, said)
	}
	return fault.New(fault.FailedPrecondition, "see whether the provider's user may execute it", "command %q: %w", b.Name, fmt.Errorf("start: %w", err))
}
