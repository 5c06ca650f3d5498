// Package attack attacks sandboxes from inside, and from beside while they
// start, through the real binary, as root and as an ordinary user. An attack is
// judged by its effect, and has teeth: it is shown to succeed where the layer
// that should stop it is missing. README.md lists the classes.
package attack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nucleus-runtime/nucleus/internal/testutil"
	"github.com/nucleus-runtime/nucleus/test/attack/attacker"
)

// lab is where one identity is attacked.
type lab struct {
	*testutil.Account
	name     string
	attacker string // the hostile program, below tools
	tools    string // a directory to lend to sandboxes as /tools
	state    string
	jobs     int
}

// asEach runs an attack as root and as an ordinary user without any privilege
// set-up; as an ordinary user, as that one.
func asEach(t *testing.T, f func(t *testing.T, l *lab)) {
	t.Helper()
	if os.Geteuid() == 0 {
		t.Run("root", func(t *testing.T) { f(t, newLab(t, "root", testutil.Self(t))) })
		t.Run("user", func(t *testing.T) { f(t, newLab(t, "user", testutil.PlainUser(t))) })
		return
	}
	t.Run("user", func(t *testing.T) { f(t, newLab(t, "user", testutil.Self(t))) })
}

// asRoot is for what only root can set up.
func asRoot(t *testing.T, f func(t *testing.T, l *lab)) {
	t.Helper()
	testutil.Needs(t, testutil.Root)
	f(t, newLab(t, "root", testutil.Self(t)))
}

func newLab(t *testing.T, name string, a *testutil.Account) *lab {
	t.Helper()
	testutil.Needs(t, testutil.UserNS)
	l := &lab{Account: a, name: name, tools: filepath.Join(a.Dir, "tools"), state: filepath.Join(a.Dir, "state")}
	l.attacker = filepath.Join(l.tools, "attacker")
	program, err := builtAttacker()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{l.tools, l.state} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, l.attacker, string(program), 0o755)
	if err := os.Chmod(l.state, 0o700); err != nil {
		t.Fatal(err)
	}
	l.Own(t, l.state)
	scope := testutil.Scope{Binaries: []string{a.Bin, l.tools}, Files: []string{filepath.Join(l.state, "sandboxes"), filepath.Join(l.state, "names")}}
	before := testutil.TakeCensus(t, scope)
	t.Cleanup(func() {
		if left := remaining(t, before, scope); len(left) > 0 {
			t.Errorf("left behind:\n  %s", strings.Join(left, "\n  "))
		}
	})
	return l
}

// remaining gives what the attacks left. Tests of other packages may run
// sandboxes meanwhile: theirs come and go, or have processes, which a leaked
// group has not; a process of ours would be counted as one.
func remaining(t *testing.T, before testutil.Census, scope testutil.Scope) []string {
	t.Helper()
	var stayed []string
	for round, deadline := 0, time.Now().Add(testutil.Patient(4*time.Second)); time.Now().Before(deadline); round++ {
		now := before.Diff(testutil.TakeCensus(t, scope))
		if round == 0 {
			stayed = now
		}
		stayed = slices.DeleteFunc(stayed, func(s string) bool { return !slices.Contains(now, s) || populated(s) })
		if len(stayed) == 0 {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return stayed
}

// TestMain is the attacker too, by that name.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == "attacker" {
		attacker.Main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// populated tells of a group in a census whether anything runs in it.
func populated(line string) bool {
	path, ok := strings.CutPrefix(line, "cgroup ")
	if !ok {
		return false
	}
	b, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
	return err == nil && len(b) > 0
}

// builtAttacker builds the hostile program once per test process. Where there
// is no compiler, as in the VM, the test binary itself, which is static there,
// serves for it.
var builtAttacker = sync.OnceValues(func() ([]byte, error) {
	if _, err := exec.LookPath("go"); err != nil {
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		return os.ReadFile(self)
	}
	dir, err := os.MkdirTemp("", "nucleus-attacker-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "attacker")
	c := exec.Command("go", "build", "-trimpath", "-o", path, "./attacker/bin")
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("building the attacker: %w\n%s", err, out)
	}
	return os.ReadFile(path)
})

// result is how a command ended.
type result struct {
	out, err string
	code     int
}

// wins gives the attacks of one kind that succeeded.
func (r result) wins(attack string) []string {
	var out []string
	for line := range strings.SplitSeq(r.out, "\n") {
		if w, ok := strings.CutPrefix(strings.TrimRight(line, "\r"), "WON "+attack+" "); ok {
			out = append(out, w)
		}
	}
	return out
}

// all gives every success, whatever its kind.
func (r result) all() []string {
	var out []string
	for line := range strings.SplitSeq(r.out, "\n") {
		if w, ok := strings.CutPrefix(strings.TrimRight(line, "\r"), "WON "); ok {
			out = append(out, w)
		}
	}
	return out
}

// lines gives the rest of the lines that start with a word.
func (r result) lines(word string) []string {
	var out []string
	for line := range strings.SplitSeq(r.out, "\n") {
		if w, ok := strings.CutPrefix(strings.TrimRight(line, "\r"), word+" "); ok {
			out = append(out, w)
		}
	}
	return out
}

// job is what varies between the jobs of these tests.
type job struct {
	command  []string
	head     string // attributes and blocks of the job
	security string // within the block security
}

// toolsVolume lends the attacker's program, from where it may be executed.
func (l *lab) toolsVolume() string {
	return fmt.Sprintf("  workspace {\n    path = %q\n    mode = \"bind-ro\"\n    exec = true\n  }\n", l.tools)
}

// inside is the attacker's path in a sandbox with the tools.
const inside = "/workspace/attacker"

// attack makes the job of a sandbox in which the attacker runs.
func (l *lab) attack(args ...string) job {
	return job{command: append([]string{inside}, args...), head: l.toolsVolume()}
}

// with adds lines to the job.
func (j job) with(format string, args ...any) job {
	j.head += fmt.Sprintf(format, args...) + "\n"
	return j
}

func (j job) text() string {
	var b strings.Builder
	b.WriteString("job \"victim\" {\n  command = [")
	for i, a := range j.command {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%q", a)
	}
	b.WriteString("]\n" + j.head)
	if !strings.Contains(j.head, "resources {") {
		b.WriteString("  timeout = \"90s\"\n")
	}
	if j.security != "" {
		b.WriteString("  security {\n" + j.security + "  }\n")
	}
	b.WriteString("}\n")
	return b.String()
}

// weakened gives the job every layer off that a job file can switch off: all
// capabilities, a filter that allows everything, and Landlock rules that grant
// everything.
func (l *lab) weakened(t *testing.T, j job) job {
	t.Helper()
	profile := filepath.Join(l.Dir, "allow-all.json")
	write(t, profile, `{"defaultAction": "SCMP_ACT_ALLOW"}`, 0o644)
	var quoted []string
	for _, c := range capabilities {
		quoted = append(quoted, fmt.Sprintf("%q", c))
	}
	j.security = fmt.Sprintf("    capabilities {\n      keep = [%s]\n    }\n    seccomp {\n      profile = %q\n    }\n", strings.Join(quoted, ", "), profile)
	return j
}

var capabilities = []string{
	"CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP", "NET_BIND_SERVICE", "NET_ADMIN", "NET_RAW",
	"SYS_CHROOT", "SYS_PTRACE", "SYS_ADMIN", "SYS_RESOURCE", "MKNOD", "SYS_MODULE", "SYS_RAWIO", "SYS_BOOT", "SYS_TIME", "SYS_TTY_CONFIG", "SYSLOG", "AUDIT_CONTROL",
}

const patience = 100 * time.Second

// command prepares `nucleus run` of a job.
func (l *lab) command(ctx context.Context, t *testing.T, j job) *exec.Cmd {
	t.Helper()
	l.jobs++
	file := filepath.Join(l.Dir, fmt.Sprintf("job-%d.hcl", l.jobs))
	write(t, file, j.text(), 0o644)
	c := l.CommandContext(ctx, "nucleus", "run", "-state-root", l.state, "-config", file)
	c.WaitDelay = 5 * time.Second
	return c
}

// run runs a job to its end.
func (l *lab) run(t *testing.T, j job) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testutil.Patient(patience))
	defer cancel()
	return finish(t, l.command(ctx, t, j))
}

