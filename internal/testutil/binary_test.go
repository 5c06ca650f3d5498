package testutil

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestBinaryComesFromWhereMakePutIt(t *testing.T) {
	stubBinaries(t)
	if got, want := Binary(t, "nucleus"), filepath.Join(os.Getenv("NUCLEUS_BIN"), "nucleus"); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// A rebuild must not take the file from under a process that runs it.
func TestBuildKeepsAnUnchangedBinary(t *testing.T) {
	Needs(t, Program("go"))
	root, dir := t.TempDir(), t.TempDir()
	source := filepath.Join(root, "cmd", "tool", "main.go")
	if err := os.MkdirAll(filepath.Dir(source), 0o755); err != nil {
		t.Fatal(err)
	}
	inode := func(program string) os.FileInfo {
		t.Helper()
		for path, text := range map[string]string{filepath.Join(root, "go.mod"): "module x\n", source: program} {
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if err := buildCommand(root, filepath.Join(dir, "tool"), "./cmd/tool", false); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(filepath.Join(dir, "tool"))
		if err != nil {
			t.Fatal(err)
		}
		return info
	}
	first := inode("package main\n\nfunc main() {}\n")
	again := inode("package main\n\nfunc main() {}\n")
	changed := inode("package main\n\nfunc main() { println() }\n")
	if !os.SameFile(first, again) {
		t.Error("an unchanged program was replaced")
	}
	if os.SameFile(first, changed) {
		t.Error("a changed program was not replaced")
	}
}

func TestPatienceGrowsWhereTimeIsSlow(t *testing.T) {
	t.Setenv("NUCLEUS_VM", "")
	host := Patient(time.Second)
	t.Setenv("NUCLEUS_VM", "1")
	if vm := Patient(time.Second); host < time.Second || vm <= host {
		t.Errorf("%v on the host, %v in the VM", host, vm)
	}
}
