package tree

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

// The script in the documentation is a second implementation of the format.
func TestDocumentedScript(t *testing.T) {
	testutil.Needs(t, testutil.Program("bash"), testutil.Program("find"), testutil.Program("sha256sum"))
	doc, err := os.ReadFile("../../docs/rootfs.md")
	must(t, err)
	_, rest, ok := strings.Cut(string(doc), "```bash\n")
	script, _, closed := strings.Cut(rest, "```")
	if !ok || !closed {
		t.Fatal("docs/rootfs.md has no script")
	}
	root := plant(t, sample...)
	out, err := exec.Command("bash", "-euc", script, "digest", root).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if got, want := "sha256:"+strings.TrimSpace(string(out)), digestOf(t, root); got != want {
		t.Errorf("the script gives %s, Digest %s", got, want)
	}
}
