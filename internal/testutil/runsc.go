package testutil

import (
	"os"
	"path/filepath"
	"testing"
)

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
