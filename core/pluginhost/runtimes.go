package pluginhost

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/runtimes"
	"github.com/nucleus-runtime/nucleus/core/trusted"
	"github.com/nucleus-runtime/nucleus/internal/procid"
	"github.com/nucleus-runtime/nucleus/sdk/errs"
	"github.com/nucleus-runtime/nucleus/sdk/manifest"
	"github.com/nucleus-runtime/nucleus/sdk/runtime"
)

// runtimeTime is how long a runtime plugin may take to say how a sandbox is run. It
// may have to look at a program of many megabytes first.
const runtimeTime = 10 * time.Second

// Runtimes asks runtime plugins how sandboxes are run. It is a runtimes.Source.
type Runtimes struct{ Host *Host }

// Prepare asks a plugin, and once more, as a new process, if it was down; and looks at
// what it says, and at the program that it names. The plugin is ended behind the
// caller's back: see Forget.
func (r *Runtimes) Prepare(ctx context.Context, sandbox string, w runtimes.Want) (*runtimes.Answer, error) {
	// Of the same sandbox there may be several starts, which are several requests.
	boot, _ := procid.Boot() // "" is a boot that nobody knows
	call := runtime.Call{RequestID: sandbox + "-" + rand.Text(), SandboxID: sandbox, InstanceID: instance(sandbox, w.Plugin), BootID: boot, Attempt: 1}
	for ; ; call.Attempt++ {
		a, err := r.attempt(ctx, call, w)
		if err == nil {
			return a, nil
		}
		wait, worth := retry(err)
		if !worth || call.Attempt == tries {
			return nil, runtimeError(w.Plugin, err)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, runtimeError(w.Plugin, err)
		}
	}
}

func (r *Runtimes) attempt(ctx context.Context, call runtime.Call, w runtimes.Want) (*runtimes.Answer, error) {
	var schema *Schema
	p, _, err := r.Host.open(ctx, w.Plugin, manifest.Runtime, func(p *Plugin, s *Schema) error {
		schema = s
		_, err := r.Host.configure(ctx, p, s, w.Config, w.Eval, manifest.Runtime, call.InstanceID)
		return err
	})
	if err != nil {
		return nil, err
	}
	defer r.Host.retire(p)
	soon, cancel := context.WithTimeout(ctx, runtimeTime)
	defer cancel()
	got, err := p.Client().Runtime().Prepare(soon, &runtime.PrepareRequest{Call: call, Spec: w.Spec, Network: w.Network, Rootless: w.Rootless, Checkpoint: w.Checkpoint})
	if err != nil {
		if e := errs.Of(err); len(e.Diagnostics) > 0 {
			if diags := schema.Diagnose(w.Config, e.Diagnostics); diags.HasErrors() {
				return nil, &ConfigError{p.Name, diags}
			}
		}
		return nil, p.failed("asking how the sandbox is run", err)
	}
	err = got.Check()
	if err == nil {
		err = json.Unmarshal(got.Spec, new(specs.Spec))
	}
	if err != nil {
		return nil, &Error{Plugin: p.Name, Err: fmt.Errorf("what it says of how the sandbox is run: %w", err)}
	}
	f, err := r.Host.runtimeProgram(p.Name, got.Program)
	if err != nil {
		return nil, err
	}
	return &runtimes.Answer{Prepared: *got, File: f}, nil
}

// runtimeError keeps the remedy.
func runtimeError(plugin string, err error) error {
	e := &runtimes.Error{Plugin: plugin, Err: err}
	var pe *Error
	if errors.As(err, &pe) {
		e.Hint = pe.Hint
	}
	return e
}

// runtimeProgram opens what a plugin names. The file, each directory and each link on
// the way to it are as for hooks: a link is followed if it is root's or the caller's,
// as /usr/local/bin/runsc is that a package manager has made.
func (h *Host) runtimeProgram(plugin string, p runtime.Program) (_ *os.File, err error) {
	fail := func(hint, format string, args ...any) error {
		return &Error{plugin, fmt.Errorf("its program "+format, args...), hint}
	}
	f, err := trusted.Executable(p.Path)
	var te *trusted.Error
	switch {
	case errors.As(err, &te):
		return nil, fail(te.Remedy(), "%s: %w", p.Path, err)
	case errors.Is(err, fs.ErrNotExist):
		return nil, fail("install it, or say where it is: nucleus plugin schema "+plugin, "%s: %w", p.Path, err)
	case err != nil:
		return nil, fail("", "%s: %w", p.Path, err)
	}
	defer func() {
		if err != nil {
			_ = f.Close()
		}
	}()
	magic := make([]byte, 4)
	switch _, err := f.ReadAt(magic, 0); {
	case errors.Is(err, unix.EBADF): // a path descriptor
		return nil, fail("let it be read: chmod a+r "+p.Path, "%s: it may be executed, but not read", p.Path)
	case string(magic) != "\x7fELF":
		// What its root holds is the program: a script has no interpreter there.
		return nil, fail("name the program itself, and no script that starts it", "%s: it is no ELF file", p.Path)
	}
	if p.SHA256 == "" && !h.o.Finder.PinnedOnly {
		return f, nil
	}
	digest, err := h.o.Finder.Digests.Of(f)
	if err != nil {
		return nil, fail("", "%s: hashing it: %w", p.Path, err)
	}
	pin := fmt.Sprintf("config { sha256 = %q } in its block of the job, or of the host configuration; nucleus plugin schema %s shows which", digest, plugin)
	switch {
	case p.SHA256 == "":
		return nil, fail(pin, "%s: the mode wants its digest, and the plugin names none", p.Path)
	case !strings.EqualFold(digest, p.SHA256):
		return nil, fail("if it was changed on purpose: "+pin, "%s: it has the SHA-256 %s, and the plugin wants %s", p.Path, digest, p.SHA256)
	}
	return f, nil
}
