package software

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

// locate says how a toolchain tells where it is; its main program is bin/NAME there.
var locate = map[string][]string{
	"go":    {"go", "env", "GOROOT"},
	"cargo": {"rustc", "--print", "sysroot"},
}

// findToolchain gives the directory of a toolchain that may lie anywhere, such
// as in a home, and skips the test where there is none that the account can use.
func (h host) findToolchain(t *testing.T, name string) string {
	t.Helper()
	argv, ok := locate[name]
	if !ok {
		t.Fatalf("no toolchain is called %q", name)
	}
	var dir string
	testutil.Needs(t, testutil.Requirement{Name: "program-" + name, Probe: func() testutil.Finding {
		if _, err := exec.LookPath(argv[0]); err != nil {
			return testutil.Finding{State: testutil.Missing, Why: err.Error()}
		}
		c := exec.Command(argv[0], argv[1:]...)
		// A module's own wish for another toolchain is not asked.
		c.Dir = os.TempDir()
		out, err := c.Output()
		if err != nil {
			return testutil.Finding{State: testutil.Unknown, Why: c.String() + ": " + err.Error()}
		}
		dir = strings.TrimSpace(string(out))
		if err := h.Command("test", "-x", filepath.Join(dir, "bin", name)).Run(); err != nil {
			return testutil.Finding{State: testutil.Missing, Why: h.Name + " cannot reach " + filepath.Join(dir, "bin", name)}
		}
		return testutil.Finding{State: testutil.Available}
	}})
	return dir
}
