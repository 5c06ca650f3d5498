package attack

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

// enclosed is a sandbox that runsc runs, and that lasts.
type enclosed struct {
	l     *lab
	cmd   *exec.Cmd
	out   string
	parts map[string]int // its processes, by what they were started as
	all   []int          // of all its processes but init, outside
}

const (
	secretCanary = "CANARY-OF-THE-SECRET"
	callerCanary = "CANARY-OF-THE-CALLER"
	jobCanary    = "CANARY-OF-THE-JOB"
)

// enclose runs a shell under gVisor, which prints what it has and waits.
func (l *lab) enclose(t *testing.T, j job, args ...string) *enclosed {
	t.Helper()
	host := filepath.Join(l.Dir, "host.hcl")
	write(t, host, fmt.Sprintf("plugin \"env\" {\n  user = %q\n  env = { STORED = %q }\n  config {\n    allow = [\"STORED\"]\n  }\n}\n", l.Name, secretCanary), 0o644)
	j = j.with("  runtime \"gvisor\" {}\n  env = { OF_THE_JOB = %q }", jobCanary)
	j = j.with("  secret \"s\" {\n    provider = \"env\"\n    env = \"OF_THE_STORE\"\n    config {\n      name = \"STORED\"\n    }\n  }")
	c := l.command(context.WithoutCancel(t.Context()), t, j)
	c.Args = append(c.Args[:2:2], append(append([]string{"-host-config", host}, args...), c.Args[2:]...)...)
	c.Env = append(c.Env, "OF_THE_CALLER="+callerCanary)
	slash, err := os.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	defer slash.Close()
	c.ExtraFiles = []*os.File{slash, slash, slash}
	var errOut bytes.Buffer
	c.Stderr = &errOut
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Process.Signal(unix.SIGTERM)
		if err := c.Wait(); c.ProcessState.ExitCode() != 128+int(unix.SIGTERM) {
			t.Errorf("the sandbox ends with %v: %s", err, errOut.String())
		}
	})
	e := &enclosed{l: l, cmd: c}
	buf := make([]byte, 4096)
	for !strings.Contains(e.out, "UP\n") {
		n, err := out.Read(buf)
		e.out += string(buf[:n])
		if err != nil {
			t.Fatalf("the sandbox did not come up: %v: %q %s", err, e.out, errOut.String())
		}
	}
	go func() { _, _ = io.Copy(io.Discard, out) }()
	e.look(t)
	return e
}

// waiting is a shell's script that shows the environment and the arguments first.
const waiting = `env; printf '%s\n' "$0" "$@"; pwd; echo UP; sleep 60`

// look finds the processes.
func (e *enclosed) look(t *testing.T) {
	t.Helper()
	e.parts, e.all = map[string]int{}, nil
	below := []int{e.cmd.Process.Pid}
	for len(below) > 0 {
		at := below[0]
		below = below[1:]
		for _, task := range strings.Fields(readAll(t, fmt.Sprintf("/proc/%d/task/*/children", at))) {
			pid, err := strconv.Atoi(task)
			if err != nil {
				t.Fatal(err)
			}
			below = append(below, pid)
			name, _, _ := strings.Cut(readAll(t, fmt.Sprintf("/proc/%d/cmdline", pid)), "\x00")
			if e.parts[name] == 0 {
				e.parts[name] = pid
			}
			if name != "nucleus-init" && e.parts["nucleus-init"] != 0 {
				e.all = append(e.all, pid)
			}
		}
	}
	if e.parts["runsc"] == 0 || e.parts["runsc-sandbox"] == 0 || e.parts["runsc-gofer"] == 0 {
		t.Fatalf("no sandbox of gVisor's, but %v", e.parts)
	}
}

// readAll gives the content of all files of a pattern; what has gone meanwhile has none.
func readAll(t *testing.T, pattern string) string {
	t.Helper()
	paths, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	var all []byte
	for _, p := range paths {
		b, _ := os.ReadFile(p)
		all = append(append(all, b...), ' ')
	}
	return string(all)
}

