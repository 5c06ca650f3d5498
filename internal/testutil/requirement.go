// Package testutil owns what the tests of every package share: requirements on
// the host, the binaries under test, the accounts that run them, and the census
// that proves nothing was left behind. Nothing outside tests imports it.
package testutil

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
)

// State is what a probe found out about the host.
type State int

const (
	// Unknown means that the probe could not tell: a failure, never a skip.
	Unknown State = iota
	// Available means that the probe did the thing and it worked.
	Available
	// Missing means that this host, user or kernel does not have the thing.
	Missing
)

// Finding is the outcome of a probe, with the reason unless it is Available.
type Finding struct {
	State State
	Why   string
}

// Requirement is something that a test needs from its host.
type Requirement struct {
	// Name stands in messages and in the allow-list: short, no spaces.
	Name string
	// Probe finds out by doing, so that no version number or setting can lie.
	Probe func() Finding
}

// Needs skips the test when the host lacks one of the requirements, and fails
// it when a probe could not tell. With NUCLEUS_REQUIRE=all, as in continuous
// integration, a skip is a failure too unless test/allowed-skips.txt has a
// line for this test and requirement.
func Needs(t testing.TB, reqs ...Requirement) {
	t.Helper()
	for _, req := range reqs {
		found := req.Probe()
		switch found.State {
		case Available:
			continue
		case Missing:
			Skip(t, req.Name, found.Why)
		case Unknown:
			t.Fatalf("requirement %q: could not tell whether it is met: %s", req.Name, found.Why)
		}
	}
}

// Skip ends the test for want of the named requirement, under the same rules:
// for what a test finds out on its way. It is the only way to skip a test here.
func Skip(t testing.TB, req, why string) {
	t.Helper()
	pkg := callerPackage()
	if os.Getenv("NUCLEUS_REQUIRE") == "all" {
		allowed, err := loadAllowedSkips()
		if err != nil {
			t.Fatalf("requirement %q is not met (%s), and the allow-list cannot be read: %v", req, why, err)
		}
		if !allowed.has(pkg, t.Name(), req) {
			t.Fatalf("requirement %q is not met: %s\nNUCLEUS_REQUIRE=all forbids the skip; "+
				"to allow it, add a line with the reason to test/allowed-skips.txt:\n%s %s %s WHY", req, why, pkg, t.Name(), req)
		}
	}
	if err := logSkip(pkg, t.Name(), req, why); err != nil {
		t.Fatalf("recording the skipped test: %v", err)
	}
	t.Skipf("requirement %q is not met: %s", req, why)
}

// logSkip appends to the file that the Makefile's summary reads. One short
// write with O_APPEND keeps lines of parallel test processes whole.
func logSkip(pkg, test, req, why string) error {
	path := os.Getenv("NUCLEUS_SKIP_LOG")
	if path == "" {
		return nil
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = fmt.Fprintf(f, "%s\t%s\t%s\t%s\n", pkg, test, req, why)
	return err
}

const modulePath = "github.com/nucleus-runtime/nucleus"

// callerPackage names the package of the first frame outside this one,
// relative to the module.
func callerPackage() string {
	pcs := make([]uintptr, 16)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(2, pcs)])
	for {
		frame, more := frames.Next()
		if pkg := packageOf(frame.Function); pkg != "internal/testutil" || strings.HasSuffix(frame.File, "_test.go") {
			return pkg
		}
		if !more {
			return "unknown"
		}
	}
}

// packageOf takes "module/core/fs_test.TestX.func1" to "core/fs".
func packageOf(function string) string {
	slash := strings.LastIndexByte(function, '/')
	dot := strings.IndexByte(function[slash+1:], '.')
	if dot < 0 {
		return function
	}
	pkg := strings.TrimSuffix(function[:slash+1+dot], "_test")
	return strings.TrimPrefix(pkg, modulePath+"/")
}
