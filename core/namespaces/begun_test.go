package namespaces

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/plan"
	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

var allTypes = []specs.LinuxNamespaceType{specs.UserNamespace, specs.PIDNamespace, specs.MountNamespace, specs.NetworkNamespace, specs.UTSNamespace, specs.IPCNamespace, specs.CgroupNamespace}

func mustBegin(t *testing.T, types []specs.LinuxNamespaceType) *Begun {
	t.Helper()
	g, err := Begin(types)
	if err != nil {
		t.Fatal(err)
	}
	if g == nil {
		testutil.Skip(t, "amd64", "elsewhere no process can be begun")
	}
	t.Cleanup(g.Dismiss)
	return g
}

// gone waits for a process to be no more, collected by whoever has to.
func gone(t *testing.T, pid int) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !errors.Is(unix.Kill(pid, 0), unix.ESRCH); {
		if time.Now().After(end) {
			t.Fatalf("process %d is still there", pid)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestBegunIsTheInitThatStarts(t *testing.T) {
	testutil.Needs(t, testutil.UserNS)
	g := mustBegin(t, allTypes)
	pid := g.child.Pid
	s, err := startWith(t, &plan.Plan{Namespaces: all, IDs: oneID()}, g)
	if err != nil {
		t.Fatal(err)
	}
	if s.in.Pid != pid {
		t.Errorf("process %d was begun, and %d started", pid, s.in.Pid)
	}
	if v := s.seen; v.Pid != 1 || v.UID != 0 || v.GID != 0 || v.Death != int(unix.SIGKILL) {
		t.Errorf("pid %d, ids %d:%d, death signal %d, want 1, 0:0, SIGKILL", v.Pid, v.UID, v.GID, v.Death)
	}
	if ours, theirs := links("/proc/self/ns"), links(fmt.Sprintf("/proc/%d/ns", pid)); ours["net"] == theirs["net"] || ours["user"] == theirs["user"] {
		t.Errorf("namespaces %v, ours %v", theirs, ours)
	}
	for fd, want := range map[string]bool{"0": true, "1": true, "2": true, "3": true} {
		if _, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, fd)); (err == nil) != want {
			t.Errorf("descriptor %s: %v", fd, err)
		}
	}
	g.Dismiss() // changes nothing any more
	if err := unix.Kill(pid, 0); err != nil {
		t.Errorf("dismissed when it ran: %v", err)
	}
}

// TestBegunIsKeptApart: it runs anywhere but where it was begun, and is to run wherever
// its maker's children may once it has started.
func TestBegunIsKeptApart(t *testing.T) {
	testutil.Needs(t, testutil.UserNS)
	var ours unix.CPUSet
	if err := unix.SchedGetaffinity(0, &ours); err != nil {
		t.Fatal(err)
	}
	g := mustBegin(t, allTypes)
	pid := g.child.Pid
	want := ours.Count() - 1
	if want == 0 {
		want = 1 // there is nowhere else
	}
	var theirs unix.CPUSet
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if err := unix.SchedGetaffinity(pid, &theirs); err != nil {
			t.Fatal(err)
		}
		if theirs.Count() == want {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("it may run on %v, its maker on %v", theirs, ours)
		}
	}
	s, err := startWith(t, &plan.Plan{Namespaces: all, IDs: oneID()}, g)
	if err != nil {
		t.Fatal(err)
	}
	if (ours.Count() > 1) != (len(s.in.CPUs) > 0) {
		t.Errorf("with %d processors init is told %d bytes", ours.Count(), len(s.in.CPUs))
	}
}

