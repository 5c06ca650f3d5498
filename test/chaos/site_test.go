package chaos

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

// patience bounds every command of these tests.
const patience = 30 * time.Second

// site is one account with a state root of its own.
type site struct {
	t      *testing.T
	who    *testutil.Account
	root   string
	limits bool // resource limits can be had
	before testutil.Census
	scope  testutil.Scope
	host   string // the host configuration, which plugins need
}

// sites runs a test once for each kind of account: root or the current user
// with subordinate ids, and a user with one id.
func sites(t *testing.T, test func(*site)) {
	t.Helper()
	for _, kind := range []struct {
		name string
		make func(testing.TB) *testutil.Account
	}{{"self", testutil.Self}, {"subid", testutil.User}, {"plain", testutil.PlainUser}} {
		if kind.name == "self" && os.Geteuid() != 0 {
			continue // User is the same account
		}
		t.Run(kind.name, func(t *testing.T) { test(newSite(t, kind.make(t))) })
	}
}

func newSite(t *testing.T, who *testutil.Account) *site {
	t.Helper()
	s := &site{t: t, who: who, root: filepath.Join(who.RuntimeDir, "nucleus")}
	seats := s.plugins()
	s.scope = testutil.Scope{Binaries: []string{who.Bin}, Files: []string{s.root, seats}}
	// The first run makes the state root itself, which stays.
	if code, out := s.try("run", "--", "/bin/true"); code != 0 {
		t.Fatalf("a plain run: exit code %d: %s", code, out)
	}
	code, why := s.try("run", "-config", s.job("probe", "  command = [\"/bin/true\"]\n  resources { pids = 64 }\n"))
	s.limits = code == 0
	if who.UID == 0 && !s.limits {
		t.Fatalf("a job with a limit does not run as root: %s", why)
	}
	s.before = testutil.TakeCensus(t, s.scope)
	t.Cleanup(func() { s.nothingLeft("at the end of the test") })
	return s
}

// try runs nucleus to its end and gives the exit code and all that it printed.
func (s *site) try(args ...string) (int, string) {
	s.t.Helper()
	cmd := s.command("nucleus", args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	code := finish(s.t, cmd, cmd.Run())
	return code, out.String()
}

// finish gives the exit code of a command, -n if signal n ended it.
func finish(t *testing.T, cmd *exec.Cmd, err error) int {
	t.Helper()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s: %v", cmd, err)
	}
	ws := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if cmd.ProcessState.ExitCode() < 0 {
		return -int(ws.Signal())
	}
	return cmd.ProcessState.ExitCode()
}

// command prepares a command of the account with the site's state root.
func (s *site) command(name string, args ...string) *exec.Cmd {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	s.t.Cleanup(cancel)
	cmd := s.who.CommandContext(ctx, name, args...)
	cmd.Env = append(cmd.Env, "NUCLEUS_STATE_ROOT="+s.root)
	cmd.WaitDelay = 5 * time.Second // an orphan that holds the output must not hang the test
	return cmd
}

// job writes a job file and gives its path.
func (s *site) job(name, body string) string {
	s.t.Helper()
	dir := filepath.Join(s.who.Dir, "jobs")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		s.t.Fatal(err)
	}
	path := filepath.Join(dir, name+".hcl")
	if err := os.WriteFile(path, []byte("job \""+name+"\" {\n"+body+"}\n"), 0o644); err != nil {
		s.t.Fatal(err)
	}
	return path
}

// plugins writes a host configuration for the example plugin seats, which takes
// something outside the sandbox, and for a secrets provider. It gives the directory
// of the seats.
func (s *site) plugins() string {
	s.t.Helper()
	seats := filepath.Join(s.who.Home, "seats")
	s.host = filepath.Join(s.who.Home, "host.hcl")
	secret := filepath.Join(s.who.Home, "secret")
	examples, plugins := filepath.Join(s.who.Bin, "examples"), filepath.Join(s.who.Bin, "plugins")
	text := fmt.Sprintf("plugin_dirs = [%q, %q]\nplugin \"file\" {\n  user = %[3]q\n}\nplugin \"seats\" {\n  user     = %[3]q\n  writable = [%[4]q]\n  config {\n    dir   = %[4]q\n    seats = 100\n  }\n}\n",
		examples, plugins, s.who.Name, seats)
	if err := errors.Join(os.Mkdir(seats, 0o755), os.WriteFile(s.host, []byte(text), 0o644), os.WriteFile(secret, []byte("hunter2"), 0o600)); err != nil {
		s.t.Fatal(err)
	}
	for _, path := range []string{seats, s.host, secret} {
		s.who.Own(s.t, path)
	}
	return seats
}

