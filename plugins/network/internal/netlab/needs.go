package netlab

import (
	"fmt"
	"os"
	"testing"
)

// Needs skips a test that is not run by root.
func Needs(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		Skip(t, "root", "network namespaces of the test's own")
	}
}

// Skip skips a test that lacks a requirement, and says so where the summary of a run
// counts skips. Where nothing may be skipped (NUCLEUS_REQUIRE=all, docs/testing.md) the
// test fails instead, but for want of what test/allowed-skips.txt says is no reason: root,
// which other passes over the same tests have, and firewalld.
func Skip(t testing.TB, requirement, why string) {
	t.Helper()
	if os.Getenv("NUCLEUS_REQUIRE") == "all" && requirement != "root" && requirement != "firewalld" {
		t.Fatalf("may not be skipped: needs %s: %s", requirement, why)
	}
	if err := logSkip(t.Name(), requirement, why); err != nil {
		t.Fatalf("recording a skip: %v", err)
	}
	t.Skipf("needs %s: %s", requirement, why) //nolint:forbidigo // the one place of the module, as testutil.Skip is of the main one
}

func logSkip(test, requirement, why string) error {
	path := os.Getenv("NUCLEUS_SKIP_LOG")
	if path == "" {
		return nil
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = fmt.Fprintf(f, "plugins/network\t%s\t%s\t%s\n", test, requirement, why)
	return err
}
