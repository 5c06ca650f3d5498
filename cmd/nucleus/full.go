package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core"
	"github.com/nucleus-runtime/nucleus/core/job"
	"github.com/nucleus-runtime/nucleus/core/job/hostconfig"
	"github.com/nucleus-runtime/nucleus/internal/processors"
)

// There are two builds of this command. The plugin host brings gRPC, whose mere
// presence costs every run some milliseconds, so it is in the build nucleus-full
// alone (tag plugins). The thin one, which users call, becomes that one as soon as
// it knows that a job names a plugin.

// jobFD is the variable that names the descriptor of a job that came on standard
// input: the thin build has read it.
const jobFD = "NUCLEUS_JOB_FD"

// namesPlugin tells whether a job needs the plugin host.
func namesPlugin(j *job.Job) bool {
	return j.Network.Plugin() || j.Runtime != nil || len(j.Secrets)+len(j.PluginHooks) > 0
}

// leavesToFull tells whether a job is the other build's, which is installed.
func leavesToFull(j *job.Job) bool { return !full && namesPlugin(j) && fullInstalled() }

func fullInstalled() bool {
	path, err := core.Program("nucleus-full")
	return err == nil && unix.Access(path, unix.X_OK) == nil
}

// pluginDirs are where plugins are looked for.
func pluginDirs(conf *hostconfig.Config) ([]string, error) {
	if conf.PluginDirs != nil {
		return conf.PluginDirs, nil
	}
	dir, err := core.Program("plugins")
	return []string{dir}, err
}

// pluginPaths are the files that a plugin may be, in the order in which they are
// looked for.
func (a *app) pluginPaths(name string) ([]string, error) {
	conf, err := a.hostConfiguration()
	if err != nil {
		return nil, err
	}
	paths, err := pluginDirs(conf)
	if err != nil {
		return nil, err
	}
	file := "nucleus-plugin-" + name
	if p, _ := conf.Plugin(name); p.Path != "" {
		file = p.Path
	}
	paths = slices.Clone(paths)
	for i := range paths {
		paths[i] = filepath.Join(paths[i], file)
	}
	return paths, nil
}

// pluginUse is how the plugins of a job are got ready. Without a plugin host it does
// nothing.
type pluginUse struct {
	// pinnedOnly is for the modes that take no plugin whose digest the host
	// configuration does not name.
	pinnedOnly func()
	// expect begins to start the plugins of a job, and forget ends those that nobody
	// has asked for.
	expect func(*job.Job)
	forget func()
	// known tells whether a plugin has been started before, and is still the same file.
	known func(ctx context.Context, name string) bool
}

// pluginHostFor becomes the full build if this one cannot run the job.
func (a *app) pluginHostFor(j *job.Job, use *pluginUse) error {
	if !namesPlugin(j) {
		return nil
	}
	if !full {
		return a.becomeFull()
	}
	if j.Mode != "agent" {
		use.pinnedOnly()
	}
	return nil
}

// seals make a memfd one that nobody changes any more.
const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE

// becomeFull does not return unless it fails.
func (a *app) becomeFull() error {
	path, err := core.Program("nucleus-full")
	if err != nil {
		return err
	}
	// A caller's own variable of that name is not for the other build.
	env := slices.DeleteFunc(os.Environ(), func(kv string) bool { return strings.HasPrefix(kv, jobFD+"=") })
	if a.piped != nil {
		fd, err := pipedJob(a.piped)
		if err != nil {
			return err
		}
		env = append(env, jobFD+"="+strconv.Itoa(fd))
	}
	for _, f := range a.inherited {
		if _, err := unix.FcntlInt(f.Fd(), unix.F_SETFD, 0); err != nil {
			return os.NewSyscallError("fcntl F_SETFD", err)
		}
	}
	runtime.LockOSThread() // for good: it is what this process becomes
	processors.Punctual()
	return &hintedError{err: fmt.Errorf("%s: %w", path, syscall.Exec(path, os.Args, env)), hint: "install nucleus-full beside nucleus-init (make install)"}
}

// pipedJob gives a job to the other build, sealed.
func pipedJob(src []byte) (int, error) {
	fd, err := unix.MemfdCreate("nucleus-job", unix.MFD_ALLOW_SEALING)
	if err != nil {
		return -1, os.NewSyscallError("memfd_create", err)
	}
	if _, err := unix.Pwrite(fd, src, 0); err != nil {
		return -1, os.NewSyscallError("pwrite", err)
	}
	_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals)
	return fd, os.NewSyscallError("fcntl F_ADD_SEALS", err)
}

// readPiped reads a job from standard input, once for both builds.
func (a *app) readPiped() ([]byte, error) {
	in := a.stdin
	if s, ok := os.LookupEnv(jobFD); ok && full {
		fd, err := strconv.Atoi(s)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", jobFD, err)
		}
		if got, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0); err != nil || got != seals {
			return nil, fmt.Errorf("%s: descriptor %d does not come from nucleus", jobFD, fd)
		}
		in = os.NewFile(uintptr(fd), "job")
		defer in.Close()
	}
	b, err := io.ReadAll(io.LimitReader(in, maxJobFile))
	a.piped = b
	return b, err
}