const limits = "  resources {\n    memory = \"128MiB\"\n    cpus = 1\n    pids = 64\n  }\n"

// everything is a job that uses what leaves traces: limits, a context, a
// volume, a terminal, a layered workspace.
func (s *site) everything(command string) string {
	s.t.Helper()
	src, data := filepath.Join(s.who.Dir, "jobs", "src"), filepath.Join(s.who.Dir, "data")
	for _, dir := range []string{src, data} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			s.t.Fatal(err)
		}
	}
	for i := range 30 {
		if err := os.WriteFile(filepath.Join(src, strconv.Itoa(i)), bytes.Repeat([]byte("x"), 1000*i), 0o644); err != nil {
			s.t.Fatal(err)
		}
	}
	s.who.Own(s.t, src)
	s.who.Own(s.t, data)
	body := fmt.Sprintf("  command = [\"/bin/sh\", \"-c\", %q]\n  tty = true\n", command)
	if s.limits {
		body += limits
	}
	body += "  context {\n    source = \"./src\"\n    target = \"/context\"\n    method = \"copy\"\n    verify = true\n  }\n" +
		"  volume \"data\" {\n    source = \"" + data + "\"\n    target = \"/data\"\n    read_only = false\n  }\n" +
		"  workspace {\n    path = \"./src\"\n    mode = \"overlay\"\n  }\n"
	return s.job("everything", body)
}

// gc runs until nothing is left, since the lock of a killed supervisor may
// live for a moment in a child that it was just making.
func (s *site) gc(when string) {
	s.t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for {
		if code, out := s.try("gc", "-host-config", s.host); code != 0 {
			s.t.Fatalf("%s: gc: exit code %d: %s", when, code, out)
		}
		left := s.left()
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("%s, then gc: left behind:\n  %s", when, strings.Join(left, "\n  "))
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// nothingLeft is for an end that needs no gc.
func (s *site) nothingLeft(when string) {
	s.t.Helper()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		left := s.left()
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			s.t.Errorf("%s: left behind:\n  %s", when, strings.Join(left, "\n  "))
			return
		}
	}
}

// left is what exists that did not before.
func (s *site) left() []string {
	s.t.Helper()
	reapAdopted(s.t)
	var out []string
	for _, l := range s.before.Diff(testutil.TakeCensus(s.t, s.scope)) {
		if path, ok := strings.CutPrefix(l, "cgroup "); ok && ownGroup != "" && !strings.Contains(path, "/"+ownGroup+"/") {
			continue // made by somebody else on this machine
		}
		out = append(out, l)
	}
	return out
}

// reapAdopted collects the inits that a killed supervisor left to us, and the
// supervisors of detached sandboxes, which lead a session each: the census made this
// process a subreaper.
func reapAdopted(t *testing.T) {
	t.Helper()
	for _, p := range processes(t) {
		if p.parent == os.Getpid() && p.state == "Z" && (p.session == p.pid || p.name == "nucleus-init" || strings.Trim(p.name, "0123456789") == "") {
			_, _ = unix.Wait4(p.pid, nil, unix.WNOHANG, nil)
		}
	}
}

type proc struct {
	pid, parent, session int
	state, name          string
}

func processes(t *testing.T) []proc {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	var out []proc
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err != nil {
			continue // gone
		}
		open, end := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
		f := strings.Fields(string(stat[end+1:]))
		parent, err := strconv.Atoi(f[1])
		session, serr := strconv.Atoi(f[3])
		if err := errors.Join(err, serr); err != nil {
			t.Fatalf("%s: %v", stat, err)
		}
		out = append(out, proc{pid: pid, parent: parent, session: session, state: f[0], name: string(stat[open+1 : end])})
	}
	return out
}

