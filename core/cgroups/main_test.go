package cgroups

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

// childEnv makes the test binary act as a process of a sandbox.
const childEnv = "NUCLEUS_CGROUPS_TEST_CHILD"

func init() {
	if role := os.Getenv(childEnv); strings.HasPrefix(role, "detect") || role == "headless" {
		runtime.LockOSThread() // to the process's first thread
	}
}

func TestMain(m *testing.M) {
	if role := os.Getenv(childEnv); role != "" {
		os.Exit(child(role))
	}
	if f, err := Detect(""); err == nil {
		sweep(f)
	}
	os.Exit(m.Run())
}

// child waits for a line on stdin before it does anything, so that it can be
// put into its group first.
func child(role string) int {
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		return 3
	}
	name, arg, _ := strings.Cut(role, ":")
	switch name {
	case "exit":
	case "sleep":
		time.Sleep(time.Minute)
	case "hog": // touch so many MiB
		mib, _ := strconv.Atoi(arg)
		var keep [][]byte
		for range mib {
			b := make([]byte, 1<<20)
			for i := 0; i < len(b); i += 4096 {
				b[i] = 1
			}
			keep = append(keep, b)
		}
		fmt.Println("touched", len(keep))
	case "spin": // burn CPU for so many milliseconds of wall time
		ms, _ := strconv.Atoi(arg)
		for end := time.Now().Add(time.Duration(ms) * time.Millisecond); time.Now().Before(end); {
		}
	case "storm": // fork for ever, ignoring what can be ignored
		return stormChild()
	case "hop": // fork and exit for ever: no process of it lives for long
		fmt.Println("hop")
		hop(uintptr(os.Getppid()))
	case "headless": // the first thread ends, another one ticks
		go tick()
		time.Sleep(10 * time.Millisecond)
		_, _, _ = unix.RawSyscall(unix.SYS_EXIT, 0, 0, 0)
	case "tick":
		tick()
	case "read": // read so many MiB of a device past the page cache
		dev, mib, _ := strings.Cut(arg, ",")
		return readDirect(dev, mib)
	case "nest": // take over the group as a nested manager would
		return nestChild(arg)
	case "selfmove":
		return selfMoveChild(arg)
	case "create": // make the group, then wait to be killed
		return createChild(arg)
	case "detect":
		return detectChild(arg)
	case "quiet":
		return quietChild(arg)
	default:
		return 4
	}
	return 0
}

// stormLimit is the largest pids limit under which a fork storm is let loose.
const stormLimit = 400

// stormChild would fill the host's table of processes if the code under test
// failed to limit it. So it looks at its limit itself before it begins, and
// every process of it ends once the test is gone.
func stormChild() int {
	if err := limitedPids(stormLimit); err != nil {
		fmt.Println("no storm:", err)
		return 30
	}
	fmt.Println("storm")
	signal.Ignore(syscall.SIGTERM, syscall.SIGHUP)
	script := fmt.Sprintf("exec >/dev/null 2>&1; f() { kill -0 %d || exit; f & f & sleep 0.05; }; while kill -0 %[1]d; do f; done", os.Getppid())
	_ = syscall.Exec("/bin/sh", []string{"sh", "-c", script}, []string{"PATH=/bin:/usr/bin"})
	return 31
}

// limitedPids fails unless the group of this process, or one above it, has a
// pids limit of at most n.
func limitedPids(n int) error {
	f, err := Detect("")
	if err != nil {
		return err
	}
	dir := f.Own[Pids]
	if f.Layout == V2 {
		dir = f.Own[unified]
	}
	for ; strings.HasPrefix(dir, "/sys/fs/cgroup/"); dir = filepath.Dir(dir) {
		b, err := os.ReadFile(filepath.Join(dir, "pids.max"))
		if err != nil {
			continue
		}
		if max, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && max <= n {
			return nil
		}
	}
	return fmt.Errorf("the pids limit is not at most %d", n)
}

