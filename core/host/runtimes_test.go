package host

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/nucleus-runtime/nucleus/core/host/fact"
)

func TestGVisorCouldWork(t *testing.T) {
	var able []fact.Feature
	for _, n := range []string{featUserNS, featMountNS, featPIDNS, featSeccomp} {
		able = append(able, fact.Feature{Name: n, State: fact.Available})
	}
	unable := slices.Clone(able)
	unable[0].State = fact.Unavailable
	for name, tc := range map[string]struct {
		features      []fact.Feature
		plugin, runsc os.FileMode // 0 for none
		state         fact.State
		missing       string
		why           string
	}{
		"all there":                  {able, 0o755, 0o755, fact.Available, "", ""},
		"no plugin":                  {able, 0, 0o755, fact.Unavailable, "nucleus-plugin-gvisor", "none of "},
		"no runsc":                   {able, 0o755, 0, fact.Unavailable, "runsc", "/nowhere/runsc"},
		"a plugin that others write": {able, 0o757, 0o755, fact.Unavailable, "nucleus-plugin-gvisor", "nucleus-plugin-gvisor: "},
		"a runsc that others write":  {able, 0o755, 0o757, fact.Unavailable, "runsc", "runsc: "},
		"one that is no program":     {able, 0o755, 0o644, fact.Unavailable, "runsc", "permission denied"},
		"no user namespaces":         {unable, 0o755, 0o755, fact.Unavailable, "userns", ""},
		"neither":                    {unable, 0o755, 0, fact.Unavailable, "userns runsc", "none of "},
		"nobody has looked":          {nil, 0o755, 0o755, fact.Unknown, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			put := func(name string, mode os.FileMode) string {
				at := filepath.Join(dir, name)
				if err := os.Mkdir(filepath.Dir(at), 0o755); err != nil {
					t.Fatal(err)
				}
				if mode == 0 {
					return at
				}
				if err := os.WriteFile(at, nil, mode); err != nil {
					t.Fatal(err)
				}
				if err := os.Chmod(at, mode); err != nil {
					t.Fatal(err)
				}
				return at
			}
			plugin, runsc := put("plugins/nucleus-plugin-gvisor", tc.plugin), put("tools/runsc", tc.runsc)
			v := judgeGVisor(tc.features, []string{filepath.Join(dir, "other"), plugin}, []string{"/nowhere/runsc"}, false)
			if v.State != tc.state || strings.Join(v.Missing, " ") != tc.missing || !strings.Contains(v.Why, tc.why) || (v.Why == "") != (tc.why == "") {
				t.Errorf("got %+v", v)
			}
			if (v.Program == runsc) != (tc.plugin == 0o755 && tc.runsc == 0o755) {
				t.Errorf("the program is %q", v.Program)
			}
		})
	}
}

// What the plugin's user cannot see is passed over, as the plugin does.
func TestARunscThatThePluginCannotReach(t *testing.T) {
	// Not t.TempDir(): that of a user's run may be the user's alone.
	top, err := os.MkdirTemp("/tmp", "nucleus-test-")
	if err == nil {
		err = os.Chmod(top, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(top)
	var runscs []string
	for _, name := range []string{"private", "public"} {
		at := filepath.Join(top, name, "runsc")
		if err := os.Mkdir(filepath.Dir(at), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at, nil, 0o755); err != nil {
			t.Fatal(err)
		}
		runscs = append(runscs, at)
	}
	if err := os.Chmod(filepath.Dir(runscs[1]), 0o755); err != nil {
		t.Fatal(err)
	}
	if got, err := firstProgram(runscs, true); err != nil || got != runscs[1] {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := firstProgram(runscs, false); err != nil || got != runscs[0] {
		t.Errorf("who sees all: %q, %v", got, err)
	}
	if _, err := firstProgram(runscs[:1], true); err == nil || !strings.Contains(err.Error(), "cannot be reached by the user") {
		t.Errorf("got %v", err)
	}
}

// The plugin is of another module, whose list of places nobody can import.
func TestRunscIsLookedForWhereThePluginDoes(t *testing.T) {
	src, err := os.ReadFile("../../plugins/gvisor/runsc.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`places{"` + strings.Join(runscPlaces, `", "`) + `"}`,
		`filepath.Dir(self), "..", "tools", "runsc")`,
	} {
		if !strings.Contains(string(src), want) {
			t.Errorf("plugins/gvisor/runsc.go has no %s", want)
		}
	}
}
