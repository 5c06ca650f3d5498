package fs

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nucleus-runtime/nucleus/core/plan"
)

func TestRefusedSources(t *testing.T) {
	dir := t.TempDir()
	own := filepath.Join(dir, "own")
	for _, d := range []string{"data", "own/below", "ownership"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for link, to := range map[string]string{"to-proc": "/proc/self", "to-root": "/", "to-own": own, "to-data": "data", "loop": "loop"} {
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	p := &Prepared{plan: &plan.Plan{}, opts: Options{Refused: []string{"", own}}}
	for path, want := range map[string]string{
		"/": "the host's root", "/proc": "below /proc", "/proc/self": "below /proc", "/sys/kernel": "below /sys", "/dev": "below /dev", "/dev/shm": "below /dev",
		"/tmp/../proc":                  "below /proc",
		filepath.Join(dir, "to-proc"):   "below /proc",
		filepath.Join(dir, "to-root"):   "the host's root",
		filepath.Join(dir, "to-own"):    "belongs to Nucleus",
		own:                             "belongs to Nucleus",
		filepath.Join(own, "below"):     "belongs to Nucleus",
		dir:                             "contains files of Nucleus",
		filepath.Join(dir, "data"):      "",
		filepath.Join(dir, "to-data"):   "",
		filepath.Join(dir, "ownership"): "",
	} {
		f, real, err := p.source(path, "volume[\"x\"]")
		if want == "" {
			if err != nil {
				t.Errorf("%s: %v", path, err)
				continue
			}
			if !filepath.IsAbs(real) || strings.Contains(real, "to-") {
				t.Errorf("%s leads to %s", path, real)
			}
			_ = f.Close()
			continue
		}
		var fe *Error
		if !errors.As(err, &fe) || !strings.Contains(err.Error(), want) || fe.Origin != `volume["x"].source` || fe.Hint == "" {
			t.Errorf("%s: %v, want …%s… with its line and a hint", path, err, want)
		}
	}
	if why := p.refused("/boot/vmlinuz"); why == "" {
		t.Error("what the host boots from is given")
	}
	if _, _, err := p.source(filepath.Join(dir, "missing"), "x"); !errors.Is(err, unix.ENOENT) {
		t.Errorf("missing: %v", err)
	}
	if _, _, err := p.source(filepath.Join(dir, "loop"), "x"); !errors.Is(err, unix.ELOOP) {
		t.Errorf("loop: %v", err)
	}
}

func TestCreateMakesOneDirectoryAndSaysSo(t *testing.T) {
	dir := t.TempDir()
	p := &Prepared{plan: &plan.Plan{}, opts: Options{Refused: []string{filepath.Join(dir, "own")}}}
	if err := os.Mkdir(filepath.Join(dir, "own"), 0o755); err != nil {
		t.Fatal(err)
	}
	made := filepath.Join(dir, "data")
	if err := p.create(mountOf(made)); err != nil {
		t.Fatal(err)
	}
	if err := p.create(mountOf(made)); err != nil || len(p.Created) != 1 || p.Created[0] != made {
		t.Errorf("%v, created %v", err, p.Created)
	}
	if err := p.create(mountOf(filepath.Join(dir, "a/b"))); err == nil {
		t.Error("parents are made")
	}
	if err := p.create(mountOf(filepath.Join(dir, "own/x"))); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("in Nucleus's own: %v", err)
	}
	if err := os.Symlink("/nowhere/at/all", filepath.Join(dir, "dangling")); err != nil {
		t.Fatal(err)
	}
	if err := p.create(mountOf(filepath.Join(dir, "dangling"))); err != nil || len(p.Created) != 1 {
		t.Errorf("a link is left to the opening of it: %v, %v", err, p.Created)
	}
}

func mountOf(source string) plan.Mount {
	m := plan.Mount{Kind: plan.MountBind, Origin: "volume", Create: true}
	m.Source, m.Destination, m.Options = source, "/data", []string{"rbind", "rw"}
	return m
}

// What every sandbox sees of the host must not hold what none may have.
func TestStateInTheToolchain(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{"opt/state", "opt/programs"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("opt", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	m := plan.Mount{Kind: plan.MountToolchain}
	m.Source, m.Destination, m.Options = filepath.Join(dir, "opt"), "/opt", []string{"rbind", "ro"}
	pl := rootfsPlan("", plan.RootToolchain, nil)
	pl.Mounts = []plan.Mount{m}
	prepare := func(o Options) error {
		p, err := Prepare(t.Context(), pl, o)
		if err == nil {
			p.Close()
		}
		return err
	}
	for _, state := range []string{"opt/state", "link/state", "opt/programs/../state/"} {
		err := prepare(Options{Refused: []string{dir + "/" + state}})
		var fe *Error
		if !errors.As(err, &fe) || !strings.Contains(err.Error(), "which the sandbox would see") || fe.Hint == "" {
			t.Errorf("%s: %v", state, err)
		}
	}
	if err := prepare(Options{Programs: filepath.Join(dir, "opt/programs"), Refused: []string{filepath.Join(dir, "optional")}}); err != nil {
		t.Errorf("programs among the toolchain's: %v", err)
	}
}

// Programs may lie in a toolchain directory that is lent; a state root may not.
func TestToolchainWithAStateRootIsNotLent(t *testing.T) {
	for _, source := range []string{"/usr", "/usr/local"} {
		p := &Prepared{opts: Options{Programs: "/usr/local/libexec/nucleus", Refused: []string{"/usr/local/nucleus-state"}}}
		if p.refused(source) == "" {
			t.Errorf("%s is lent, with a state root in it", source)
		}
		p = &Prepared{opts: Options{Programs: "/usr/local/libexec/nucleus"}}
		if why := p.refused(source); why != "" {
			t.Errorf("%s is refused: %s", source, why)
		}
	}
}