// startStorm lets a fork storm loose in the group.
func startStorm(t *testing.T, g *Group) *proc {
	t.Helper()
	p := startIn(t, g, "storm")
	p.open(t)
	if got := p.line(t); got != "storm" {
		t.Fatal(got)
	}
	return p
}

// tick says so every 5 ms.
func tick() {
	for {
		fmt.Println("tick")
		time.Sleep(5 * time.Millisecond)
	}
}

// hop goes on in a child of a child, and so on, until the test is gone. Of Go's runtime
// there is nothing left in them but this thread.
func hop(test uintptr) {
	for {
		if _, _, err := unix.RawSyscall(unix.SYS_KILL, test, 0, 0); err != 0 {
			break
		}
		// At a limit it goes on where it is.
		if pid, _, err := unix.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0); pid != 0 && err == 0 {
			break
		}
	}
	_, _, _ = unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
}

func readDirect(dev, mib string) int {
	n, _ := strconv.Atoi(mib)
	fd, err := unix.Open(dev, unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		fmt.Println(err)
		return 5
	}
	buf, err := unix.Mmap(-1, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return 6
	}
	for range n {
		if _, err := unix.Read(fd, buf); err != nil {
			fmt.Println(err)
			return 7
		}
	}
	return 0
}

// proc is a child process behind its gate.
type proc struct {
	*exec.Cmd
	gate io.WriteCloser
	out  *bufio.Reader
}

func start(t *testing.T, role string, attr *syscall.SysProcAttr) *proc {
	t.Helper()
	return startWith(t, role, attr, os.Stderr)
}

// forks starts so many processes and tells how many it got. It is a shell's: a program in Go
// needs a thread of its own at any time, and ends where a limit on tasks refuses it one.
const forks = `
read _
n=0
while [ $n -lt $1 ] && command eval 'sleep 60 &' 2>/dev/null; do n=$((n+1)); done
echo forked $n
read _ # until the test has seen enough
`

func startWith(t *testing.T, role string, attr *syscall.SysProcAttr, stderr *os.File) *proc {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	if n, ok := strings.CutPrefix(role, "fork:"); ok {
		cmd = exec.Command("/bin/sh", "-c", forks, "sh", n)
	}
	cmd.Env = append(os.Environ(), childEnv+"="+role)
	cmd.SysProcAttr = attr
	cmd.Stderr = stderr
	gate, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("starting %s: %v", role, err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return &proc{cmd, gate, bufio.NewReader(out)}
}

func (p *proc) open(t *testing.T) {
	t.Helper()
	if _, err := io.WriteString(p.gate, "go\n"); err != nil {
		t.Fatal(err)
	}
}

func (p *proc) line(t *testing.T) string {
	t.Helper()
	s, err := p.out.ReadString('\n')
	if err != nil && s == "" {
		t.Fatalf("the child said nothing: %v", err)
	}
	return strings.TrimSpace(s)
}

// patient scales a time-out: emulated machines are slow.
func patient(d time.Duration) time.Duration {
	if os.Getenv("NUCLEUS_VM") != "" {
		return 20 * d
	}
	return d
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patient(d))
	t.Cleanup(cancel)
	return ctx
}

// needs returns the facts of this host if it has the controllers. It skips only
// if the probe says that they are not available, never if it could not tell.
func needs(t *testing.T, controllers ...string) Facts {
	t.Helper()
	f, err := Detect("")
	if err != nil {
		t.Fatal(err)
	}
	if !f.Usable() {
		skip(t, f.Why)
	}
	for _, c := range controllers {
		switch ft := f.Controllers[c]; ft.State {
		case Available:
		case Unavailable:
			skip(t, c+": "+ft.Why)
		default:
			t.Fatalf("%s: could not tell: %+v", c, ft)
		}
	}
	return f
}

func skip(t *testing.T, why string) {
	t.Helper()
	testutil.Skip(t, "cgroup-limits", why)
}