// Neither the caller's variables nor the job's are the runtime program's, and a secret
// is nowhere that another user looks: the bundle holds it, and the bundle is in the
// program's own root alone.
func TestRuntimeProgramHoldsNothing(t *testing.T) {
	testutil.Needs(t, testutil.Root)
	asEach(t, func(t *testing.T, l *lab) {
		e := l.enclose(t, job{command: []string{"/bin/sh", "-c", waiting}})
		for _, canary := range []string{secretCanary, jobCanary} {
			if !strings.Contains(e.out, canary) {
				t.Errorf("no teeth: the workload has not got %s: %q", canary, e.out)
			}
		}
		if !strings.Contains(readAll(t, fmt.Sprintf("/proc/%d/environ", e.cmd.Process.Pid)), callerCanary) {
			t.Error("no teeth: the caller's variable is not in the supervisor's environment")
		}
		for _, pid := range e.all {
			for _, file := range []string{"environ", "cmdline"} {
				text := readAll(t, fmt.Sprintf("/proc/%d/%s", pid, file))
				for _, canary := range []string{secretCanary, callerCanary, jobCanary} {
					if strings.Contains(text, canary) {
						t.Errorf("%s is in the %s of %d: %q", canary, file, pid, text)
					}
				}
			}
		}
		root := fmt.Sprintf("/proc/%d/root", e.parts["runsc"])
		if !strings.Contains(readAll(t, root+"/bundle/config.json"), secretCanary) {
			t.Error("no teeth: the bundle does not hold the secret")
		}
		other := testutil.User(t)
		if other.UID == l.UID {
			t.Fatalf("%s is no other user", other.Name)
		}
		for _, pid := range append(e.all, e.parts["nucleus-init"]) {
			at := fmt.Sprintf("/proc/%d/", pid)
			for _, path := range []string{"root/bundle/config.json", "root/bundle", "root/state", "root/rootfs", "environ", "fd", "mem", "maps"} {
				if out, err := other.Command("/bin/sh", "-c", `head -c 1 "$0" || ls -A "$0/"`, at+path).Output(); err == nil && len(out) > 0 {
					t.Errorf("%s reads %s%s: %q", other.Name, at, path, out)
				}
			}
		}
		if out, err := other.Command("/bin/sh", "-c", `head -c 1 "$0"`, fmt.Sprintf("/proc/%d/cmdline", e.parts["runsc"])).Output(); err != nil || len(out) == 0 {
			t.Errorf("no teeth: %s reads nothing at all of the process: %v", other.Name, err)
		}
		for _, dir := range []string{os.TempDir(), l.Dir} {
			if out, err := exec.Command("grep", "-rlF", secretCanary, dir, "--include=*.json", "--include=*.jsonl").Output(); err == nil {
				t.Errorf("the secret is in files of the host: %s", out)
			}
		}
	})
}

// What has gVisor's kernel in its hands has what init would have given a workload: a
// user namespace's capabilities and no other, no new ones, a filter, and no descriptor of
// the host's.
func TestRuntimeProgramIsConfined(t *testing.T) {
	testutil.Needs(t, testutil.Root)
	asEach(t, func(t *testing.T, l *lab) {
		e := l.enclose(t, job{command: []string{"/bin/sh", "-c", waiting}})
		own := namespaces(t, os.Getpid())
		mounts := mountIDs(t, os.Getpid())
		if got := hostDescriptors(t, e.cmd.Process.Pid, mounts); len(got) == 0 {
			t.Error("no teeth: the supervisor has no descriptor of the host's")
		}
		for _, pid := range e.all {
			status := readAll(t, fmt.Sprintf("/proc/%d/status", pid))
			if status == " " {
				t.Errorf("process %d has gone", pid)
				continue
			}
			for _, want := range []string{"NoNewPrivs:\t1\n", "Seccomp:\t2\n"} {
				if !strings.Contains(status, want) {
					t.Errorf("process %d (%s): no %q in\n%s", pid, cmdline(t, pid), want, status)
				}
			}
			for ns, id := range namespaces(t, pid) {
				if id == own[ns] && ns != "time" {
					t.Errorf("process %d (%s) is in the host's %s namespace", pid, cmdline(t, pid), ns)
				}
			}
			for _, fd := range hostDescriptors(t, pid, mounts) {
				t.Errorf("process %d (%s) has a descriptor of the host's: %s", pid, cmdline(t, pid), fd)
			}
		}
	})
}

