package conformance_test

import (
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/nucleus-runtime/nucleus/sdk/conformance"
)

var fake string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "fake")
	if err != nil {
		panic(err)
	}
	fake = filepath.Join(dir, "nucleus-plugin-fake")
	if out, err := build().CombinedOutput(); err != nil {
		panic(string(out))
	}
	// These tests mostly wait for the ends of plugins. -parallel has the last word.
	if err := flag.Set("test.parallel", strconv.Itoa(3*runtime.GOMAXPROCS(0))); err != nil {
		panic(err)
	}
	// Another user executes it, too.
	if err := os.Chmod(dir, 0o755); err != nil {
		panic(err)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// build makes the fake, which is a program of runtimes, too, and as such has no libraries.
func build() *exec.Cmd {
	cmd := exec.Command("go", "build", "-o", fake, "./internal/fake")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	return cmd
}

func config(defect string) conformance.Config {
	secret := func(id, key string, missing bool) conformance.Instance {
		return conformance.Instance{Service: "secrets", ID: id, Config: conformance.Values{"key": key}, Missing: missing}
	}
	return conformance.Config{
		Binary: fake, Env: []string{"FAKE_DEFECT=" + defect}, Cycles: 40,
		Plugin: conformance.Values{
			"token": "sesame-open", "server": []any{map[string]any{"address": "10.0.0.1"}},
			"backup": map[string]any{"b": map[string]any{"address": "10.0.0.2", "tags": []string{"live"}}},
		},
		Instances: []conformance.Instance{
			secret("z", "first", false), secret("a", "second", false), secret("gone", "gone", true),
			{Service: "hooks", ID: "h", Config: conformance.Values{"level": 4}},
		},
	}
}

func check(t *testing.T, c conformance.Config) []conformance.Result {
	t.Helper()
	rs, err := conformance.Check(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return rs
}

func failures(rs []conformance.Result) (ids []string) {
	for _, r := range rs {
		if r.Outcome == conformance.Fail {
			ids = append(ids, r.Rule)
		}
	}
	return ids
}

// What keeps the contract passes every rule, and none of them has nothing to look at.
func TestGoodFakePassesAll(t *testing.T) {
	t.Parallel()
	for _, r := range check(t, config("")) {
		if r.Rule == "base/other-user" && os.Geteuid() != 0 {
			continue // only root can be somebody else
		}
		if r.Outcome != conformance.Pass {
			t.Error(r)
		}
	}
}

// A plugin may be one that is kept.
func TestWarmFakePassesAll(t *testing.T) {
	t.Parallel()
	for _, r := range check(t, config("warm")) {
		if r.Outcome == conformance.Fail {
			t.Error(r)
		}
	}
}

// bites has for each rule the defects that break it, and what the failure must say: one
// of several, behind |, where it depends on how quick the machine is.
var bites = []struct{ rule, defect, says string }{
	{"base/handshake", "noise", `"loading modules", which is no handshake`},
	{"base/handshake", "tcp", "it listens on tcp"},
	{"base/handshake", "socket elsewhere", "PLUGIN_UNIX_SOCKET_DIR="},
	{"base/by-hand", "no help", "segmentation fault"},
	{"base/by-hand", "exit 0 by hand", "exit status 0"},
	{"base/flags", "other version", `"fake 9\n"`},
	{"base/bare", "wants HOME", "HOME is not set"},
	{"base/long-path", "long name", "invalid argument"},
	{"base/describe", "no Info", "Unimplemented"},
	{"base/info", "version 1.0-beta", `in version "1.0-beta"`},
	{"base/schema", "no description", "level has no description"},
	{"base/schema", "default out of bounds", "its default is refused: Number too large"},
	{"base/pure", "counts calls of Info", "two calls of Info"},
	{"base/pure", "Info has the pid", "Info in two processes"},
	{"base/configure", "refuses its configuration", "the server is down"},
	{"base/wrong-values", "checks nothing", "backup.tags: it is none of [test live], and Configure answers OK"},
	{"base/wrong-values", "has no ConfigError", "has no ConfigError"},
	{"base/wrong-values", "points elsewhere", "path nowhere is nowhere in the schema"},
	{"base/garbage", "dies of garbage", "Unavailable"},
	{"base/deadline", "no deadline", "Fetch: OK"},
	{"base/unknown", "fails at unknown services", "Unknown: index out of range"},
	{"base/version-skew", "any version", "next major version: OK"},
	{"base/version-skew", "wants its own minor version", "higher minor version: FailedPrecondition"},
	{"base/health", "no state", "state 0"},
	{"base/concurrent", "not for many", "Fetch, as one of 32 callers: ResourceExhausted"},
	{"base/cancel", "deaf", "Fetch was given up, and asked for again: DeadlineExceeded|it still works on calls that nobody waits for"},
	{"base/growth", "leaks descriptors", "descriptors after 40 more cycles"},
	{"base/growth", "leaks memory", "MiB of memory after 40 more cycles"},
	{"base/growth", "leaks threads", "threads after 40 more cycles"},
	{"base/crash", "leaves a child", "is still running"},
	{"base/crash", "leaves a file", "is left in its run directory"},
	{"base/shutdown", "exit 3", "Shutdown: it ended with exit status 3"},
	{"base/shutdown", "ignores SIGTERM", "SIGTERM: it still runs"},
	{"base/lifeline", "no lifeline", "still runs"},
	{"base/warm", "warm,ends with its host", "it ended with the lifeline"},
	{"base/warm", "warm,ends when alone", "after its last connection"},
	{"base/warm", "warm,stays for ever", "it still runs"},
	{"base/warm", "warm,refuses later hosts", "connecting once more"},
	{"base/warm", "stays whatever it is", "it outlives the lifeline"},
	{"base/other-user", "any user", "user 65534 is served"},
	{"base/other-process", "any process", "LIFETIME_ONE_SHOT another process is served"},
	{"base/other-process", "warm but alone", "LIFETIME_WARM_OK another process is refused"},
	{"secrets/fetch", "in its own order", `"z" was asked for in place 0, and "a" came`},
	{"secrets/fetch", "lost one", "NotFound: no such secret"},
	{"secrets/repeat", "fetches again", "the second answer differs"},
	{"secrets/unknown-instance", "fails at unknown instances", "Unknown: map entry not found"},
	{"secrets/optional", "never absent", `"gone", optional: NotFound`},
	{"secrets/confidential", "value in its error", "a value is in the error of Fetch"},
	{"secrets/confidential", "value in its log", "a value is in what it prints"},
	{"secrets/confidential", "logs its token", "a value is in what it prints"},
	{"secrets/confidential", "value in a child's arguments", "a value is in the arguments"},
	{"secrets/undumpable", "dumpable", "/mem belongs to user"},
	{"secrets/revoke", "revokes once", "again, in process 1: NotFound"},
	{"secrets/renew", "renews anything", "OK"},
	{"hooks/describe", "subscribes to everything", "which are no boundaries"},
	{"hooks/describe", "subscribes to nothing", "it subscribes to nothing"},
	{"hooks/answers", "fails at POST_FS", "POST_FS: FailedPrecondition"},
	{"hooks/repeat", "decides again", "PRE_EXEC: the second answer differs"},
	{"hooks/post", "mutates at POST_FS", "POST_FS: "},
	{"hooks/post", "vetoes the end", `STOPPED: veto "never"`},
	{"hooks/cleanup", "cleans up once", "clean already"},
	{"hooks/unknown-boundary", "fails at unknown boundaries", "boundary 63: Unknown: index out of range"},
	// What breaks two rules, and is the reason that they are two.
	{"base/shutdown base/lifeline", "socket stays", "is still there"},
}

func TestEveryRuleBites(t *testing.T) {
	for _, b := range bites {
		t.Run(b.defect, func(t *testing.T) {
			t.Parallel()
			if b.rule == "base/other-user" && os.Geteuid() != 0 {
				t.Skip("only root can be another user") //nolint:forbidigo // testutil is of another module
			}
			c := config(b.defect)
			if b.rule != "base/growth" {
				c.Cycles = 5
			}
			rs := check(t, c)
			if got := strings.Join(failures(rs), " "); got != b.rule {
				t.Errorf("%q failed, and %s should", got, b.rule)
			}
			for _, r := range rs {
				says := func(s string) bool { return strings.Contains(r.Got, s) }
				if r.Outcome == conformance.Fail && !slices.ContainsFunc(strings.Split(b.says, "|"), says) {
					t.Errorf("it does not say %q:\n%s", b.says, r)
				}
				if r.Outcome == conformance.Fail && (r.Want == "" || r.Remedy == "") {
					t.Errorf("no expectation or no remedy: %+v", r)
				}
			}
		})
	}
}

func TestEveryRuleHasItsFake(t *testing.T) {
	k, err := conformance.New(config(""))
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	for _, r := range k.Rules(t.Context()) {
		if !slices.ContainsFunc(bites, func(b struct{ rule, defect, says string }) bool { return b.rule == r.ID }) {
			t.Errorf("no fake breaks %s alone", r.ID)
		}
	}
}