// child finds a live child of pid by what it was started as, "" for any; 0 if
// there is none. Its command name would not do: that of an init that runs from
// a sealed copy is the number of a descriptor.
func child(t *testing.T, pid int, argv0 string) int {
	t.Helper()
	for _, p := range processes(t) {
		if p.parent != pid || p.state == "Z" {
			continue
		}
		if argv0 == "" {
			return p.pid
		}
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.pid))
		if name, _, _ := strings.Cut(string(b), "\x00"); err == nil && name == argv0 {
			return p.pid
		}
	}
	return 0
}

// failing is the build that dies at the failpoints, in the account's directory.
func (s *site) failing() string {
	s.t.Helper()
	built, err := failpointBuild()
	if err != nil {
		s.t.Fatal(err)
	}
	to := filepath.Join(s.who.Bin, "nucleus-failpoint")
	if err := os.WriteFile(to, built, 0o755); err != nil {
		s.t.Fatal(err)
	}
	return to
}

// failpointBuild is built here, or was built where NUCLEUS_FAILPOINT says: a VM
// that is emulated takes minutes to compile.
var failpointBuild = sync.OnceValues(func() ([]byte, error) {
	if path := os.Getenv("NUCLEUS_FAILPOINT"); path != "" {
		return os.ReadFile(path)
	}
	dir, err := os.MkdirTemp("", "nucleus-failpoint-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	out := filepath.Join(dir, "nucleus")
	cmd := exec.Command("go", "build", "-tags", "failpoint,plugins,grpcnotrace", "-trimpath", "-o", out, "../../cmd/nucleus")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%s: %w\n%s", cmd, err, b)
	}
	return os.ReadFile(out)
})

const hooks = `  hook "createRuntime" { command = ["/bin/true"] }
  hook "createContainer" { command = ["/bin/true"] }
  hook "startContainer" { command = ["/bin/true"] }
  hook "poststart" { command = ["/bin/true"] }
  hook "poststop" { command = ["/bin/true"] }
`

// jobs are runs, by what they use.
func (s *site) jobs(command string) map[string][]string {
	s.t.Helper()
	quoted := fmt.Sprintf("  command = [\"/bin/sh\", \"-c\", %q]\n", command)
	all := map[string][]string{
		"plain":      {"run", "--", "/bin/sh", "-c", command},
		"terminal":   {"run", "-config", s.job("terminal", quoted+"  tty = true\n")},
		"everything": {"run", "-config", s.everything(command)},
		"hooks":      {"run", "-config", s.job("hooks", quoted+hooks)},
		"network":    {"run", "-host-config", s.host, "-config", s.job("network", quoted+"  network \"netuserspace\" {\n    publish {\n      host      = 47080\n      container = 80\n    }\n  }\n")},
		"plugins": {"run", "-host-config", s.host, "-config", s.job("plugins", quoted+"  plugin_hook \"seats\" {}\n"+
			"  secret \"a\" {\n    provider = \"file\"\n    config {\n      path = \""+filepath.Join(s.who.Home, "secret")+"\"\n    }\n  }\n")},
	}
	if s.limits {
		all["limits"] = []string{"run", "-config", s.job("limits", quoted+limits)}
	}
	return all
}

// tryWith runs a build of nucleus with one more variable in its environment.
func (s *site) tryWith(path, variable string, args ...string) (int, string) {
	s.t.Helper()
	cmd := s.command(path, args...)
	cmd.Env = append(cmd.Env, variable)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	code := finish(s.t, cmd, cmd.Run())
	return code, out.String()
}

// quiet waits until no process of the site is left: what is then in the state
// root is dead for certain.
func (s *site) quiet() {
	s.t.Helper()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		n := 0
		for _, l := range s.left() {
			if strings.HasPrefix(l, "process ") {
				n++
			}
		}
		if n == 0 {
			return
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("%d processes outlive their supervisor:\n  %s", n, strings.Join(s.left(), "\n  "))
		}
	}
}

// dead lists the sandboxes in the state root.
func (s *site) dead() []string {
	s.t.Helper()
	entries, err := os.ReadDir(filepath.Join(s.root, "sandboxes"))
	if err != nil {
		s.t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}
