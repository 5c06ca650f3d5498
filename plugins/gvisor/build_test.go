package gvisor

import (
	"os"
	"os/exec"
	"testing"
)

// build builds a program that has no need of a module.
func build(t *testing.T, args ...string) {
	t.Helper()
	c := exec.CommandContext(t.Context(), "go", append([]string{"build"}, args...)...)
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
}
