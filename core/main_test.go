package core_test

import (
	"fmt"
	"os"
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
	var err error
	if options.Libexec, err = testutil.BinaryDir(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if options.StateRoot, err = os.MkdirTemp("", "nucleus-core-test-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(options.StateRoot)
	return m.Run()
}
