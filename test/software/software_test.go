// Package software runs real programs in the default sandbox, as root and as an
// ordinary user: what a policy refuses by mistake shows here. Each file of
// testdata is one program's job with the workspace that it works in.
package software

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/tools/txtar"

	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

// patience is what one program may take on a busy host.
const patience = 2 * time.Minute

func TestSoftware(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no software to try: %v", err)
	}
	var suite []software
	for _, file := range files {
		suite = append(suite, parse(t, file))
	}
	asEach(t, func(t *testing.T, h host) {
		for _, s := range suite {
			t.Run(s.name, func(t *testing.T) { h.try(t, s) })
		}
	})
}

// asEach runs a test as root and as an ordinary user with subordinate ids; as
// an ordinary user, as that one.
func asEach(t *testing.T, f func(t *testing.T, h host)) {
	t.Helper()
	testutil.Needs(t, testutil.UserNS)
	if os.Geteuid() == 0 {
		t.Run("root", func(t *testing.T) { f(t, newHost(t, testutil.Self(t))) })
	}
	t.Run("user", func(t *testing.T) { f(t, newHost(t, testutil.User(t))) })
}

// host is the machine as one account sees it.
type host struct {
	*testutil.Account
	state string
}

func newHost(t *testing.T, a *testutil.Account) host {
	t.Helper()
	h := host{Account: a, state: filepath.Join(a.Dir, "state")}
	if err := os.Mkdir(h.state, 0o700); err != nil {
		t.Fatal(err)
	}
	a.Own(t, h.state)
	return h
}

// scope is what may not be left behind.
func (h host) scope() testutil.Scope {
	return testutil.Scope{Binaries: []string{h.Bin}, Files: []string{filepath.Join(h.state, "sandboxes"), filepath.Join(h.state, "names")}}
}

// software is a program, or a few that belong together, with a job to try it by.
type software struct {
	name, job string
	limits    string // a resources block, for accounts that may have it enforced
	needs     []testutil.Requirement
	toolchain string // "go", "cargo": a directory of the host that the job wants to be told of
	want      []*regexp.Regexp
	dialogue  []exchange // what is said on the terminal, for a job with tty = true
	workspace []txtar.File
}

// parse reads one file of testdata. README.md tells what it is made of.
func parse(t *testing.T, file string) software {
	t.Helper()
	archive, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	s := software{name: strings.TrimSuffix(filepath.Base(file), ".txtar")}
	for line := range strings.Lines(string(archive.Comment)) {
		words := strings.Fields(line)
		switch {
		case len(words) == 0 || strings.HasPrefix(words[0], "#"):
		case words[0] == "needs":
			for _, w := range words[1:] {
				s.needs = append(s.needs, installed(w))
			}
		case words[0] == "toolchain" && len(words) == 2:
			s.toolchain = words[1]
		default:
			t.Fatalf("%s: what is %q?", file, line)
		}
	}
	for _, f := range archive.Files {
		switch f.Name {
		case "job.hcl":
			s.job = string(f.Data)
		case "limits":
			s.limits = string(f.Data)
		case "want":
			for line := range strings.Lines(string(f.Data)) {
				s.want = append(s.want, regexp.MustCompile("(?m)^"+strings.TrimSuffix(line, "\n")+"\r?$"))
			}
		case "dialogue":
			if s.dialogue, err = parseDialogue(string(f.Data)); err != nil {
				t.Fatalf("%s: %v", file, err)
			}
		default:
			s.workspace = append(s.workspace, f)
		}
	}
	if s.job == "" || len(s.want) == 0 {
		t.Fatalf("%s: a job and what is wanted of it must be there", file)
	}
	return s
}

