package command

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/plugins/secrets/fault"
	"github.com/nucleus-runtime/nucleus/sdk/secrets"
)

func fetch(t *testing.T, c Command, i Instance) (secrets.Secret, error) {
	t.Helper()
	c.Name, i.Command = "c", "c"
	p, err := New(Config{Commands: []Command{c}})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Configure("i", i); err != nil {
		t.Fatal(err)
	}
	got, err := p.Fetch(t.Context(), secrets.Call{}, []secrets.Ref{{Name: "a", InstanceID: "i"}})
	if err != nil {
		return secrets.Secret{}, err
	}
	return got[0], nil
}

func sh(text string) Command {
	return Command{Argv: []string{"/bin/sh", "-c", text, "sh"}, Timeout: "1m"}
}

func TestFetchGivesTheOutput(t *testing.T) {
	c := sh(`echo "$@"; echo noise >&2`)
	c.Args = []string{"[a-z/]+", ".*"}
	i := Instance{Args: []string{"db/pass", "x; $(id)"}}
	if s, err := fetch(t, c, i); err != nil || string(s.Value) != "db/pass x; $(id)\n" {
		t.Errorf("%q, %v", s.Value, err)
	}
	i.Trim = true
	if s, err := fetch(t, c, i); err != nil || string(s.Value) != "db/pass x; $(id)" {
		t.Errorf("trimmed: %q, %v", s.Value, err)
	}
}

func TestTheEnvironmentIsTheOperators(t *testing.T) {
	t.Setenv("VAULT_CANARY", "s3cret")
	c := Command{Argv: []string{"/usr/bin/env"}, Env: map[string]string{"HOME": "/root"}}
	s, err := fetch(t, c, Instance{})
	if err != nil {
		t.Fatal(err)
	}
	if want := "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nLANG=C.UTF-8\nHOME=/root\n"; string(s.Value) != want {
		t.Errorf("environment %q, want %q", s.Value, want)
	}
}

func TestACommandCannotReadNorSignalItsProvider(t *testing.T) {
	// As a parent that forgot close-on-exec leaves one.
	fd, err := unix.Open("/", unix.O_PATH, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	s, err := fetch(t, sh(`cat; readlink /proc/self/fd/0; pwd; cut -d' ' -f6 /proc/$$/stat; echo $$; ls /proc/self/fd | wc -l`), Instance{})
	if err != nil {
		t.Fatal(err)
	}
	w := strings.Fields(string(s.Value))
	if len(w) != 5 || w[0] != "/dev/null" || w[1] != "/" || w[2] != w[3] {
		t.Errorf("stdin, directory, session, pid: %q", w)
	}
	if w[4] != "4" { // 0 to 2, and ls's own of the directory
		t.Errorf("%s descriptors", w[4])
	}
}

func TestATimeoutKillsTheGroup(t *testing.T) {
	note := filepath.Join(t.TempDir(), "pid")
	c := sh("sleep 300 & echo $! >" + note + "; echo s3cret; echo waits >&2; wait")
	c.Timeout = "300ms"
	began := time.Now()
	_, err := fetch(t, c, Instance{})
	if fault.Of(err) != fault.Unavailable || !strings.Contains(err.Error(), "not done within 300ms: waits; raise timeout") {
		t.Errorf("error %v", err)
	}
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("waited %s", took)
	}
	b, err := os.ReadFile(note)
	if err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Sscan(string(b), &pid); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		// A zombie is dead as well: this process need not be its reaper.
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if errors.Is(err, os.ErrNotExist) || strings.Contains(string(stat), ") Z ") {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	_ = unix.Kill(pid, unix.SIGKILL)
	t.Error("its child lives on")
}

func TestFetchTellsWhatIsWrong(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		code fault.Code
		want string
	}{
		"status":          {`echo "no such entry" >&2; exit 3`, fault.FailedPrecondition, `command "c": exit status 3: no such entry; run it by hand`},
		"signal":          {`kill -9 $$`, fault.FailedPrecondition, "signal: killed"},
		"too much":        {`head -c 1048577 /dev/zero; sleep 300`, fault.FailedPrecondition, "it prints more than 1 MiB"},
		"still running":   {`sleep 5 & echo s3cret`, fault.FailedPrecondition, "may not be whole"},
		"said as printed": {`echo s3cret; echo "wrong: s3cret" >&2; exit 1`, fault.FailedPrecondition, "exit status 1: wrong: ***;"},
		"said in short":   {`echo 7; echo "is 7 the pin" >&2; exit 1`, fault.FailedPrecondition, "exit status 1: is *** the pin;"},
		"said in parts":   {`printf 'user: bob\npass: hunter2x\n'; echo "hunter2x?" >&2; exit 1`, fault.FailedPrecondition, "exit status 1: ***?;"},
		"said at length":  {`echo s3cret; i=0; while [ $i -lt 2000 ]; do echo "$i s3cret" >&2; i=$((i+1)); done; exit 1`, fault.FailedPrecondition, "1999 ***"},
		"said, held":      {`setsid sh -c 'sleep 5' & echo s3cret; echo s3cret >&2; exit 1`, fault.FailedPrecondition, "exit status 1;"},
		"escapes":         {`printf '\033[31mred\n' >&2; exit 1`, fault.FailedPrecondition, "exit status 1: [31mred;"},
	} {
		began := time.Now()
		s, err := fetch(t, sh(c.text), Instance{})
		if took := time.Since(began); took > 30*time.Second {
			t.Errorf("%s: waited %s", name, took)
		}
		if err == nil || fault.Of(err) != c.code || !strings.Contains(err.Error(), c.want) || len(err.Error()) > tailShown+200 {
			t.Errorf("%s: %q, error %v; want %s: %s", name, s.Value, err, c.code, c.want)
		}
		if err != nil && strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: the error tells the value: %v", name, err)
		}
	}
}