// attacked is run, and insists that the attack was carried out to its end:
// an attacker that never ran has not been stopped.
func (l *lab) attacked(t *testing.T, j job) result {
	t.Helper()
	r := l.run(t, j)
	if !strings.Contains(r.out, "DONE ") {
		t.Fatalf("the attack did not run to its end: exit code %d\n%s\n%s\n%s", r.code, r.out, r.err, j.text())
	}
	return r
}

// bare runs the attacker with fresh namespaces and none of the other layers:
// what it can do there is what a sandbox of namespaces alone would not stop.
// PID 1 there is a shell of the same user.
func (l *lab) bare(t *testing.T, args ...string) result {
	t.Helper()
	flags := []string{"--mount", "--pid", "--fork", "--mount-proc", "--ipc", "--uts", "--net"}
	if l.UID != 0 {
		flags = append(flags, "--user", "--map-root-user")
	}
	return l.unshared(t, flags, args...)
}

func (l *lab) unshared(t *testing.T, flags []string, args ...string) result {
	t.Helper()
	testutil.Needs(t, testutil.Program("unshare"))
	argv := append(flags, "--kill-child", "sh", "-c", `"$@"; exit $?`, "sh", l.attacker)
	return l.outside(t, "unshare", append(argv, args...)...)
}

// outside runs a program on the host as this identity.
func (l *lab) outside(t *testing.T, name string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testutil.Patient(patience))
	defer cancel()
	c := l.CommandContext(ctx, name, args...)
	c.WaitDelay = 5 * time.Second
	return finish(t, c)
}

func finish(t *testing.T, c *exec.Cmd) result {
	t.Helper()
	var out, errOut bytes.Buffer
	c.Stdout, c.Stderr = &out, &errOut
	err := c.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s: %v\n%s", c, err, errOut.String())
	}
	return result{out.String(), errOut.String(), c.ProcessState.ExitCode()}
}

// teeth fails the test if an attack did not succeed where it must.
func teeth(t *testing.T, r result, attack string, want ...string) {
	t.Helper()
	got := r.wins(attack)
	for _, w := range want {
		if !slices.ContainsFunc(got, func(g string) bool { return strings.HasPrefix(g, w) }) {
			t.Errorf("no teeth: %s %q did not succeed without the layer; what did: %q\n%s", attack, w, got, r.err)
		}
	}
	if len(want) == 0 && len(got) == 0 {
		t.Errorf("no teeth: %s did not succeed without the layer\n%s\n%s", attack, r.out, r.err)
	}
}

// held fails the test if anything of an attack succeeded.
func held(t *testing.T, r result, attack string) {
	t.Helper()
	if got := r.wins(attack); len(got) > 0 {
		t.Errorf("the attack succeeded: %s\n  %s", attack, strings.Join(got, "\n  "))
	}
}

func write(t testing.TB, path, content string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

// dir makes a directory of the identity's.
func (l *lab) dir(t testing.TB, name string) string {
	t.Helper()
	path := filepath.Join(l.Dir, name)
	if err := os.MkdirAll(path, 0o755); err != nil {
		t.Fatal(err)
	}
	l.Own(t, path)
	return path
}
