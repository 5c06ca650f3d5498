package main

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core"
	"github.com/nucleus-runtime/nucleus/core/job"
)

// There are two builds of this command. The plugin host brings gRPC, whose mere
// presence costs every run some milliseconds, so it is in the build nucleus-full
// alone (tag plugins). The thin one, which users call, becomes that one as soon as
// it knows that a job names a plugin.

// jobFD is the variable that names the descriptor of a job that came on standard
// input: the thin build has read it.
const jobFD = "NUCLEUS_JOB_FD"

// namesPlugin tells whether a job needs the plugin host.
func namesPlugin(j *job.Job) bool { return len(j.Secrets) > 0 }

// pluginHostFor becomes the full build if this one cannot run the job.
func (a *app) pluginHostFor(j *job.Job, pinnedOnly func()) error {
	if !namesPlugin(j) {
		return nil
	}
	if !full {
		return a.becomeFull()
	}
	if j.Mode != "agent" {
		pinnedOnly()
	}
	return nil
}

// becomeFull does not return unless it fails.
func (a *app) becomeFull() error {
	path, err := core.Program("nucleus-full")
	if err != nil {
		return err
	}
	env := os.Environ()
	if a.piped != nil {
		fd, err := unix.MemfdCreate("nucleus-job", 0)
		if err != nil {
			return os.NewSyscallError("memfd_create", err)
		}
		if _, err := unix.Pwrite(fd, a.piped, 0); err != nil {
			return os.NewSyscallError("pwrite", err)
		}
		env = append(env, jobFD+"="+strconv.Itoa(fd))
	}
	return &hintedError{err: fmt.Errorf("%s: %w", path, syscall.Exec(path, os.Args, env)), hint: "install nucleus-full beside nucleus-init (make install)"}
}

// readPiped reads a job from standard input, once for both builds.
func (a *app) readPiped() ([]byte, error) {
	in := a.stdin
	if s, ok := os.LookupEnv(jobFD); ok && full {
		fd, err := strconv.Atoi(s)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", jobFD, err)
		}
		in = os.NewFile(uintptr(fd), "job")
		defer in.Close()
		if err := os.Unsetenv(jobFD); err != nil {
			return nil, err
		}
	}
	b, err := io.ReadAll(io.LimitReader(in, maxJobFile))
	a.piped = b
	return b, err
}