func TestAValueOfTheWholeLengthIsTaken(t *testing.T) {
	if s, err := fetch(t, sh("head -c 1048576 /dev/zero"), Instance{}); err != nil || len(s.Value) != 1<<20 {
		t.Errorf("%d bytes, %v", len(s.Value), err)
	}
}

func TestTheProgramMustBeTrusted(t *testing.T) {
	dir := t.TempDir()
	script := filepath.Join(dir, "x")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho s3cret\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	c := Command{Argv: []string{script}, Timeout: "1m"}
	if s, err := fetch(t, c, Instance{}); err != nil || string(s.Value) != "s3cret\n" {
		t.Errorf("%q, %v", s.Value, err)
	}
	for path, mode := range map[string]os.FileMode{script: 0o775, dir: 0o757} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := fetch(t, c, Instance{}); fault.Of(err) != fault.PermissionDenied || !strings.Contains(err.Error(), "chmod go-w "+path) {
			t.Errorf("%s: %v", path, err)
		}
		if err := os.Chmod(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{"/nonexistent/x", dir} {
		if _, err := fetch(t, Command{Argv: []string{path}}, Instance{}); fault.Of(err) != fault.FailedPrecondition {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestJobsStayWithinTheirPatterns(t *testing.T) {
	p, err := New(Config{Commands: []Command{
		{Name: "pass", Argv: []string{"/usr/bin/pass", "show"}, Args: []string{"a|b", "[-a-z]+"}},
		{Name: "free", Argv: []string{"/bin/x"}, Args: []string{"-[a-z]"}, AllowOptions: true},
	}})
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range []Instance{{Command: "pass", Args: []string{"a", "x-y"}}, {Command: "free", Args: []string{"-v"}}} {
		if err := p.Configure("i", i); err != nil {
			t.Error(err)
		}
	}
	for _, c := range []struct {
		i    Instance
		code fault.Code
		attr string
	}{
		{Instance{Command: "sh"}, fault.PermissionDenied, "command"},
		{Instance{Command: "pass", Args: []string{"a"}}, fault.InvalidArgument, "args"},
		{Instance{Command: "pass", Args: []string{"a", "x", "y"}}, fault.InvalidArgument, "args"},
		{Instance{Command: "pass", Args: []string{"ax", "x"}}, fault.PermissionDenied, "args[0]"},
		{Instance{Command: "pass", Args: []string{"xb", "x"}}, fault.PermissionDenied, "args[0]"},
		{Instance{Command: "pass", Args: []string{"a\n", "x"}}, fault.PermissionDenied, "args[0]"},
		{Instance{Command: "pass", Args: []string{"a", "--x"}}, fault.PermissionDenied, "args[1]"},
		{Instance{Command: "pass", Args: []string{"a", "x\x00"}}, fault.InvalidArgument, "args[1]"},
	} {
		err := p.Configure("bad", c.i)
		var fe *fault.Error
		if !errors.As(err, &fe) || fe.Code != c.code || fe.Attr != c.attr {
			t.Errorf("%+v: %v", c.i, err)
		}
	}
	if _, err := p.Fetch(t.Context(), secrets.Call{}, []secrets.Ref{{Name: "a", InstanceID: "bad"}}); fault.Of(err) != fault.InvalidArgument {
		t.Errorf("error %v", err)
	}
}

func TestCommandsAreChecked(t *testing.T) {
	good := Command{Name: "a", Argv: []string{"/bin/x"}}
	for attr, cs := range map[string][]Command{
		`command["a"]`:         {good, good},
		`command[""]`:          {{Argv: []string{"/bin/x"}}},
		`command["a"].argv`:    {{Name: "a"}},
		`command["a"].argv[0]`: {{Name: "a", Argv: []string{"x"}}},
		`command["a"].args[1]`: {{Name: "a", Argv: []string{"/bin/x"}, Args: []string{"a", "("}}},
		`command["a"].env`:     {{Name: "a", Argv: []string{"/bin/x"}, Env: map[string]string{"A=B": ""}}},
		`command["a"].timeout`: {{Name: "a", Argv: []string{"/bin/x"}, Timeout: "5"}},
	} {
		_, err := New(Config{Commands: cs})
		var fe *fault.Error
		if !errors.As(err, &fe) || fe.Attr != attr {
			t.Errorf("%s: %v", attr, err)
		}
	}
}

func TestTheOutputPassesNoOtherBuffer(t *testing.T) {
	var o io.Writer = new(output)
	if _, ok := o.(io.ReaderFrom); !ok {
		t.Error("io.Copy would use a buffer of its own")
	}
	if _, err := o.Write([]byte("x")); err == nil {
		t.Error("written through a buffer")
	}
}
