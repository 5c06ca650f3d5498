package seccomp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/security/seccomp/internal/bpf"
)

const (
	// helperTimeout is some hundred times what the largest profile in use takes.
	helperTimeout = 10 * time.Second
	maxHelperText = 4 << 10
	maxFilterSize = bpf.MaxInstructions * bpf.InstructionSize
)

// Compiler compiles requests that the embedded filters do not answer. Its zero value answers those only.
type Compiler struct {
	// Helper is the path of nucleus-seccomp.
	Helper string
	// CacheDir holds compiled filters by digest; it is made 0700 if missing. Empty: no cache.
	CacheDir string
}

// HelperError is a failure of the helper, with what to do about it.
type HelperError struct {
	Helper string
	Err    error
	Remedy string
}

func (e *HelperError) Error() string {
	return fmt.Sprintf("compiling seccomp filter with helper %q: %v", e.Helper, e.Err)
}

func (e *HelperError) Unwrap() error { return e.Err }

// Compile returns the filter for the workload of a request.
func (c Compiler) Compile(ctx context.Context, r Request) (Filter, error) {
	if r.asksNothing() {
		return Default(), nil
	}
	resolved, err := c.resolve(r)
	if err != nil {
		return Filter{}, err
	}
	filter, err := c.compile(ctx, resolved.Policy)
	if err != nil {
		return Filter{}, err
	}
	filter.Name, filter.Flags = resolved.Name, resolved.Flags
	filter.Added, filter.Ignored = resolved.Added, resolved.Ignored
	return filter, nil
}

// CompileInit returns the filter for PID 1 beside the workload of a request (see [InitPolicy]).
func (c Compiler) CompileInit(ctx context.Context, r Request) (Filter, error) {
	if r.asksNothing() {
		return InitFilter(), nil
	}
	resolved, err := c.resolve(r)
	if err != nil {
		return Filter{}, err
	}
	filter, err := c.compile(ctx, InitPolicy(resolved.Policy))
	filter.Name = "init"
	return filter, err
}

// Policy returns what the filter for the workload of a request is compiled from.
func (c Compiler) Policy(r Request) (Policy, error) {
	resolved, err := c.resolve(r)
	return resolved.Policy, err
}

func (c Compiler) resolve(r Request) (Resolved, error) {
	if r.Profile != nil && r.Kernel == (Kernel{}) {
		kernel, err := runningKernel()
		if err != nil {
			return Resolved{}, err
		}
		r.Kernel = kernel
	}
	return r.Resolve()
}

func runningKernel() (Kernel, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return Kernel{}, fmt.Errorf("reading the kernel's version: %w", err)
	}
	return ParseKernel(unix.ByteSliceToString(u.Release[:]))
}

func (c Compiler) compile(ctx context.Context, p Policy) (Filter, error) {
	if filter, ok := embedded(p); ok {
		return filter, nil
	}
	var store *cache
	if c.CacheDir != "" {
		var err error
		if store, err = makeCache(c.CacheDir); err != nil {
			return Filter{}, err
		}
	}
	if store != nil {
		defer store.close()
		if raw, ok := store.load(p.Digest()); ok {
			return newFilter("", raw), nil
		}
	}
	raw, err := c.runHelper(ctx, p)
	if err != nil {
		return Filter{}, err
	}
	if err := Verify(p, raw); err != nil {
		return Filter{}, &HelperError{Helper: c.Helper, Err: err, Remedy: "install the nucleus-seccomp of this release"}
	}
	if store != nil {
		// A full or read-only disk costs the next start a compilation, and is no reason to fail this one.
		_ = store.save(p.Digest(), raw)
	}
	return newFilter("", raw), nil
}

// runHelper hands the policy to the helper. Environment and working directory are fixed: what the caller was started
// with must not reach the loader of a process whose output becomes policy.
func (c Compiler) runHelper(ctx context.Context, p Policy) ([]byte, error) {
	fail := func(err error, remedy string) ([]byte, error) {
		return nil, &HelperError{Helper: c.Helper, Err: err, Remedy: remedy}
	}
	const install = "install nucleus-seccomp beside nucleus (make install), or drop the seccomp settings to use the built-in filter"
	if c.Helper == "" {
		return fail(errors.New("no helper is configured, and only the default policy is built in"), install)
	}
	input, err := json.Marshal(p)
	if err != nil {
		return fail(err, "")
	}
	ctx, cancel := context.WithTimeout(ctx, helperTimeout)
	defer cancel()
	out, diag := limitedBuffer{limit: maxFilterSize}, limitedBuffer{limit: maxHelperText}
	cmd := exec.CommandContext(ctx, c.Helper)
	cmd.Dir, cmd.Env = "/", []string{}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(input), &out, &diag
	cmd.WaitDelay = time.Second
	err = cmd.Run()
	text := printable(diag.kept.String())
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fail(err, install)
	case ctx.Err() != nil:
		return fail(fmt.Errorf("no answer: %w", context.Cause(ctx)), "simplify rules for one call that overlap in their arguments; libseccomp may not end on some of them")
	case out.overrun:
		return fail(fmt.Errorf("answer is longer than the %d bytes of the largest filter", maxFilterSize), "split the profile into fewer rules")
	case err != nil && strings.Contains(text, "libseccomp.so"):
		return fail(fmt.Errorf("%w: %s", err, text), "install libseccomp (Debian: apt-get install libseccomp2)")
	case err != nil && text != "":
		return fail(fmt.Errorf("%w: %s", err, text), "")
	case err != nil:
		return fail(err, install)
	}
	return out.kept.Bytes(), nil
}

// limitedBuffer keeps no more than limit bytes and swallows the rest, so that the writer ends by itself. The buffer is
// not embedded: its ReadFrom would be preferred to Write, and knows no limit.
type limitedBuffer struct {
	kept    bytes.Buffer
	limit   int
	overrun bool
}

func (b *limitedBuffer) Write(p []byte) (int, error) {
	keep := min(len(p), b.limit-b.kept.Len())
	b.overrun = b.overrun || keep < len(p)
	b.kept.Write(p[:keep])
	return len(p), nil
}

// printable makes one line of text from outside.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.TrimSpace(s))
}

// ServeHelper is the helper's side: it reads a policy, has it compiled, and returns the filter.
func ServeHelper(input []byte, compile func(Policy) ([]byte, error)) ([]byte, error) {
	dec := json.NewDecoder(bytes.NewReader(input))
	dec.DisallowUnknownFields()
	var p Policy
	if err := dec.Decode(&p); err != nil {
		return nil, fmt.Errorf("reading policy: %w", err)
	}
	if p.Arch != runtime.GOARCH {
		return nil, fmt.Errorf("policy is for %q, and this helper for %q", p.Arch, runtime.GOARCH)
	}
	return compile(p)
}