// newGroup makes a limited group that the test's end removes.
func newGroup(t *testing.T, f Facts, r *specs.LinuxResources) *Group {
	t.Helper()
	g, err := New(f, Spec{Name: fmt.Sprintf("%s-%d", testGroup("test"), time.Now().UnixNano()), Resources: r, Privileged: os.Geteuid() == 0})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Remove(within(t, 10*time.Second)); err != nil {
			t.Error(err)
		}
		absent(t, g.Record())
	})
	if err := g.Create(); err != nil {
		t.Fatal(err)
	}
	if err := g.Limit(); err != nil {
		t.Fatal(err)
	}
	return g
}

// absent fails if a directory of the record exists.
func absent(t *testing.T, r Record) {
	t.Helper()
	for _, dir := range r.Paths {
		if _, err := os.Lstat(dir); err == nil {
			t.Errorf("%s is left", dir)
		}
	}
}

// startIn starts a child in the group, through Attach or by cloning it there.
func startIn(t *testing.T, g *Group, role string) *proc {
	t.Helper()
	p := start(t, role, nil)
	if err := g.Attach(p.Process.Pid); err != nil {
		t.Fatal(err)
	}
	// Before start's own cleanup waits for the child: a test may end with the
	// group frozen, and v1 keeps a frozen process alive.
	t.Cleanup(func() {
		if err := g.Kill(within(t, 10*time.Second)); err != nil {
			t.Error(err)
		}
	})
	return p
}

func ptr[T any](v T) *T { return &v }

func pidsLimit(n int64) *specs.LinuxResources {
	return &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: &n}}
}

func memoryLimit(n int64) *specs.LinuxResources {
	return &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &n}}
}

// testGroup is the beginning of the name of a group that these tests make.
func testGroup(of string) string { return fmt.Sprintf("%s%s-%d", Prefix, of, os.Getpid()) }

// sweep removes what tests left that were killed: empty groups of theirs, below our own parents,
// with the number of a process that is gone.
func sweep(f Facts) {
	ours := regexp.MustCompile(`^` + regexp.QuoteMeta(Prefix) + `(?:test|detect)-(\d+)(?:-\d+)?$`)
	for _, parent := range f.Parents {
		entries, err := os.ReadDir(parent)
		if err != nil {
			continue // it is looked for by each test that needs it
		}
		for _, e := range entries {
			m := ours.FindStringSubmatch(e.Name())
			if m == nil {
				continue
			}
			pid, err := strconv.Atoi(m[1])
			if err != nil || !errors.Is(unix.Kill(pid, 0), unix.ESRCH) {
				continue
			}
			var dirs []string
			_ = filepath.WalkDir(filepath.Join(parent, e.Name()), func(path string, d fs.DirEntry, err error) error {
				if err == nil && d.IsDir() {
					dirs = append(dirs, path)
				}
				return nil
			})
			for _, dir := range slices.Backward(dirs) {
				_ = os.Remove(dir) // somebody is in it
			}
		}
	}
}

// TestKilledTestsLeaveNothingForLong: a test cannot remove its groups when it is killed.
func TestKilledTestsLeaveNothingForLong(t *testing.T) {
	f := needs(t, Pids)
	gone := exec.Command("true")
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}
	dead, alive := fmt.Sprintf("%sdetect-%d", Prefix, gone.Process.Pid), testGroup("detect")
	for _, parent := range f.Parents {
		for _, name := range []string{dead + "/below", alive} {
			if err := os.MkdirAll(filepath.Join(parent, name), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		defer os.Remove(filepath.Join(parent, alive))
	}
	sweep(f)
	for _, parent := range f.Parents {
		if _, err := os.Lstat(filepath.Join(parent, dead)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: the group of a test that is gone stays (%v)", parent, err)
		}
		if _, err := os.Lstat(filepath.Join(parent, alive)); err != nil {
			t.Errorf("the group of a test that runs: %v", err)
		}
	}
}
