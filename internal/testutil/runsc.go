package testutil

import (
	"os"
	"path/filepath"
	"testing"
)

// Runsc is gVisor's program, which `make deps-test` builds beside the binaries.
var Runsc = Requirement{Name: "runsc", Probe: func() Finding {
	dir, err := BinaryDir()
	if err == nil {
		_, err = os.Stat(filepath.Join(dir, "tools", "runsc"))
	}
	if err != nil {
		return Finding{State: Missing, Why: err.Error()}
	}
	return Finding{State: Available}
}}

// LendRunsc puts the runsc that the tests are for where the account's plugin gvisor
// looks for it first.
func (a *Account) LendRunsc(t testing.TB) {
	t.Helper()
	dir, err := BinaryDir()
	if err != nil {
		t.Fatal(err)
	}
	built, err := filepath.EvalSymlinks(filepath.Join(dir, "tools", "runsc"))
	if err != nil {
		t.Fatalf("%v (make deps-test?)", err)
	}
	to := filepath.Join(a.Bin, "tools", "runsc")
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		t.Fatal(err)
	}
	if os.Link(built, to) == nil {
		return // it has 100 MB
	}
	data, err := os.ReadFile(built)
	if err == nil {
		err = os.WriteFile(to, data, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
}
