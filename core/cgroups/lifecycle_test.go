package cgroups

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	oc "github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/internal/testutil"
)

func TestFreezeStopsAndThawContinues(t *testing.T) {
	for _, role := range []string{"tick", "headless"} {
		t.Run(role, func(t *testing.T) { stopsAndContinues(t, role) })
	}
}

func stopsAndContinues(t *testing.T, role string) {
	g := newGroup(t, needs(t, Freezer), nil)
	p := startIn(t, g, role)
	lines := make(chan struct{}, 1<<16)
	go func() {
		for {
			if _, err := p.out.ReadString('\n'); err != nil {
				close(lines)
				return
			}
			lines <- struct{}{}
		}
	}()
	p.open(t)
	next := func(d time.Duration) bool {
		select {
		case _, ok := <-lines:
			return ok
		case <-time.After(d):
			return false
		}
	}
	if !next(patient(5 * time.Second)) {
		t.Fatal("the child does not run")
	}
	if err := g.Freeze(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	for next(50 * time.Millisecond) { // what was in the pipe
	}
	if next(patient(200 * time.Millisecond)) {
		t.Error("a frozen child went on")
	}
	if err := g.Thaw(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !next(patient(5 * time.Second)) {
		t.Error("a thawed child did not go on")
	}
	if err := g.killAll(within(t, 5*time.Second)); err != nil {
		t.Error(err)
	}
}

func TestFreezeIsBoundedByItsContext(t *testing.T) {
	g := newGroup(t, needs(t, Freezer, Pids), pidsLimit(64))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	startStorm(t, g)
	time.Sleep(patient(50 * time.Millisecond))
	// With a context that has ended, it either froze at once or gave up and thawed.
	if err := g.Freeze(ctx); err == nil {
		return
	}
	deadline := time.Now().Add(patient(5 * time.Second))
	for {
		state, err := g.frozen()
		if err != nil {
			t.Fatal(err)
		}
		if !state {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("left frozen after a failed Freeze")
		}
	}
}

func (g *Group) frozen() (bool, error) {
	dir, err := g.freezer()
	if err != nil {
		return false, err
	}
	file, want := "freezer.state", "FROZEN"
	if g.rec.Layout == V2 {
		file, want = "cgroup.freeze", "1"
	}
	b, err := os.ReadFile(filepath.Join(dir, file))
	return strings.TrimSpace(string(b)) == want, err
}

// The guard of these tests: without a limit there is no storm.
func TestStormRefusesWithoutALimit(t *testing.T) {
	p := startIn(t, newGroup(t, needs(t, Pids), nil), "storm")
	p.open(t)
	if got := p.line(t); !strings.HasPrefix(got, "no storm") {
		t.Fatal(got)
	}
}

func TestKillEndsAForkStorm(t *testing.T) {
	g := newGroup(t, needs(t, Freezer, Pids), pidsLimit(stormLimit))
	p := startStorm(t, g)
	deadline := time.Now().Add(patient(10 * time.Second))
	for n := 0; n < 50; {
		pids, err := g.Procs()
		if err != nil {
			t.Fatal(err)
		}
		if n = len(pids); time.Now().After(deadline) {
			t.Fatalf("the storm has only %d processes", n)
		}
	}
	begin := time.Now()
	if err := g.Kill(within(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	t.Logf("killed in %v", time.Since(begin))
	pids, err := g.Procs()
	if err != nil || len(pids) != 0 {
		t.Fatalf("left: %v, %v", pids, err)
	}
	_ = p.Wait()
}

func TestKillOfAFrozenGroup(t *testing.T) {
	g := newGroup(t, needs(t, Freezer), nil)
	p := startIn(t, g, "sleep")
	p.open(t)
	if err := g.Freeze(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	if err := g.Kill(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(); err == nil {
		t.Fatal("the child ended well")
	}
}

// A kernel without cgroup.kill, and every v1 host, kill in rounds.
func TestKillInRounds(t *testing.T) {
	g := newGroup(t, needs(t, Freezer, Pids), pidsLimit(100))
	p := startStorm(t, g)
	time.Sleep(patient(100 * time.Millisecond))
	if err := g.killAll(within(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	_ = p.Wait()
}

func TestKillOfAnEmptyOrAbsentGroup(t *testing.T) {
	g := newGroup(t, needs(t), nil)
	for range 2 {
		if err := g.Kill(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := g.Remove(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRemoveKillsWhatIsLeft(t *testing.T) {
	g := newGroup(t, needs(t), nil)
	p := startIn(t, g, "sleep")
	p.open(t)
	if err := g.Remove(within(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	absent(t, g.Record())
	if err := p.Wait(); err == nil {
		t.Fatal("the child ended well")
	}
}

func TestRemoveTakesNestedGroups(t *testing.T) {
	g := newGroup(t, needs(t), nil)
	for _, dir := range g.dirs() {
		deep := filepath.Join(g.home(dir), "a", "b", "c")
		if err := os.MkdirAll(deep, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(filepath.Join(g.home(dir), "d"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	p := start(t, "sleep", nil)
	for _, dir := range g.dirs() {
		procs := filepath.Join(g.home(dir), "a", "b", "c", "cgroup.procs")
		if err := os.WriteFile(procs, []byte(fmt.Sprint(p.Process.Pid)), 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := g.Remove(within(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	absent(t, g.Record())
}

func TestRemoveIsBounded(t *testing.T) {
	g := newGroup(t, needs(t), nil)
	p := startIn(t, g, "sleep")
	p.open(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	begin := time.Now()
	_ = g.Remove(ctx) // may or may not have been quick enough
	if took := time.Since(begin); took > patient(2*time.Second) {
		t.Errorf("Remove with an ended context took %v", took)
	}
}

func TestRemoveOfWhatWasNeverMade(t *testing.T) {
	f := needs(t)
	g, err := New(f, Spec{Name: Prefix + "never-made"})
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := Remove(t.Context(), g.Record()); err != nil {
		t.Fatal(err)
	}
}

func TestCreateMayBeRepeated(t *testing.T) {
	g := newGroup(t, needs(t), nil)
	if err := g.Create(); err != nil {
		t.Fatal(err)
	}
	if err := g.Limit(); err != nil {
		t.Fatal(err)
	}
}

// W11: whoever made the group may be gone; its record is enough.
func TestRemoveByRecordAfterTheMakerWasKilled(t *testing.T) {
	f := needs(t)
	name := fmt.Sprintf("%stest-crash-%d", Prefix, os.Getpid())
	for _, stop := range []string{"created", "limited", "attached"} {
		t.Run(stop, func(t *testing.T) {
			p := start(t, "create:"+name+","+stop, nil)
			p.open(t)
			var r Record
			if err := json.Unmarshal([]byte(p.line(t)), &r); err != nil {
				t.Fatal(err)
			}
			if got := p.line(t); got != stop {
				t.Fatal(got)
			}
			_ = p.Process.Kill()
			_ = p.Wait()
			stale, err := Stale(f)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.ContainsFunc(stale, func(s Record) bool { return s.Name == name && len(s.Paths) == len(r.Paths) }) {
				t.Errorf("Stale does not list %s: %+v", name, stale)
			}
			if err := Remove(within(t, 10*time.Second), r); err != nil {
				t.Fatal(err)
			}
			absent(t, r)
		})
	}
}

// createChild prints the record, goes as far as it was told, says so, and waits.
func createChild(arg string) int {
	name, stop, _ := strings.Cut(arg, ",")
	f, err := Detect("")
	if err != nil {
		fmt.Println(err)
		return 10
	}
	g, err := New(f, Spec{Name: name})
	if err != nil {
		fmt.Println(err)
		return 11
	}
	_ = json.NewEncoder(os.Stdout).Encode(g.Record())
	step := func(what string, err error) {
		if err != nil {
			fmt.Println(what, err)
		} else if what == stop {
			fmt.Println(what)
			time.Sleep(time.Minute)
		}
	}
	step("created", g.Create())
	step("limited", g.Limit())
	pid, err := syscall.ForkExec("/bin/sleep", []string{"sleep", "60"}, &syscall.ProcAttr{Env: []string{}})
	if err != nil {
		fmt.Println(err)
		return 12
	}
	step("attached", g.Attach(pid))
	return 13
}

func TestRemoveRefusesForeignRecords(t *testing.T) {
	other := t.TempDir()
	victim := filepath.Join(other, Prefix+"x")
	if err := os.Mkdir(victim, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, r := range map[string]Record{
		"not a cgroup":     {Layout: V1, Name: Prefix + "x", Paths: map[string]string{"pids": victim}},
		"another's name":   {Layout: V1, Name: "system.slice", Paths: map[string]string{"pids": "/sys/fs/cgroup/pids/system.slice"}},
		"path and name":    {Layout: V1, Name: Prefix + "x", Paths: map[string]string{"pids": "/sys/fs/cgroup/pids/system.slice"}},
		"dots":             {Layout: V1, Name: Prefix + "x", Paths: map[string]string{"pids": "/sys/fs/cgroup/../cgroup/" + Prefix + "x"}},
		"relative":         {Layout: V1, Name: Prefix + "x", Paths: map[string]string{"pids": Prefix + "x"}},
		"slash in name":    {Layout: V1, Name: Prefix + "a/b", Paths: map[string]string{"pids": "/sys/fs/cgroup/pids/" + Prefix + "a/b"}},
		"supervisors":      {Layout: V2, Name: leafName, Paths: map[string]string{"": "/sys/fs/cgroup/" + leafName}},
		"leaf of another":  {Layout: V2, Name: Prefix + "x", Leaf: "/sys/fs/cgroup/system.slice"},
		"leaf is relative": {Layout: V2, Name: Prefix + "x", Leaf: leafName},
	} {
		if err := Remove(t.Context(), r); err == nil {
			t.Errorf("%s: removed", name)
		}
	}
	if _, err := os.Stat(victim); err != nil {
		t.Error("a directory that is no cgroup was removed")
	}
}

func TestKnownIsOfTheNameAlone(t *testing.T) {
	g := newGroup(t, needs(t), nil)
	paths := g.Paths()
	if got := Known(g.rec.Name, paths); !maps.Equal(got.Paths, paths) || (got.Layout == V2) != (g.rec.Layout == V2) || got.Name != g.rec.Name || got.Leaf != "" {
		t.Errorf("of %v: %+v", paths, got)
	}
	dir := g.dirs()[0]
	below := filepath.Join(dir, Prefix+"below")
	other := filepath.Join(t.TempDir(), g.rec.Name)
	link := filepath.Join(t.TempDir(), g.rec.Name)
	err := errors.Join(os.Mkdir(below, 0o755), os.Mkdir(other, 0o755), os.Symlink(dir, link))
	if err != nil {
		t.Fatal(err)
	}
	for name, dir := range map[string]string{
		"nothing":        "",
		"no cgroup":      other,
		"a link":         link,
		"gone":           filepath.Join(filepath.Dir(dir), "x", g.rec.Name),
		"its parent":     filepath.Dir(dir),
		"below it":       below,
		"dots":           dir + "/../" + g.rec.Name,
		"with a slash":   dir + "/",
		"a file of one":  filepath.Join(dir, "cgroup.procs"),
		"relative to it": g.rec.Name,
	} {
		if got := Known(g.rec.Name, map[string]string{"pids": dir}); len(got.Paths) > 0 {
			t.Errorf("%s: %v", name, got.Paths)
		}
	}
	for _, name := range []string{"", Prefix, leafName, filepath.Base(filepath.Dir(dir))} {
		if got := Known(name, map[string]string{"pids": filepath.Join(filepath.Dir(dir), name)}); len(got.Paths) > 0 {
			t.Errorf("%q: %v", name, got.Paths)
		}
	}
}

// The pid of a dead process may belong to a stranger by the time it is killed.
func TestKillSparesAStranger(t *testing.T) {
	g := newGroup(t, needs(t), nil)
	stranger := start(t, "sleep", nil)
	g.killOne(stranger.Process.Pid)
	time.Sleep(50 * time.Millisecond)
	if err := unix.Kill(stranger.Process.Pid, 0); err != nil {
		t.Fatal("a process outside the group was killed")
	}
	var ws syscall.WaitStatus
	if pid, err := syscall.Wait4(stranger.Process.Pid, &ws, syscall.WNOHANG, nil); pid != 0 || err != nil {
		t.Fatalf("a process outside the group ended: %v %v", ws, err)
	}
}

func TestAttachOfAMissingProcess(t *testing.T) {
	g := newGroup(t, needs(t), nil)
	p := start(t, "exit", nil)
	p.open(t)
	_ = p.Wait()
	if err := g.Attach(p.Process.Pid); !errors.Is(err, unix.ESRCH) {
		t.Errorf("Attach of a reaped process = %v, want ESRCH", err)
	}
	if err := g.Attach(0); err == nil {
		t.Error("Attach(0) would move the caller")
	}
}

// On an odd host the library warns on stderr; we are silent.
func TestNothingIsPrinted(t *testing.T) {
	testutil.Needs(t, testutil.Root)
	for role, wantSilence := range map[string]bool{"quiet:we": true, "quiet:library": false} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		p := startWith(t, role, &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}, w)
		w.Close()
		p.open(t)
		buf := make([]byte, 4096)
		n, _ := r.Read(buf)
		_ = p.Wait()
		r.Close()
		if silent := n == 0; silent != wantSilence {
			t.Errorf("%s: printed %q", role, buf[:n])
		}
	}
}

// quietChild looks at a host without the directory that the library wants.
func quietChild(who string) int {
	for _, err := range []error{
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount("empty", "/sys", "tmpfs", 0, ""),
	} {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 14
		}
	}
	if who == "we" {
		quiet()
	}
	_, err := oc.ReadFile("/sys/fs/cgroup", "cgroup.procs")
	if err == nil {
		return 15
	}
	return 0
}
