package job

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/hashicorp/hcl/v2"
	"github.com/rogpeppe/go-internal/txtar"
)

var update = flag.Bool("update", false, "write what the golden files should hold")

// wrapped puts lines of a job block into one.
func wrapped(src string) string {
	if strings.Contains(src, "job ") || strings.Contains(src, "jobs ") || strings.Contains(src, "job {") || strings.TrimSpace(src) == "# nothing" {
		return src
	}
	return "job \"x\" {\n  command = [\"/bin/true\"]\n" + src + "}\n"
}

// describe lists diagnostics with the text that each points to.
func describe(src string, diags hcl.Diagnostics) string {
	var b strings.Builder
	for _, d := range diags {
		kind := "error"
		if d.Severity == hcl.DiagWarning {
			kind = "warning"
		}
		at, text := "-", ""
		if d.Subject != nil {
			at = fmt.Sprintf("%d,%d", d.Subject.Start.Line, d.Subject.Start.Column)
			text = src[d.Subject.Start.Byte:min(d.Subject.End.Byte, len(src))]
			if len(text) > 60 {
				text = text[:60] + "..."
			}
		}
		fmt.Fprintf(&b, "%s %s at %q: %s\n\t%s\n", at, kind, text, d.Summary, strings.ReplaceAll(d.Detail, "\n", "\n\t"))
	}
	return b.String()
}

func TestDiagnostics(t *testing.T) {
	cases, err := txtar.ParseFile("testdata/diagnostics.txtar")
	if err != nil {
		t.Fatal(err)
	}
	const goldenFile = "testdata/diagnostics.golden"
	golden := map[string]string{}
	if a, err := txtar.ParseFile(goldenFile); err == nil {
		for _, f := range a.Files {
			golden[f.Name] = string(f.Data)
		}
	}
	out := &txtar.Archive{}
	for _, f := range cases.Files {
		t.Run(f.Name, func(t *testing.T) {
			src := wrapped(string(f.Data))
			j, diags := Parse("job.hcl", []byte(src), Options{Dir: "/home/me/web"})
			if (j == nil) != diags.HasErrors() {
				t.Errorf("job is nil: %v, diagnostics have errors: %v", j == nil, diags.HasErrors())
			}
			if len(diags) == 0 {
				t.Error("no diagnostics")
			}
			for _, d := range diags {
				if n := len(strings.Fields(d.Summary)); n > 8 || d.Detail == "" {
					t.Errorf("summary %q has %d words, detail is %q", d.Summary, n, d.Detail)
				}
				if d.Expression != nil || d.EvalContext != nil {
					t.Errorf("%q carries values that would be printed", d.Summary)
				}
			}
			got := describe(src, diags)
			out.Files = append(out.Files, txtar.File{Name: f.Name, Data: []byte(got)})
			if want, ok := golden[f.Name]; !*update && (!ok || got != want) {
				t.Errorf("got:\n%s\nwant:\n%s", got, want)
			}
		})
	}
	if len(golden) != len(cases.Files) && !*update {
		t.Errorf("%d cases, %d in the golden file", len(cases.Files), len(golden))
	}
	if *update {
		if err := os.WriteFile(goldenFile, txtar.Format(out), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestWriteDiagnostics(t *testing.T) {
	src := "job \"x\" {\n  command = [\"/bin/true\"]\n  mode    = \"prod\x1b[31m\u202e\"\n}\n"
	_, diags := Parse("job.hcl", []byte(src), Options{Dir: "/d"})
	var b bytes.Buffer
	if err := WriteDiagnostics(&b, map[string][]byte{"job.hcl": []byte(src)}, diags, 60, false); err != nil {
		t.Fatal(err)
	}
	want := `Error: Unknown value

  on job.hcl line 3:
   3:   mode    = "prod?[31m???"

mode takes "agent", "strict-agent" or "production", not
"prod\x1b[31m\u202e".

`
	if b.String() != want {
		t.Errorf("got:\n%s\nwant:\n%s", b.String(), want)
	}
}
