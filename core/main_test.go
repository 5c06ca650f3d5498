package core_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/nucleus-runtime/nucleus/core"
	"github.com/nucleus-runtime/nucleus/core/host"
	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

// options are for a Nucleus that is not installed: its programs are built for
// the tests, and its state is theirs. A program of an installed one passes
// core.Options{}.
var options core.Options

func TestMain(m *testing.M) {
	host.MaybeChild()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "nucleus-core-test-")
	if err == nil {
		defer os.RemoveAll(dir)
		options.Libexec, options.StateRoot = filepath.Join(dir, "libexec"), filepath.Join(dir, "state")
		err = install(options.Libexec)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// install puts the programs where every user can execute them, as make install does.
func install(to string) error {
	from, err := testutil.BinaryDir()
	if err != nil {
		return err
	}
	for _, dir := range []string{filepath.Dir(to), to} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := os.Chmod(dir, 0o755); err != nil {
			return err
		}
	}
	for _, name := range []string{"nucleus-init", "nucleus-seccomp"} {
		b, err := os.ReadFile(filepath.Join(from, name))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(to, name), b, 0o755); err != nil {
			return err
		}
	}
	return nil
}
