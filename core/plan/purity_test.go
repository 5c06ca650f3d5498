package plan

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"strings"
	"testing"
)

// TestPlanIsPure: what the package imports cannot reach the kernel, a clock or
// chance, so a plan depends on nothing but what it is given.
func TestPlanIsPure(t *testing.T) {
	allowed := map[string]bool{
		"bufio": true, "cmp": true, "errors": true, "fmt": true, "io": true, "maps": true, "math": true, "net/netip": true, "path": true, "slices": true, "sort": true, "strconv": true, "strings": true,
		"text/tabwriter": true, "unicode/utf8": true,
		"time":                        true, // Duration; see below
		"github.com/hashicorp/hcl/v2": true,
		"github.com/opencontainers/runtime-spec/specs-go":      true,
		"github.com/nucleus-runtime/nucleus/core/job":          true,
		"github.com/nucleus-runtime/nucleus/core/host/fact":    true,
		"github.com/nucleus-runtime/nucleus/core/probe":        true, // its rules; see below
		"github.com/nucleus-runtime/nucleus/internal/pathname": true, // strings
	}
	files := token.NewFileSet()
	seen := 0
	err := fs.WalkDir(os.DirFS("."), ".", func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		seen++
		f, err := parser.ParseFile(files, path, nil, 0)
		if err != nil {
			return err
		}
		for _, i := range f.Imports {
			if name := strings.Trim(i.Path.Value, `"`); !allowed[name] {
				t.Errorf("%s imports %s", path, name)
			}
		}
		src, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, call := range []string{"time.Now", "time.Since", "time.After", "time.Sleep", "time.NewTimer", "probe.AwaitReady", "probe.Watch"} {
			if strings.Contains(string(src), call+"(") {
				t.Errorf("%s asks the clock: %s", path, call)
			}
		}
		return nil
	})
	if err != nil || seen < 5 {
		t.Fatalf("%d files: %v", seen, err)
	}
}
