package cgroups

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A supervisor is apart from its caller only where that is not above it.
func TestSupervisorsAreBesideTheirCaller(t *testing.T) {
	name := fmt.Sprintf("nucleus-supervisors-%d", os.Geteuid())
	for what, c := range map[string]struct {
		own, parents, want map[string]string
		why                string
	}{
		"beside":                   {own: map[string]string{"": "/cg/a/b"}, parents: map[string]string{"": "/cg/a"}, want: map[string]string{"": "/cg/a/" + name}},
		"elsewhere":                {own: map[string]string{"": "/cg/a/b"}, parents: map[string]string{"": "/cg/ab"}, want: map[string]string{"": "/cg/ab/" + name}},
		"a name that begins alike": {own: map[string]string{"": "/cg/a"}, parents: map[string]string{"": "/cg/ab"}, want: map[string]string{"": "/cg/ab/" + name}},
		"the caller's own":         {own: map[string]string{"": "/cg/a"}, parents: map[string]string{"": "/cg/a"}, why: "below"},
		"below the caller's":       {own: map[string]string{"": "/cg"}, parents: map[string]string{"": "/cg/a"}, why: "below"},
		"of v1 those that are": {
			own: map[string]string{Memory: "/m/a", Pids: "/p"}, parents: map[string]string{Memory: "/m/b", Pids: "/p/b"}, want: map[string]string{Memory: "/m/b/" + name},
		},
	} {
		t.Run(what, func(t *testing.T) {
			g, why := Facts{Layout: V2, Own: c.own, Parents: c.parents}.Supervisors()
			if c.why != "" {
				if g != nil || !strings.Contains(why, c.why) {
					t.Fatalf("%+v, %q; want none, %q", g, why, c.why)
				}
				return
			}
			if g == nil || fmt.Sprint(g.Record().Paths) != fmt.Sprint(c.want) {
				t.Fatalf("%+v (%s), want %v", g, why, c.want)
			}
		})
	}
	if g, why := (Facts{Why: "there are none"}).Supervisors(); g != nil || why != "there are none" {
		t.Errorf("without groups: %+v, %q", g, why)
	}
}

func TestGroupOfSupervisorsGoesWhenItIsEmpty(t *testing.T) {
	f := needs(t)
	rec := Record{Layout: f.Layout, Name: fmt.Sprintf("%stest-%d-%d", supervisorsName, os.Getpid(), time.Now().UnixNano()), Paths: map[string]string{}}
	for c, dir := range f.Parents {
		rec.Paths[c] = filepath.Join(dir, rec.Name)
	}
	g := &Group{tree: tree{rec: rec}, facts: f, limits: &limits{}}
	if gone, err := RemoveEmpty(rec); err != nil || !gone {
		t.Fatalf("one that was never made: %v, %v", gone, err)
	}
	if err := g.Create(); err != nil {
		t.Fatal(err)
	}
	if err := g.Ours(); err != nil {
		t.Error(err)
	}
	p := startIn(t, g, "sleep")
	if gone, err := RemoveEmpty(rec); err != nil || gone {
		t.Fatalf("with a process in it: %v, %v", gone, err)
	}
	if err := p.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = p.Wait()
	for end := time.Now().Add(patient(5 * time.Second)); ; time.Sleep(time.Millisecond) {
		gone, err := RemoveEmpty(rec)
		if err != nil {
			t.Fatal(err)
		}
		if gone {
			break
		}
		if time.Now().After(end) {
			t.Fatal("it is not removed")
		}
	}
	absent(t, rec)
	rec.Paths = map[string]string{"": filepath.Join(t.TempDir(), rec.Name)}
	if err := os.Mkdir(rec.Paths[""], 0o755); err != nil {
		t.Fatal(err)
	}
	if gone, err := RemoveEmpty(rec); err == nil || gone {
		t.Errorf("a directory that is no group: %v, %v", gone, err)
	}
}
