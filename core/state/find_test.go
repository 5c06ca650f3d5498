package state

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const (
	idA  = "aaaa0000000000000000000000000001"
	idA2 = "aaaa0000000000000000000000000002"
	idB  = "bbbb0000000000000000000000000003"
)

func TestFind(t *testing.T) {
	r := open(t, filepath.Join(t.TempDir(), "root"))
	create(t, r, idA, "web")
	create(t, r, idA2, "db")
	create(t, r, idB, "aaaa") // its name begins other ids
	for _, test := range []struct{ ref, want string }{
		{"web", idA},
		{idA, idA},
		{idA2, idA2},
		{"b", idB},
		{"bbbb00", idB},
		{"aaaa", idB}, // a name before the beginning of an id
		{idA[:31] + "2", idA2},
	} {
		got, err := r.Find(test.ref)
		if err != nil || got.ID != test.want {
			t.Errorf("Find(%q): %q, %v, want %s", test.ref, got.ID, err, test.want)
			continue
		}
		if got.Path != filepath.Join(r.Path(), "sandboxes", got.ID) {
			t.Errorf("Find(%q): path %q", test.ref, got.Path)
		}
		if name := map[string]string{idA: "web", idA2: "db", idB: "aaaa"}[got.ID]; got.Name != name {
			t.Errorf("Find(%q): name %q, want %q", test.ref, got.Name, name)
		}
	}
	for _, ref := range []string{"aa", "a", idA[:31]} {
		_, err := r.Find(ref)
		var ae *AmbiguousError
		if !errors.As(err, &ae) || ae.Ref != ref || !slices.Equal(ae.IDs, []string{idA, idA2}) {
			t.Errorf("Find(%q): %v, want both that begin so", ref, err)
		}
	}
	for _, ref := range []string{"", ".", "..", "../x", "../sandboxes/" + idA, "/", "/etc", "a/b", "none", "c", "AAAA", "web\n", "we", idA + "0", strings.Repeat("a", 64), "a\x00", "*"} {
		_, err := r.Find(ref)
		var nf *NotFoundError
		if !errors.As(err, &nf) || nf.Ref != ref {
			t.Errorf("Find(%q): %v, want NotFoundError", ref, err)
		}
	}
}

// A name can be left without its sandbox, or be of something else altogether.
func TestFindByNameWithoutSandbox(t *testing.T) {
	r := open(t, filepath.Join(t.TempDir(), "root"))
	d := create(t, r, idA, "web")
	if err := d.Remove(); err != nil {
		t.Fatal(err)
	}
	var nf *NotFoundError
	for _, ref := range []string{"web", idA, idA[:4]} {
		if _, err := r.Find(ref); !errors.As(err, &nf) {
			t.Errorf("Find(%q) of one that is gone: %v", ref, err)
		}
	}
}

func TestHeld(t *testing.T) {
	r := open(t, filepath.Join(t.TempDir(), "root"))
	create(t, r, idA, "live")
	if err := create(t, r, idA2, "dead").Release(); err != nil {
		t.Fatal(err)
	}
	refs, err := r.Refs()
	if err != nil || len(refs) != 2 || refs[0].Name != "live" || refs[1].Name != "dead" {
		t.Fatalf("refs: %v, %v", refs, err)
	}
	refs = append(refs, r.ref(idB, "gone"))
	for range 2 { // having asked changes nothing
		held, unknown, err := r.Held(refs)
		if err != nil || !held[idA] || held[idA2] || held[idB] || len(unknown) > 0 {
			t.Errorf("held: %v, %v, want only %s", held, err, idA)
		}
	}
	dead, err := r.Dead(true)
	if err != nil || len(dead) != 1 || dead[0].ID != idA2 {
		t.Fatalf("dead: %v, %v", dead, err)
	}
	// Whoever collects it holds it.
	if held, _, err := r.Held(refs); err != nil || !held[idA2] {
		t.Errorf("held while it is collected: %v, %v", held, err)
	}
	if err := dead[0].Remove(); err != nil {
		t.Error(err)
	}
}

func TestKept(t *testing.T) {
	r := open(t, filepath.Join(t.TempDir(), "root"))
	d := create(t, r, idA, "web")
	if err := d.WriteJSON("state.json", map[string]int{"code": 7}); err != nil {
		t.Fatal(err)
	}
	x, err := r.Find("web")
	if err != nil || x.Kept() {
		t.Fatalf("before its end: kept %v, %v", x.Kept(), err)
	}
	if err := d.Keep(); err != nil {
		t.Fatal(err)
	}
	if x, err = r.Find("web"); err != nil || !x.Kept() || x.ID != idA {
		t.Fatalf("after its end: %v, kept %v, %v", x, x.Kept(), err)
	}
	if held, _, err := r.Held([]Ref{x}); err != nil || held[idA] {
		t.Errorf("held: %v, %v, want none", held, err)
	}
	// Neither collectors nor names take it away.
	if dead, err := r.Dead(true); err != nil || len(dead) != 0 {
		t.Errorf("%d kept sandboxes were taken for dead (%v)", len(dead), err)
	}
	if err := r.Sweep(); err != nil {
		t.Error(err)
	}
	var taken *NameTakenError
	if _, err := r.Create(idB, "web", true); !errors.As(err, &taken) || taken.ID != idA {
		t.Errorf("its name: %v, want NameTakenError", err)
	}
	var got map[string]int
	if err := x.ReadJSON("state.json", &got); err != nil || got["code"] != 7 {
		t.Errorf("its record: %v, %v", got, err)
	}
	if err := x.ReadJSON("none.json", &got); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a record that is not there: %v", err)
	}
	// Whoever takes it can remove it, and nobody beside.
	taker, err := r.Take(x)
	if err != nil {
		t.Fatal(err)
	}
	var held *HeldError
	if _, err := r.Take(x); !errors.As(err, &held) || held.ID != idA {
		t.Errorf("taken twice: %v, want HeldError", err)
	}
	if err := taker.Remove(); err != nil {
		t.Fatal(err)
	}
	var nf *NotFoundError
	if _, err := r.Take(x); !errors.As(err, &nf) {
		t.Errorf("taken when it is gone: %v, want NotFoundError", err)
	}
	if left := files(t, r); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

func TestTakeOfALiveOne(t *testing.T) {
	r := open(t, filepath.Join(t.TempDir(), "root"))
	create(t, r, idA, "web")
	x, err := r.Find("web")
	if err != nil {
		t.Fatal(err)
	}
	// As another process would: by a root of its own.
	var held *HeldError
	if _, err := open(t, r.Path()).Take(x); !errors.As(err, &held) || held.ID != idA {
		t.Errorf("%v, want HeldError", err)
	}
	if held, _, err := r.Held([]Ref{x}); err != nil || !held[idA] {
		t.Errorf("it is not held any more: %v, %v", held, err)
	}
}

func TestFindOfWhatIsNoDirectory(t *testing.T) {
	r := open(t, filepath.Join(t.TempDir(), "root"))
	if err := create(t, r, idA, "web").Release(); err != nil {
		t.Fatal(err)
	}
	x, err := r.Find("web")
	if err == nil {
		err = errors.Join(os.RemoveAll(x.Path), os.WriteFile(x.Path, nil, 0o600))
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{"web", idA} {
		var se *StrayError
		if _, err := r.Find(ref); !errors.As(err, &se) || se.Path != x.Path {
			t.Errorf("Find(%q): %v", ref, err)
		}
	}
}
