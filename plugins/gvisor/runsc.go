package gvisor

import (
	"bytes"
	"context"
	"debug/buildinfo"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/nucleus-runtime/nucleus/sdk/errs"
)

// oldest is the day of the oldest release that has all flags of globals: it is the
// oldest that they were compared with.
const oldest = "20240916"

// groupsSince is the day of the oldest one that is known to have kill --pgid
// (gvisor#12905, of April 2026).
const groupsSince = "20260905"

// versionTime is for a program that prints one line.
const versionTime = 5 * time.Second

const remedy = `https://gvisor.dev/docs/user_guide/install/ has releases; a copy in /usr/local/bin is found, and any other with runsc = "/path/to/runsc"`

// places are where runsc is looked for, the first one counts.
type places []string

func wellKnown() places {
	p := places{"/usr/local/libexec/nucleus/runsc", "/usr/local/bin/runsc", "/usr/bin/runsc"}
	// In a checkout the one that it builds for its tests is the one that is meant.
	if self, err := os.Executable(); err == nil {
		p = append(places{filepath.Join(filepath.Dir(self), "..", "tools", "runsc")}, p...)
	}
	return p
}

// runsc is what is known of the program.
type runsc struct {
	path, version string
	dynamic       bool
	groups        bool // it can signal a process group
	saves         bool // a sandbox that is paused stays so when it is saved
}

// find looks for the program, and into it. "" is for one of the places.
func (p places) find(ctx context.Context, path string) (*runsc, error) {
	if path != "" {
		r, err := inspect(ctx, path)
		if errs.CodeOf(err) == errs.Precondition {
			return nil, errs.ConfigErrorf(errs.Path("runsc"), "%v", err)
		}
		return r, err
	}
	hidden := ""
	for _, at := range p {
		switch _, err := os.Stat(at); {
		case errors.Is(err, fs.ErrNotExist):
		case errors.Is(err, fs.ErrPermission):
			hidden += fmt.Sprintf("; user %d, as whom this plugin runs, cannot reach %s", os.Geteuid(), at)
		default:
			return inspect(ctx, at)
		}
	}
	return nil, errs.Preconditionf("there is no runsc at %s%s; %s", strings.Join(p, ", "), hidden, remedy)
}

func inspect(ctx context.Context, name string) (*runsc, error) {
	// The core wants every directory above to be trusted: those that count, not those
	// of a link.
	path, err := filepath.EvalSymlinks(name)
	if err != nil {
		return nil, errs.Preconditionf("%s cannot be had: %w; %s", name, err, remedy)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, errs.Preconditionf("runsc: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	switch {
	case err != nil:
		return nil, errs.Preconditionf("runsc: %w", err)
	case !st.Mode().IsRegular():
		return nil, errs.Preconditionf("%s is no regular file", path)
	case st.Mode()&0o111 == 0:
		return nil, errs.Preconditionf("%s is not executable: chmod 755 %[1]s", path)
	case st.Mode()&0o022 != 0:
		return nil, errs.Preconditionf("%s may be written by others than its owner: chmod go-w %[1]s", path)
	}
	r := &runsc{path: path}
	if r.dynamic, err = dynamic(f); err != nil {
		return nil, errs.Preconditionf("%s is no program of this system: %w", path, err)
	}
	day, err := r.identify(ctx, f)
	switch {
	case err != nil:
		return nil, err
	case day < oldest:
		return nil, errs.Preconditionf("%s is %s, and one of %s or later is needed; %s", path, r.version, oldest, remedy)
	}
	r.groups, r.saves = day >= groupsSince, day >= savesSince
	return r, nil
}

// dynamic tells whether a program wants a loader.
func dynamic(f *os.File) (bool, error) {
	e, err := elf.NewFile(f)
	if err != nil {
		return false, err
	}
	for _, p := range e.Progs {
		if p.Type == elf.PT_INTERP {
			return true, nil
		}
	}
	return false, nil
}

var (
	// A release: release-20260905.0. A distribution's: 0.0~20221219.0-1.
	released = regexp.MustCompile(`\b(20[0-9]{6})\b`)
	// What `go install` made has no version of its own, and the module's.
	pseudo = regexp.MustCompile(`^v0\.0\.0-(20[0-9]{6})[0-9]{6}-`)
)

// identify sets the version, and gives the day of it.
func (r *runsc) identify(ctx context.Context, f *os.File) (string, error) {
	if in, err := buildinfo.Read(f); err == nil && in.Main.Path == "gvisor.dev/gvisor" {
		if m := pseudo.FindStringSubmatch(in.Main.Version); m != nil {
			r.version = in.Main.Version
			return m[1], nil
		}
	}
	line, err := ask(ctx, f)
	if err != nil {
		return "", errs.Preconditionf("%s --version: %w", r.path, err)
	}
	version, ok := strings.CutPrefix(line, "runsc version ")
	if !ok {
		return "", errs.Preconditionf("%s is no runsc: it says %q when it is asked for its version; %s", r.path, line, remedy)
	}
	m := released.FindStringSubmatch(version)
	if m == nil {
		return "", errs.Preconditionf("%s does not say of which day it is, but %q: only releases can be told apart; %s", r.path, version, remedy)
	}
	r.version = version
	return m[1], nil
}

// ask runs the very file that was looked at, and gives the first line that it prints.
func ask(ctx context.Context, f *os.File) (string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, versionTime, fmt.Errorf("no answer within %v", versionTime))
	defer cancel()
	var out limited
	//nolint:forbidigo // there is no other way to ask a release; environment and descriptors are thought of below
	c := exec.CommandContext(ctx, "/proc/self/fd/3", "--version")
	c.Env, c.Dir, c.Stdout, c.ExtraFiles, c.WaitDelay = []string{}, "/", &out, []*os.File{f}, time.Second
	if err := c.Run(); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return "", cause
		}
		return "", err
	}
	line, _, _ := bytes.Cut(out.b, []byte("\n"))
	return string(line), nil
}

// limited keeps the beginning of what is written to it.
type limited struct{ b []byte }

func (l *limited) Write(b []byte) (int, error) {
	l.b = append(l.b, b[:min(len(b), 512-len(l.b))]...)
	return len(b), nil
}
