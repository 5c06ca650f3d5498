package chaos

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// ownGroup is the cgroup v1 group in which these tests run: sandboxes are made
// below it, so that what others on the machine do is not counted, and a storm
// that got away is bounded by it. "" where there are no v1 hierarchies.
var ownGroup string

func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == "--version" {
		time.Sleep(slowVersion)
		os.Exit(0)
	}
	leave, err := enterGroup()
	if err != nil {
		fmt.Fprintln(os.Stderr, "making a control group for the tests:", err)
		os.Exit(1)
	}
	code := m.Run()
	if err := leave(); err != nil {
		fmt.Fprintln(os.Stderr, "leaving the control group of the tests:", err)
		code = 1
	}
	os.Exit(code)
}

// bounds are what a storm could take at most.
var bounds = map[string][2]string{
	"pids":   {"pids.max", "4000"},
	"memory": {"memory.limit_in_bytes", "8589934592"},
}

func enterGroup() (leave func() error, err error) {
	if os.Geteuid() != 0 {
		return func() error { return nil }, nil
	}
	groups, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	name := fmt.Sprintf("chaos-%d", os.Getpid())
	var homes, made []string
	leave = func() error {
		var errs []error
		for i, dir := range made {
			errs = append(errs, os.WriteFile(filepath.Join(homes[i], "cgroup.procs"), []byte("0"), 0))
			errs = append(errs, rmdir(dir))
		}
		return errors.Join(errs...)
	}
	for line := range strings.Lines(string(groups)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		switch f[1] {
		case "pids", "memory", "freezer", "cpu", "cpu,cpuacct":
		default:
			continue
		}
		home := filepath.Join("/sys/fs/cgroup", f[1], f[2])
		dir := filepath.Join(home, name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			return nil, errors.Join(err, leave())
		}
		homes, made = append(homes, home), append(made, dir)
		if b, ok := bounds[f[1]]; ok {
			if err := os.WriteFile(filepath.Join(dir, b[0]), []byte(b[1]), 0); err != nil {
				return nil, errors.Join(err, leave())
			}
		}
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0); err != nil {
			return nil, errors.Join(err, leave())
		}
		ownGroup = name
	}
	return leave, nil
}

// rmdir waits a moment for the last zombies to be gone.
func rmdir(dir string) error {
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		err := unix.Rmdir(dir)
		if err == nil || time.Now().After(deadline) {
			return err
		}
	}
}
