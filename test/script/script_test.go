// Package script runs the testscript files below this directory: what Nucleus
// does, seen through the real binary, as root and as an ordinary user.
package script

import (
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

func TestMain(m *testing.M) {
	if req := os.Getenv(probeVariable); req != "" {
		os.Exit(probeChild(req))
	}
	os.Exit(m.Run())
}

// TestScripts runs every script once as each of the identities: root and an
// ordinary user with subordinate ids when the test process is root, else as who
// it is. The scripts of plain/ run as a user without any privilege set-up.
func TestScripts(t *testing.T) {
	var identities []identity
	if os.Geteuid() == 0 {
		identities = append(identities, identity{name: "root", account: testutil.Self(t)})
	}
	// Emulation is slow, and in the VM the user has a pass of its own (vm -u).
	if os.Geteuid() != 0 || os.Getenv("NUCLEUS_VM") != "1" {
		identities = append(identities, identity{name: "user", account: testutil.User(t)})
	}
	if os.Geteuid() == 0 {
		identities = append(identities, identity{name: "plain", account: testutil.PlainUser(t)})
	}
	files, err := filepath.Glob("*/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	except := exceptions(t, os.Getenv(runtimeVariable))
	files = slices.DeleteFunc(files, func(f string) bool { return except[strings.TrimSuffix(f, ".txtar")] != "" })
	for _, id := range identities {
		id.prepare(t)
		t.Run(id.name, func(t *testing.T) {
			for dir, scripts := range byFolder(files) {
				if (dir == "plain") == (id.name == "plain") {
					t.Run(dir, func(t *testing.T) { id.run(t, dir, scripts) })
				}
			}
		})
	}
}

// identity is who the scripts of one pass run as.
type identity struct {
	name    string
	account *testutil.Account
	// wrappers is a directory of programs that give up root before they become
	// the program of their name; "" when the test process is who it tests.
	wrappers string
	probe    string
}

// wrapped are the programs that scripts may start; what these start is then
// started as the same user.
var wrapped = []string{"nucleus", "sh", "python3"}

func (id *identity) prepare(t *testing.T) {
	t.Helper()
	if os.Geteuid() != id.account.UID {
		id.wrappers = filepath.Join(id.account.Dir, "as-user")
		if err := os.Mkdir(id.wrappers, 0o755); err != nil {
			t.Fatal(err)
		}
		for _, name := range wrapped {
			text := fmt.Sprintf("#!/bin/sh\nPATH=%s exec setpriv --reuid %d --regid %d --clear-groups -- %s \"$@\"\n",
				id.path(), id.account.UID, id.account.GID, name)
			if err := os.WriteFile(filepath.Join(id.wrappers, name), []byte(text), 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	// The test binary itself lies where an ordinary user cannot reach it.
	id.probe = filepath.Join(id.account.Dir, "probe")
	if err := os.WriteFile(id.probe, program, 0o755); err != nil {
		t.Fatal(err)
	}
}

func (id *identity) path() string {
	return id.account.Bin + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
}

// testKey finds the script's own test among testscript's values.
type testKey struct{}

// serial is testing.T for testscript, which would run all scripts at once: the
// census after each counts what the host has.
type serial struct{ *testing.T }

func (s serial) Parallel() {}

func (s serial) Verbose() bool { return testing.Verbose() }

func (s serial) Run(name string, f func(testscript.T)) {
	s.T.Run(name, func(t *testing.T) { f(serial{t}) })
}

// scriptTime is what a script may take: some start dozens of sandboxes, on a busy
// host. It stays well below the time limit of the whole test.
var scriptTime = min(testutil.Patient(time.Minute), 4*time.Minute)

// byFolder gives the folders of sorted paths in their order, each with its files.
func byFolder(files []string) iter.Seq2[string, []string] {
	return func(yield func(string, []string) bool) {
		for len(files) > 0 {
			dir, n := filepath.Dir(files[0]), 1
			for n < len(files) && filepath.Dir(files[n]) == dir {
				n++
			}
			if !yield(dir, files[:n]) {
				return
			}
			files = files[n:]
		}
	}
}

func (id *identity) run(t *testing.T, dir string, scripts []string) {
	root := filepath.Join(id.account.Dir, "scripts", dir)
	if err := os.MkdirAll(root, 0o755); err != nil {
		t.Fatal(err)
	}
	p := testscript.Params{
		Files:               scripts,
		WorkdirRoot:         root,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		UpdateScripts:       os.Getenv("NUCLEUS_UPDATE") != "",
		Setup:               func(env *testscript.Env) error { return id.setup(env) },
		Condition:           id.condition,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"needs": id.needs, "exits": exits, "rootfs": id.rootfs, "await": await, "examples": id.examples,
		},
	}
	testscript.RunT(serial{t}, p)
}

// setup gives a script a home, a runtime directory and a state root of its own,
// and a work directory that belongs to the identity.
func (id *identity) setup(env *testscript.Env) error {
	t := env.T().(serial).T
	env.Values[testKey{}] = t
	state, home, run := filepath.Join(env.WorkDir, "state"), filepath.Join(env.WorkDir, "home"), filepath.Join(env.WorkDir, "run")
	for _, private := range []string{state, home, run} {
		if err := os.Mkdir(private, 0o700); err != nil {
			return err
		}
	}
	if err := os.Chmod(env.WorkDir, 0o755); err != nil {
		return err
	}
	if err := runAllBy(os.Getenv(runtimeVariable), env.WorkDir); err != nil {
		return err
	}
	id.account.Own(t, env.WorkDir)
	path := id.path()
	if id.wrappers != "" {
		path = id.wrappers + ":" + path
	}
	for key, value := range map[string]string{
		"PATH": path, "HOME": home, "XDG_RUNTIME_DIR": run, "NUCLEUS_STATE_ROOT": state, "STATE": state,
		"USER": id.account.Name, "LOGNAME": id.account.Name, "LANG": "C.UTF-8", "TMPDIR": home,
		"UID": fmt.Sprint(id.account.UID), "GID": fmt.Sprint(id.account.GID), "BIN": id.account.Bin, "IDENTITY": id.name,
	} {
		env.Setenv(key, value)
	}
	scope := testutil.Scope{Binaries: []string{id.account.Bin}, Files: []string{filepath.Join(state, "sandboxes"), filepath.Join(state, "names")}}
	before := testutil.TakeCensus(t, scope)
	// A script that waits for what never comes ends when its processes do.
	late := time.AfterFunc(scriptTime, func() {
		t.Errorf("the script took more than %s", scriptTime)
		end(before.Diff(testutil.TakeCensus(t, scope)))
	})
	env.Defer(func() {
		late.Stop()
		if left := remaining(t, before, scope); len(left) > 0 {
			t.Errorf("left behind:\n  %s", strings.Join(left, "\n  "))
			end(left)
		}
	})
	return nil
}

// end kills the processes among what a failed script left, so that they do not
// outlive the test run.
func end(left []string) {
	for _, entry := range left {
		var pid int
		if n, _ := fmt.Sscanf(entry, "process %d ", &pid); n == 1 && pid > 1 {
			_ = unix.Kill(pid, unix.SIGKILL) // it may be gone by now
		}
	}
}

// remaining gives what a script left. Tests of other packages may run sandboxes
// meanwhile: theirs come and go, a leak stays.
func remaining(t *testing.T, before testutil.Census, scope testutil.Scope) []string {
	t.Helper()
	var stayed map[string]bool
	for deadline := time.Now().Add(4 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		now := map[string]bool{}
		for _, left := range before.Diff(testutil.TakeCensus(t, scope)) {
			if stayed == nil || stayed[left] {
				now[left] = true
			}
		}
		if stayed = now; len(stayed) == 0 {
			return nil
		}
	}
	var out []string
	for left := range stayed {
		out = append(out, left)
	}
	return out
}
