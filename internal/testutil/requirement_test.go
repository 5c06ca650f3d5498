package testutil

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// recorder is a test that runs inside a test, to see how it ends.
type recorder struct {
	testing.TB
	name            string
	failed, skipped string
}

func (r *recorder) Helper()      {}
func (r *recorder) Name() string { return r.name }

func (r *recorder) Fatalf(format string, args ...any) {
	r.failed = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

func (r *recorder) Skipf(format string, args ...any) {
	r.skipped = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

func runNeeds(t *testing.T, name string, reqs ...Requirement) *recorder {
	r := &recorder{TB: t, name: name}
	done := make(chan struct{})
	go func() {
		defer close(done)
		Needs(r, reqs...)
	}()
	<-done
	return r
}

func fixed(name string, state State) Requirement {
	return Requirement{name, func() Finding { return Finding{state, "because"} }}
}

// inModuleWithAllowList runs the rest of the test in a module of its own.
func inModuleWithAllowList(t *testing.T, list string) {
	t.Helper()
	root := t.TempDir()
	for name, text := range map[string]string{"go.mod": "module x\n", "test/allowed-skips.txt": list} {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(root)
}

func TestNeedsSkipsOnlyWhatIsMissing(t *testing.T) {
	const list = "# comment\n\ninternal/testutil TestAllowed* thing the reason\n* * else-* everywhere\n"
	for _, test := range []struct {
		what, test, require string
		reqs                []Requirement
		failed, skipped     string
	}{
		{"all met", "TestX", "all", []Requirement{fixed("a", Available), fixed("b", Available)}, "", ""},
		{"missing", "TestX", "", []Requirement{fixed("a", Available), fixed("thing", Missing)}, "", `"thing" is not met: because`},
		{"could not tell, which no list allows", "TestAllowedHere", "all", []Requirement{fixed("thing", Unknown)}, "could not tell", ""},
		{"could not tell comes after a met one", "TestX", "", []Requirement{fixed("a", Available), fixed("b", Unknown)}, `"b"`, ""},
		{"a forgotten state is no pass", "TestX", "", []Requirement{{"zero", func() Finding { return Finding{} }}}, "could not tell", ""},
		{"required", "TestX", "all", []Requirement{fixed("thing", Missing)}, "internal/testutil TestX thing WHY", ""},
		{"required and allowed", "TestAllowedHere", "all", []Requirement{fixed("thing", Missing)}, "", `"thing" is not met`},
		{"allowed with subtests", "TestAllowedHere/sub/case", "all", []Requirement{fixed("thing", Missing)}, "", `"thing" is not met`},
		{"allowed everywhere", "TestX/sub", "all", []Requirement{fixed("else-where", Missing)}, "", `"else-where" is not met`},
		{"allowed for another requirement", "TestAllowedHere", "all", []Requirement{fixed("other", Missing)}, "forbids the skip", ""},
	} {
		t.Run(test.what, func(t *testing.T) {
			inModuleWithAllowList(t, list)
			t.Setenv("NUCLEUS_REQUIRE", test.require)
			t.Setenv("NUCLEUS_SKIP_LOG", "")
			r := runNeeds(t, test.test, test.reqs...)
			check := func(outcome, got, want string) {
				if (got == "") != (want == "") || !strings.Contains(got, want) {
					t.Errorf("%s %q, want %q", outcome, got, want)
				}
			}
			check("failed", r.failed, test.failed)
			check("skipped", r.skipped, test.skipped)
		})
	}
}

func TestNeedsRecordsSkips(t *testing.T) {
	log := filepath.Join(t.TempDir(), "skips")
	t.Setenv("NUCLEUS_REQUIRE", "")
	t.Setenv("NUCLEUS_SKIP_LOG", log)
	runNeeds(t, "TestOne", fixed("thing", Missing))
	runNeeds(t, "TestTwo", fixed("thing", Missing))
	runNeeds(t, "TestThree", fixed("thing", Available))
	got, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	want := "internal/testutil\tTestOne\tthing\tbecause\ninternal/testutil\tTestTwo\tthing\tbecause\n"
	if string(got) != want {
		t.Errorf("the log holds %q, want %q", got, want)
	}
}

func TestAllowListWantsReasons(t *testing.T) {
	for _, test := range []struct{ text, wantErr string }{
		{"", ""},
		{"core/fs TestX/a-[bc]* kernel-6.1 some reason\n", ""},
		{"core/fs TestX kernel-6.1\n", "line 1"},
		{"\ncore/fs Test[ kernel-6.1 why\n", "line 2"},
	} {
		_, err := parseAllowedSkips(strings.NewReader(test.text))
		if (err == nil) != (test.wantErr == "") || err != nil && !strings.Contains(err.Error(), test.wantErr) {
			t.Errorf("parsing %q: %v, want %q", test.text, err, test.wantErr)
		}
	}
}

func TestRepositoryAllowListParses(t *testing.T) {
	if _, err := loadAllowedSkips(); err != nil {
		t.Fatal(err)
	}
}

func TestPackageOf(t *testing.T) {
	for function, want := range map[string]string{
		modulePath + "/core/fs.TestX":              "core/fs",
		modulePath + "/core/fs_test.TestX.func1":   "core/fs",
		modulePath + "/test/script.(*T).Run.func2": "test/script",
		"testing.tRunner":                          "testing",
	} {
		if got := packageOf(function); got != want {
			t.Errorf("packageOf(%q) = %q, want %q", function, got, want)
		}
	}
}
