package main

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	pluginv1 "github.com/nucleus-runtime/nucleus/sdk/proto/nucleus/plugin/v1"
)

// checkpoints are the fake's: it stops the workload by a signal, and what it saves is what
// the workload has written down of its state, which is all that it can start another with.
func checkpoints(env []string) *pluginv1.Checkpoint {
	call := func(args ...string) *pluginv1.Command {
		return &pluginv1.Command{Args: append([]string{asBox}, args...), Env: env}
	}
	return &pluginv1.Checkpoint{
		Pause: call("pause"), Save: call("save", "{image}"), Resume: call("resume"),
		Restore: call("run", "/bundle/config.json", "{pid-file}", "{failure-file}", "{image}"),
	}
}

const (
	countFile = "/rootfs/tmp/count"
	saved     = "count"
)

// checkpointBox makes one of the calls of a checkpoint, if it is one.
func checkpointBox(args []string) (done bool, code int, err error) {
	switch args[0] {
	case "pause":
		if broken("pauses nothing") {
			return true, 0, nil
		}
		err = stopAsleep()
	case "resume":
		if broken("stays paused") {
			return true, 0, nil
		}
		err = signalWorkload(syscall.SIGCONT)
	case "save":
		code, err = saveBox(args[1])
	default:
		return false, 0, nil
	}
	return true, code, err
}

// stopAsleep stops the workload while it waits for its sleep: then it has written down
// all of its state.
func stopAsleep() error {
	b, err := os.ReadFile(runFile)
	if err != nil {
		return err
	}
	for {
		if err := signalWorkload(syscall.SIGSTOP); err != nil {
			return err
		}
		time.Sleep(10 * time.Millisecond) // until it has come to its stop
		children, err := os.ReadFile(filepath.Join("/proc", string(b), "task", string(b), "children"))
		if err != nil || len(children) > 0 {
			return err
		}
		if err := signalWorkload(syscall.SIGCONT); err != nil {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func saveBox(image string) (int, error) {
	switch {
	case broken("saves nothing"):
		return 0, nil
	case broken("cannot save"):
		return 3, nil
	case broken("goes on with Save"):
		if err := signalWorkload(syscall.SIGCONT); err != nil {
			return 0, err
		}
	case broken("saves a link"):
		return 0, os.Symlink("/etc/passwd", filepath.Join(image, saved))
	}
	b, err := os.ReadFile(countFile)
	if err != nil {
		return 0, err
	}
	return 0, os.WriteFile(filepath.Join(image, saved), b, 0o600)
}

// restoredFrom is the variable that a workload goes on by.
func restoredFrom(image string) (string, error) {
	if broken("restores nothing") {
		time.Sleep(time.Minute)
	}
	b, err := os.ReadFile(filepath.Join(image, saved))
	if broken("begins again") {
		return "FROM=0", err
	}
	return "FROM=" + strings.TrimSpace(string(b)), err
}

func signalWorkload(s syscall.Signal) error {
	b, err := os.ReadFile(runFile)
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(string(b))
	if err != nil {
		return err
	}
	return syscall.Kill(pid, s)
}
