package plan

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/diff"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/nucleus-runtime/nucleus/core/host/fact"
	"github.com/nucleus-runtime/nucleus/core/job"
)

var update = flag.Bool("update", false, "write what the golden files should hold")

// rendered is everything that a plan shows of itself.
func rendered(t *testing.T, j *job.Job, h fact.Host) []txtar.File {
	t.Helper()
	p, err := Make(j, inputs(h))
	if err != nil {
		var errs Errors
		if !errors.As(err, &errs) {
			t.Fatalf("%T: %v", err, err)
		}
		var b bytes.Buffer
		for _, e := range errs {
			fmt.Fprintf(&b, "%s\n\thint: %s\n", e.Error(), e.Hint)
		}
		return []txtar.File{{Name: "errors", Data: b.Bytes()}}
	}
	var text bytes.Buffer
	if err := Explain(&text, p); err != nil {
		t.Fatal(err)
	}
	return []txtar.File{
		{Name: "explain", Data: text.Bytes()},
		{Name: "plan.json", Data: asJSON(t, p)},
		{Name: "config.json", Data: asJSON(t, p.OCI())},
	}
}

func asJSON(t *testing.T, v any) []byte {
	t.Helper()
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetIndent("", " ")
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestGolden holds each job's plan for the base host in full, and for every
// other host what differs from it.
func TestGolden(t *testing.T) {
	for name, j := range jobFiles(t) {
		t.Run(name, func(t *testing.T) {
			out := &txtar.Archive{Comment: []byte("Plan of jobs/" + name + ".hcl; go test ./core/plan -run Golden -update\n")}
			base := map[string][]byte{}
			for i, h := range hosts() {
				for _, f := range rendered(t, j, h.Host) {
					if i == 0 {
						base[f.Name] = f.Data
						out.Files = append(out.Files, f)
						continue
					}
					if d := diff.Diff("root-v2", base[f.Name], h.name, f.Data); len(d) > 0 {
						out.Files = append(out.Files, txtar.File{Name: h.name + " " + f.Name, Data: d})
					}
				}
			}
			got := txtar.Format(out)
			file := "testdata/" + name + ".golden"
			if *update {
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if d := diff.Diff(file, want, "now", got); len(d) > 0 {
				t.Errorf("the plan has changed; if that is meant: go test ./core/plan -run Golden -update && git diff\n%s", d)
			}
		})
	}
}

// TestPlanIsDeterministic makes each plan and each list of errors again.
func TestPlanIsDeterministic(t *testing.T) {
	for name, j := range jobFiles(t) {
		for _, h := range hosts() {
			first := txtar.Format(&txtar.Archive{Files: rendered(t, j, h.Host)})
			for range 5 {
				if again := txtar.Format(&txtar.Archive{Files: rendered(t, j, h.Host)}); !bytes.Equal(first, again) {
					t.Fatalf("%s on %s:\n%s", name, h.name, diff.Diff("first", first, "again", again))
				}
			}
		}
	}
}

// TestPlanSurvivesJSON: the plan is kept in a file and read back.
func TestPlanSurvivesJSON(t *testing.T) {
	for name, j := range jobFiles(t) {
		p, err := Make(j, inputs(rootV2()))
		if err != nil {
			t.Fatal(err)
		}
		text := asJSON(t, p)
		var back Plan
		if err := json.Unmarshal(text, &back); err != nil {
			t.Fatal(err)
		}
		if again := asJSON(t, &back); !bytes.Equal(text, again) {
			t.Errorf("%s:\n%s", name, diff.Diff("made", text, "read back", again))
		}
	}
}