func TestProcessorsAreRestored(t *testing.T) {
	cpus := func(n ...int) (s unix.CPUSet) {
		for _, i := range n {
			s.Set(i)
		}
		return s
	}
	for name, c := range map[string]struct {
		apart apart
		want  string
	}{
		"not apart":           {apart{}, ""},
		"not allowed to":      {apart{ours: cpus(0, 1), allowed: cpus(0, 1), kept: cpus(0, 1)}, ""},
		"never told":          {apart{ours: cpus(0, 1), allowed: cpus(0, 1)}, strings.Repeat("\xff", 128)},
		"told where":          {apart{ours: cpus(0, 2), allowed: cpus(0, 1, 2)}, "\x05" + strings.Repeat("\x00", 127)},
		"nothing was allowed": {apart{ours: cpus(1, 2)}, "\x06" + strings.Repeat("\x00", 127)},
	} {
		if got := string(c.apart.restored()); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func TestDismissed(t *testing.T) {
	testutil.Needs(t, testutil.UserNS)
	g := mustBegin(t, allTypes)
	pid := g.child.Pid
	g.Dismiss()
	gone(t, pid)
	g.Dismiss()
	(*Begun)(nil).Dismiss()
}

// One that was begun for other namespaces is no use, and must not be left.
func TestBegunThatDoesNotFit(t *testing.T) {
	testutil.Needs(t, testutil.UserNS)
	g := mustBegin(t, allTypes[:2])
	pid := g.child.Pid
	s, err := startWith(t, &plan.Plan{Namespaces: all, IDs: oneID()}, g)
	if err != nil {
		t.Fatal(err)
	}
	if s.in.Pid == pid {
		t.Error("it has been started")
	}
	gone(t, pid)
}

// What is begun ends with its maker, though that cannot say so any more. The test runs
// itself for one that begins an init and is killed.
func TestBegunEndsWithItsMaker(t *testing.T) {
	testutil.Needs(t, testutil.UserNS)
	if os.Getenv("NUCLEUS_TEST_BEGIN") != "" {
		g := mustBegin(t, allTypes)
		fmt.Printf("begun %d\n", g.child.Pid)
		select {}
	}
	cmd := exec.Command("/proc/self/exe", "-test.run", "^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), "NUCLEUS_TEST_BEGIN=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	_, err = fmt.Fscanf(out, "begun %d\n", &pid)
	_ = cmd.Process.Kill()
	_ = cmd.Wait() // killed
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		// Collected by the host's init, which may take its time.
		if err != nil || strings.Contains(string(b), "State:\tZ") || strings.Contains(string(b), "State:\tX") {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("it lives: %s", b)
		}
	}
}

// It takes the first free numbers for what it is passed: that 0 to 4 are taken is its own
// doing, not its maker's.
func TestBegunWithoutStandardStreams(t *testing.T) {
	testutil.Needs(t, testutil.UserNS)
	if os.Getenv("NUCLEUS_TEST_BEGIN") != "" {
		for fd := range 3 {
			_ = unix.Close(fd)
		}
		g := mustBegin(t, allTypes)
		s, err := startWith(t, &plan.Plan{Namespaces: all, IDs: oneID()}, g)
		if err != nil || s.seen.Pid != 1 {
			os.Exit(3)
		}
		os.Exit(4)
	}
	cmd := exec.Command("/proc/self/exe", "-test.run", "^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), "NUCLEUS_TEST_BEGIN=1")
	_ = cmd.Run() // its exit code tells
	if cmd.ProcessState.ExitCode() != 4 {
		t.Errorf("%v, want exit status 4", cmd.ProcessState)
	}
}

// What `nucleus plan` says of a namespace is the call that makes it.
func TestPlansNameTheCallThatMakesANamespace(t *testing.T) {
	unshared := map[uintptr]bool{}
	for _, n := range beside {
		unshared[n.flag] = true
	}
	p := &plan.Plan{Process: specs.Process{Capabilities: &specs.LinuxCapabilities{}}, Resources: &specs.LinuxResources{}}
	for typ := range flags {
		p.Namespaces = append(p.Namespaces, specs.LinuxNamespace{Type: typ})
	}
	said := map[string]string{}
	for _, l := range p.Lines() {
		if l.Phase == "namespaces" {
			said[l.Setting] = l.Mechanism
		}
	}
	for typ, flag := range flags {
		call := "clone3(CLONE_NEW"
		if unshared[flag] {
			call = "unshare(CLONE_NEW"
		}
		if got := said[string(typ)]; !strings.HasPrefix(got, call) {
			t.Errorf("%s: %q, want %s…", typ, got, call)
		}
	}
}