// installed is a program where sandboxes look for it, which is not the test's own PATH.
func installed(name string) testutil.Requirement {
	return testutil.Requirement{Name: "program-" + name, Probe: func() testutil.Finding {
		for _, pattern := range []string{"/usr/local/bin", "/usr/bin", "/usr/local/sbin", "/usr/sbin", "/usr/lib/git-core", "/usr/lib/postgresql/*/bin"} {
			found, err := filepath.Glob(filepath.Join(pattern, name))
			if err != nil {
				return testutil.Finding{State: testutil.Unknown, Why: err.Error()}
			}
			if slices.ContainsFunc(found, executable) {
				return testutil.Finding{State: testutil.Available}
			}
		}
		return testutil.Finding{State: testutil.Missing, Why: "no " + name + " in the host's toolchain"}
	}}
}

func executable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o111 != 0
}

// try runs the software's job and looks at what came of it.
func (h host) try(t *testing.T, s software) {
	t.Helper()
	testutil.Needs(t, s.needs...)
	testutil.NoLeaks(t, h.scope())
	dir := filepath.Join(h.Home, s.name)
	work := filepath.Join(dir, "work")
	if err := os.MkdirAll(work, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, f := range s.workspace {
		path := filepath.Join(work, f.Name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, f.Data, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// Beside the workspace: within it the job could rewrite its own next run.
	if err := os.WriteFile(filepath.Join(dir, "job.hcl"), []byte(h.limited(s)), 0o644); err != nil {
		t.Fatal(err)
	}
	h.Own(t, dir)

	args := []string{"run", "-config", "job.hcl"}
	if s.toolchain != "" {
		args = append(args, "-var", s.toolchain+"="+h.findToolchain(t, s.toolchain))
	}
	ctx, cancel := context.WithTimeout(t.Context(), testutil.Patient(patience))
	defer cancel()
	var c *exec.Cmd
	if s.dialogue != nil {
		testutil.Needs(t, installed("script"))
		c = h.CommandContext(ctx, "script", "-qec", h.Bin+"/nucleus "+strings.Join(args, " "), "/dev/null")
		c.Env = append(c.Env, "TERM=xterm", "SHELL=/bin/sh")
	} else {
		c = h.CommandContext(ctx, "nucleus", args...)
	}
	c.Dir = dir
	c.Env = append(c.Env, "NUCLEUS_STATE_ROOT="+h.state)
	c.WaitDelay = 5 * time.Second
	r := finish(t, c, s.dialogue)
	if r.code != 0 {
		t.Errorf("exit code %d", r.code)
	}
	for _, want := range s.want {
		if !want.MatchString(r.out) {
			t.Errorf("the output has no line like %s", want)
		}
	}
	if t.Failed() {
		t.Logf("output:\n%s\nerrors:\n%s", tail(r.out), tail(r.err))
	}
}

// limited gives the job, with limits unless the account is one that cannot set
// any: an ordinary user without a delegated control group.
func (h host) limited(s software) string {
	if s.limits == "" || h.UID != os.Geteuid() {
		return s.job
	}
	for _, name := range []string{"memory", "cpu", "pids"} {
		if testutil.CgroupController(name).Probe().State != testutil.Available {
			return s.job
		}
	}
	return strings.TrimSuffix(s.job, "}\n") + s.limits + "}\n"
}

// result is how a command ended.
type result struct {
	out, err string
	code     int
}

func finish(t *testing.T, c *exec.Cmd, dialogue []exchange) result {
	t.Helper()
	var errOut bytes.Buffer
	c.Stderr = &errOut
	term, err := converse(c, dialogue)
	if err != nil {
		t.Fatal(err)
	}
	err = c.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s: %v\n%s", c, err, errOut.String())
	}
	out, err := term.end()
	if err != nil {
		t.Errorf("on the terminal: %v", err)
	}
	return result{out, errOut.String(), c.ProcessState.ExitCode()}
}

// tail keeps a report readable: what went wrong stands at the end.
func tail(s string) string {
	const most = 8 << 10
	if len(s) > most {
		return fmt.Sprintf("(%d bytes left out)\n%s", len(s)-most, s[len(s)-most:])
	}
	return s
}
