package script

import (
	"bufio"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

// runtimeVariable names the runtime plugin that all jobs of the scripts are run by, in
// the native runtime's place. Scripts that are about what only that has are on a list.
const runtimeVariable = "NUCLEUS_TEST_RUNTIME"

// exceptions are the scripts that a runtime plugin is no subject of, by their names
// without the suffix, and why.
func exceptions(t *testing.T, plugin string) map[string]string {
	t.Helper()
	out := map[string]string{}
	if plugin == "" {
		return out
	}
	f, err := os.Open(plugin + "-exceptions.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		name, why, ok := strings.Cut(line, " ")
		if !ok {
			t.Fatalf("exception %q has no reason", line)
		}
		if _, err := os.Stat(name + ".txtar"); err != nil {
			t.Errorf("exception %q is no script", name)
		}
		out[name] = strings.TrimSpace(why)
	}
	return out
}

var (
	jobBlock  = regexp.MustCompile(`(?m)^job "[^"]*" \{$`)
	oneLine   = regexp.MustCompile(`(?m)^(job "[^"]*" \{) ([^\n]*[^\n ]) \}$`)
	closing   = regexp.MustCompile(`(?m)^\}$`)
	hasOneRun = regexp.MustCompile(`(?m)^\s*runtime "`)
)

// runBy has a runtime plugin run the jobs of a file. No line but the last of a job
// moves, so that what diagnostics say stays true.
func runBy(plugin, text string) string {
	if hasOneRun.MatchString(text) {
		return text
	}
	text = oneLine.ReplaceAllString(text, "$1\n$2\n}")
	var out strings.Builder
	for {
		at := jobBlock.FindStringIndex(text)
		if at == nil {
			break
		}
		end := closing.FindStringIndex(text[at[1]:])
		if end == nil {
			break
		}
		out.WriteString(text[:at[1]+end[0]])
		fmt.Fprintf(&out, "runtime %q {}\n", plugin)
		text = text[at[1]+end[0]:]
	}
	return out.String() + text
}

func runAllBy(plugin, dir string) error {
	if plugin == "" {
		return nil
	}
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ".hcl" {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(path, []byte(runBy(plugin, string(b))), 0o644)
	})
}

func TestJobsAreRunByAPlugin(t *testing.T) {
	for _, c := range []struct{ from, to string }{
		{"job \"a\" {\n  command = [\"x\"]\n}\n", "job \"a\" {\n  command = [\"x\"]\nruntime \"gvisor\" {}\n}\n"},
		{"job \"a\" { command = [\"x\"] }\njob \"b\" {\n}\n", "job \"a\" {\ncommand = [\"x\"]\nruntime \"gvisor\" {}\n}\njob \"b\" {\nruntime \"gvisor\" {}\n}\n"},
		{"job \"a\" {\n  runtime \"native\" {}\n}\n", "job \"a\" {\n  runtime \"native\" {}\n}\n"},
		{"mode = \"agent\"\n", "mode = \"agent\"\n"},
	} {
		if got := runBy("gvisor", c.from); got != c.to {
			t.Errorf("%q became %q, want %q", c.from, got, c.to)
		}
	}
}

// runsc is gVisor's program, which `make deps-test` builds beside the binaries.
var runsc = testutil.Requirement{Name: "runsc", Probe: func() testutil.Finding {
	dir, err := testutil.BinaryDir()
	if err == nil {
		_, err = os.Stat(filepath.Join(dir, "tools", "runsc"))
	}
	if err != nil {
		return testutil.Finding{State: testutil.Missing, Why: err.Error()}
	}
	return testutil.Finding{State: testutil.Available}
}}
