package pluginhost

import (
	"fmt"
	"strings"
	"testing"

	"github.com/nucleus-runtime/nucleus/sdk/manifest"
)

func TestVersionsAreSelected(t *testing.T) {
	for _, c := range []struct {
		theirs string
		want   manifest.Service
		got    string // "" for an error
	}{
		{"1.0", manifest.Hooks, "[{hooks 1.0}]"},
		{"1", manifest.Hooks, "[{hooks 1.0}]"},
		{"1.9", manifest.Hooks, "[{hooks 1.0}]"},
		{"2.0", manifest.Hooks, ""},
		{"0.9", manifest.Hooks, ""},
		{"one", manifest.Hooks, ""},
		{"2.0", manifest.Secrets, "[]"}, // it is not asked for that
		{"2.0", "", "[]"},
	} {
		info := manifest.Info{Services: []manifest.Version{{Service: manifest.Hooks, Version: c.theirs}, {Service: "later", Version: "7.1"}}}
		got, err := selectVersions("p", info, c.want)
		if c.got == "" {
			if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("it speaks version %q of hooks, and this nucleus 1.0", c.theirs)) {
				t.Errorf("%+v: %v, %v", c, got, err)
			}
			continue
		}
		if err != nil || fmt.Sprint(got) != c.got {
			t.Errorf("%+v: %v, %v", c, got, err)
		}
	}
}

// Both sides look: the plugin, too, is told what was selected.
func TestAPluginOfAnotherMajorVersion(t *testing.T) {
	r := newRig(t, nil)
	if _, err := r.fetch(t.Context(), "next-major"); err == nil || !strings.Contains(err.Error(), `plugin "next-major": it speaks version "2.0" of secrets, and this nucleus 1.0`) {
		t.Errorf("error %v", err)
	}
	if _, err := r.fetch(t.Context(), "next-minor"); err != nil {
		t.Errorf("a higher minor version: %v", err)
	}
}
