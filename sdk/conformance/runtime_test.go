package conformance_test

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/nucleus-runtime/nucleus/sdk/conformance"
)

// ofRuntimes is the fake as a plugin of runtimes, and as the program that it names.
func ofRuntimes(defect string) conformance.Config {
	return conformance.Config{Binary: fake, Env: []string{"FAKE_DEFECT=" + defect, "FAKE_SERVES=runtime"}, Cycles: 10}
}

// cells tells whether sandboxes can be run here.
func cells(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("busybox"); err != nil {
		if os.Getenv("NUCLEUS_REQUIRE") == "all" {
			t.Fatal(err)
		}
		t.Skip("there is no busybox to run in sandboxes") //nolint:forbidigo // testutil is of another module
	}
}

func TestGoodRuntimePassesAll(t *testing.T) {
	cells(t)
	t.Parallel()
	for _, r := range check(t, ofRuntimes("")) {
		if r.Rule == "base/other-user" && os.Geteuid() != 0 {
			continue // only root can be somebody else
		}
		if r.Outcome != conformance.Pass {
			t.Error(r)
		}
	}
}

// One that does not say how signals are sent: its program passes them on.
func TestRuntimeWithoutSignalPassesItsRules(t *testing.T) {
	cells(t)
	t.Parallel()
	k, err := conformance.New(ofRuntimes("passes signals on"))
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	for _, r := range k.Rules(t.Context()) {
		if r.Suite() != "runtime" {
			continue
		}
		// Without a command that signals one process there is none for a group.
		if res := k.Check(t.Context(), r); res.Outcome != conformance.Pass && (r.ID != "runtime/exec-group" || res.Outcome != conformance.NotApplicable) {
			t.Error(res)
		}
	}
}

var runtimeBites = []struct{ rule, defect, says string }{
	{"runtime/prepare", "prepares nothing", "FailedPrecondition: not today"},
	{"runtime/prepare", "prepares again", "the second answer differs"},
	{"runtime/prepare", "counts", "another process says something else|the second answer differs"},
	{"runtime/prepare", "has the pid", "another process says something else"},
	{"runtime/nothing-left", "keeps a child", "which runs on"},
	{"runtime/nothing-left", "writes a bundle", "config.json"},
	{"runtime/answer", "dies of terminals", "index out of range"},
	{"runtime/answer", "unknown word", "{bundle} is not replaced here"},
	{"runtime/answer", "host's hooks", "rootless true: spec: it has hooks"},
	{"runtime/unknown", "any network", "network 99: OK"},
	{"runtime/unknown", "any spec", "OK"},
	{"runtime/unknown", "fails at a spec that is none", "Unknown: unexpected end of JSON input"},
	{"runtime/program", "another digest", "and the answer names 0a0a"},
	{"runtime/program", "wants libraries", "says that it needs libraries: true"},
	{"runtime/program", "names a script", "/etc/passwd is no regular executable file"},
	{"runtime/run", "always well", "it ended with 0, and not with 7"},
	{"runtime/run", "drops variables", "input||/tmp"},
	{"runtime/run", "complains", `{failure-file} says "warning: slow"`},
	{"runtime/root", "in its own root", `the workload sees ["/program"`},
	{"runtime/terminal", "a pipe for a terminal", "and not with 5"},
	{"runtime/signal", "sends no signals", "it still runs after"},
	{"runtime/signal", "forgets signals", "it ended with 1, and not with 143"},
	{"runtime/exec", "processes are always well", "it ended with 0, and not with 6"},
	{"runtime/exec", "drops variables of processes", "standard output is \"|/tmp|"},
	{"runtime/exec-signal", "signals the workload", "it still runs after|the workload"},
	{"runtime/exec-signal", "writes no number", "and not the number of the process"},
	{"runtime/exec-signal", "passes signals on,leaves what it runs", "later it is still there"},
	{"runtime/checkpoint", "pauses nothing", "after Pause the workload goes on"},
	{"runtime/checkpoint", "goes on with Save", "after Save the workload goes on"},
	{"runtime/checkpoint", "saves nothing", "Save has written no file"},
	{"runtime/checkpoint", "saves a link", "which is no regular file"},
	{"runtime/checkpoint", "cannot save", "the command Save: it ended with 3"},
	{"runtime/checkpoint", "stays paused", "after Resume the workload does not go on"},
	{"runtime/checkpoint", "begins again", "goes on with \"n1"},
	{"runtime/checkpoint", "restores nothing", "writes nothing within"},
	{"runtime/exec-group", "signals no group", "later it is still there"},
	{"runtime/end", "leaves processes", "later there still are: sleep|later there still are: busybox"},
}

func TestEveryRuleOfRuntimesBites(t *testing.T) {
	cells(t)
	for _, b := range runtimeBites {
		t.Run(b.defect, func(t *testing.T) {
			t.Parallel()
			k, err := conformance.New(ofRuntimes(b.defect))
			if err != nil {
				t.Fatal(err)
			}
			defer k.Close()
			for _, r := range k.Rules(t.Context()) {
				if r.ID != b.rule && (!*exact || r.Suite() != "runtime") {
					continue
				}
				res := k.Check(t.Context(), r)
				switch {
				case r.ID != b.rule && res.Outcome == conformance.Fail:
					t.Errorf("it breaks another rule, too: %s", res)
				case r.ID != b.rule:
				case res.Outcome != conformance.Fail || res.Want == "" || res.Remedy == "":
					t.Errorf("it is not seen: %s", res)
				case !slices.ContainsFunc(strings.Split(b.says, "|"), func(s string) bool { return strings.Contains(res.Got, s) }):
					t.Errorf("it does not say %q:\n%s", b.says, res)
				}
			}
		})
	}
}

func TestEveryRuleOfRuntimesHasItsFake(t *testing.T) {
	k, err := conformance.New(ofRuntimes(""))
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	for _, r := range k.Rules(t.Context()) {
		known := slices.ContainsFunc(runtimeBites, func(b struct{ rule, defect, says string }) bool { return b.rule == r.ID })
		if r.Suite() == "runtime" && !known {
			t.Errorf("no fake breaks %s", r.ID)
		}
	}
}
