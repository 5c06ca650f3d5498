package cgroups

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// later gives a group whose freezer comes later, nil where none does.
func later(t *testing.T) *Group {
	t.Helper()
	g := newGroup(t, needs(t, Freezer, Pids), pidsLimit(100))
	if g.rec.Later != (g.rec.Layout != V2 && os.Geteuid() == 0) {
		t.Fatalf("%s, user %d: %+v", g.rec.Layout, os.Geteuid(), g.rec)
	}
	if !g.rec.Later {
		t.Log("everything is born in the freezer's group here")
		return nil
	}
	return g
}

func TestFreezerIsMadeByTheFirstFreeze(t *testing.T) {
	g := later(t)
	if g == nil {
		return
	}
	p := startIn(t, g, "fork:20")
	p.open(t)
	if got := p.line(t); got != "forked 20" {
		t.Fatal(got)
	}
	dir := g.rec.Paths[Freezer]
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) || g.Paths()[Freezer] != "" {
		t.Fatalf("the freezer's group is there before it is needed (%v)", err)
	}
	for range 2 {
		begin := time.Now()
		if err := g.Freeze(within(t, 10*time.Second)); err != nil {
			t.Fatal(err)
		}
		t.Logf("frozen in %v", time.Since(begin))
		all, err := g.Procs()
		if err != nil {
			t.Fatal(err)
		}
		inside, err := procs(dir)
		slices.Sort(inside)
		if err != nil || !slices.Equal(inside, all) || !slices.Contains(inside, p.Process.Pid) {
			t.Errorf("of %v only %v are in the freezer's group (%v)", all, inside, err)
		}
		if got := g.Paths()[Freezer]; got != dir {
			t.Errorf("it is not among the groups that processes are born in: %q", got)
		}
		if state, err := g.frozen(); !state || err != nil {
			t.Errorf("not frozen (%v)", err)
		}
		if err := g.Thaw(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// Each write has the kernel go through all threads of the group.
func TestAFreezeThatIsDoneIsWrittenOnce(t *testing.T) {
	g := later(t)
	if g == nil {
		return
	}
	dir := g.rec.Paths[Freezer]
	if err := mkdir(dir); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	// With the openings between them, for events alike that follow each other are one.
	if _, err := unix.InotifyAddWatch(fd, filepath.Join(dir, "freezer.state"), unix.IN_OPEN|unix.IN_CLOSE_WRITE); err != nil {
		t.Fatal(err)
	}
	if err := g.Freeze(within(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4096)
	n, err := unix.Read(fd, buf)
	if err != nil {
		t.Fatal(err)
	}
	written := 0
	for b := buf[:n]; len(b) >= unix.SizeofInotifyEvent; b = b[unix.SizeofInotifyEvent:] { // a watched file has no name in them
		if binary.NativeEndian.Uint32(b[4:])&unix.IN_CLOSE_WRITE != 0 {
			written++
		}
	}
	if written != 1 {
		t.Errorf("the state of a group without processes was written %d times", written)
	}
	if err := g.Thaw(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestFreezeCatchesWhatForksAndExits(t *testing.T) {
	g := later(t)
	if g == nil {
		return
	}
	before, err := os.ReadFile(filepath.Join(g.rec.Paths[Pids], "pids.max"))
	if err != nil {
		t.Fatal(err)
	}
	p := startIn(t, g, "hop")
	p.open(t)
	if got := p.line(t); got != "hop" {
		t.Fatal(got)
	}
	if err := g.Freeze(within(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	pids, err := g.Procs()
	if err != nil || len(pids) == 0 {
		t.Fatalf("nobody is frozen (%v)", err)
	}
	time.Sleep(patient(100 * time.Millisecond))
	if now, err := g.Procs(); err != nil || !slices.Equal(now, pids) {
		t.Errorf("frozen: %v, a moment later %v (%v)", pids, now, err)
	}
	if after, err := os.ReadFile(filepath.Join(g.rec.Paths[Pids], "pids.max")); err != nil || string(after) != string(before) {
		t.Errorf("the limit of tasks is %q (%v), was %q", after, err, before)
	}
}

func TestForksAreHeldUpAndReleased(t *testing.T) {
	g := later(t)
	if g == nil {
		return
	}
	release, err := g.holdForks()
	if err != nil {
		t.Fatal(err)
	}
	p := startIn(t, g, "fork:3")
	p.open(t)
	if got := p.line(t); got != "forked 0" {
		t.Error(got)
	}
	if err := release(); err != nil {
		t.Fatal(err)
	}
	p = startIn(t, g, "fork:3")
	p.open(t)
	if got := p.line(t); got != "forked 3" {
		t.Error(got)
	}
}

// TestFreezerAtOnce: who may not move every process has everything born in the freezer's group.
func TestFreezerAtOnce(t *testing.T) {
	f := needs(t, Freezer, Pids)
	if f.Layout == V2 {
		t.Log("v2 has one group")
		return
	}
	for _, s := range []Spec{{Name: Prefix + "a"}, {Name: Prefix + "a", Privileged: true}} {
		g, err := New(f, s)
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := g.Paths()[Freezer]; ok == s.Privileged {
			t.Errorf("privileged %v: born in %v", s.Privileged, g.Paths())
		}
	}
	// Without a count of tasks forks cannot be held up; nor may what shares the hierarchy come late.
	for name, f := range map[string]Facts{"no pids": f.Only(Memory, Freezer), "shared": sharing(f)} {
		g, err := New(f, Spec{Name: Prefix + "a", Privileged: true})
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasSuffix(g.Paths()[Freezer], Prefix+"a") {
			t.Errorf("%s: born in %v", name, g.Paths())
		}
	}
}

// sharing is f as if memory came with the freezer.
func sharing(f Facts) Facts {
	f = f.Only(Memory, Freezer, Pids)
	f.Parents[Memory] = f.Parents[Freezer]
	return f
}