func cmdline(t *testing.T, pid int) string {
	return strings.ReplaceAll(readAll(t, fmt.Sprintf("/proc/%d/cmdline", pid)), "\x00", " ")
}

// namespaces gives those of a process.
func namespaces(t *testing.T, pid int) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, ns := range []string{"user", "mnt", "pid", "ipc", "uts", "net", "time"} {
		id, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, ns))
		if err != nil {
			t.Fatal(err)
		}
		out[ns] = id
	}
	return out
}

var mountID = regexp.MustCompile(`(?m)^mnt_id:\s*(\d+)$`)

func mountIDs(t *testing.T, pid int) map[string]bool {
	t.Helper()
	out := map[string]bool{}
	for line := range strings.Lines(readAll(t, fmt.Sprintf("/proc/%d/mountinfo", pid))) {
		if id, _, ok := strings.Cut(line, " "); ok {
			out[id] = true
		}
	}
	return out
}

// hostDescriptors are those of files of the host's mounts, but for the input without
// content that the caller gave.
func hostDescriptors(t *testing.T, pid int, mounts map[string]bool) []string {
	t.Helper()
	var out []string
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		to, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, fd.Name()))
		if err != nil || !strings.HasPrefix(to, "/") || to == os.DevNull {
			continue
		}
		m := mountID.FindStringSubmatch(readAll(t, fmt.Sprintf("/proc/%d/fdinfo/%s", pid, fd.Name())))
		if m != nil && mounts[m[1]] {
			out = append(out, fd.Name()+" "+to)
		}
	}
	return out
}

// What a job, its caller and a further command say never becomes a word of the runtime
// program's command line.
func TestNoJobValueIsAFlag(t *testing.T) {
	testutil.Needs(t, testutil.Root)
	asEach(t, func(t *testing.T, l *lab) {
		const flag = "--network=host-injected"
		dir := l.dir(t, flag)
		j := job{command: []string{"/bin/sh", "-c", waiting, flag, "--debug-log=/injected"}}.
			with("  workdir = \"/%s\"\n  hostname = \"x--injected\"", flag).
			with("  volume \"v\" {\n    source = %q\n    target = \"/%s\"\n  }", dir, flag)
		e := l.enclose(t, j, "-name", "x--injected")
		for _, want := range []string{flag + "\n", "/" + flag + "\n", "--debug-log=/injected\n"} {
			if !strings.Contains(e.out, want) {
				t.Errorf("no teeth: the workload has not got %q: %q", want, e.out)
			}
		}
		further := l.Command("nucleus", "exec", "-state-root", l.state, "-env", "FURTHER="+flag, "-workdir", "/"+flag, "x--injected", "/bin/sh", "-c", "echo IN; sleep 60", flag)
		out, err := further.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := further.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() {
			_ = further.Process.Kill()
			_ = further.Wait()
		}()
		if _, err := io.ReadFull(out, make([]byte, 3)); err != nil {
			t.Fatalf("the further command does not run: %v", err)
		}
		before := len(e.all)
		e.look(t)
		if len(e.all) <= before {
			t.Error("no teeth: there is no process of the further command")
		}
		for _, pid := range e.all {
			if line := readAll(t, fmt.Sprintf("/proc/%d/cmdline", pid)); strings.Contains(line, "injected") {
				t.Errorf("a word of the job's is one of the program's: %q", line)
			}
		}
		for _, name := range []string{"--root=/x", "-platform"} {
			if r := l.outside(t, "nucleus", "run", "-state-root", l.state, "-name", name, "--", "/bin/true"); r.code != 125 {
				t.Errorf("a sandbox has the name %q: code %d", name, r.code)
			}
		}
	})
}

// The abstract sockets of the network namespace that gVisor opens sockets of, the host's
// own at worst, are none of the workload's.
func TestAbstractSocketsUnderGVisor(t *testing.T) {
	asEach(t, func(t *testing.T, l *lab) {
		name := l.abstractSockets(t)
		j := l.attack("abstract", name, name+"-d").with("  runtime \"gvisor\" {}\n  network \"host\" {}")
		held(t, l.attacked(t, j), "abstract")
	})
}
