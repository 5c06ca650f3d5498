package hostconfig

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/nucleus-runtime/nucleus/core/job"
)

// reference is the text of docs/job-file.md, docs/host-config.md and docs/stacks.md.
func reference(t *testing.T) []byte {
	t.Helper()
	var all []byte
	for _, name := range []string{"job-file.md", "host-config.md", "stacks.md"} {
		doc, err := os.ReadFile("../../../docs/" + name)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, doc...)
	}
	return all
}

// TestExamplesOfTheReference runs every example of the reference: whole files,
// blocks of a job, and host configurations ("hcl host").
func TestExamplesOfTheReference(t *testing.T) {
	doc := reference(t)
	fences := regexp.MustCompile("(?ms)^```(hcl[^\n]*)\n(.*?)^```$").FindAllStringSubmatch(string(doc), -1)
	if len(fences) < 18 {
		t.Fatalf("%d examples found", len(fences))
	}
	for _, f := range fences {
		kind, src := f[1], f[2]
		if kind == "hcl host" {
			if _, diags := Parse("nucleus.hcl", []byte(src)); len(diags) > 0 {
				t.Errorf("%s\n%v", src, diags)
			}
			continue
		}
		if !strings.Contains(src, "job \"") {
			src = "job \"example\" {\n  command = [\"/bin/true\"]\n" + src + "}\n"
		}
		if _, diags := job.ParseAll("job.hcl", []byte(src), job.Options{Dir: "/home/me/jobs"}); len(diags) > 0 {
			t.Errorf("%s\n%v", src, diags)
		}
	}
}

// TestReferenceNamesEverything looks for each attribute and block of the full
// example in the reference.
func TestReferenceNamesEverything(t *testing.T) {
	doc := reference(t)
	full, err := os.ReadFile("../../../examples/full.hcl")
	if err != nil {
		t.Fatal(err)
	}
	j, diags := job.Parse("full.hcl", full, job.Options{Dir: "/home/me/jobs", Job: "web"})
	if diags.HasErrors() {
		t.Fatal(diags)
	}
	name := regexp.MustCompile(`[a-z_0-9]+$`)
	label := regexp.MustCompile(`\[[^]]*\]`)
	for path := range j.Ranges {
		if strings.Contains(path, ".config.") {
			continue
		}
		n := name.FindString(label.ReplaceAllString(path, ""))
		if n == "" || !regexp.MustCompile(`\b`+n+`\b`).Match(doc) {
			t.Errorf("%s is not in the reference", path)
		}
	}
}
