package file

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/nucleus-runtime/nucleus/plugins/secrets/fault"
	"github.com/nucleus-runtime/nucleus/sdk/secrets"
)

func provider(t *testing.T, c Config, is map[string]Instance) *Provider {
	t.Helper()
	p, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	for id, i := range is {
		if err := p.Configure(id, i); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

func write(t *testing.T, text string, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestFetchReadsFiles(t *testing.T) {
	p := provider(t, Config{}, map[string]Instance{
		"plain":   {Path: write(t, "one\n\n", 0o600)},
		"trimmed": {Path: write(t, "two\n\n", 0o400), Trim: true},
		"dos":     {Path: write(t, "three\r\n", 0o400), Trim: true},
		"bare":    {Path: write(t, "four", 0o400), Trim: true},
		"none":    {Path: "/nonexistent/secret"},
	})
	got, err := p.Fetch(t.Context(), secrets.Call{}, []secrets.Ref{
		{Name: "a", InstanceID: "plain"},
		{Name: "b", InstanceID: "trimmed"},
		{Name: "c", InstanceID: "dos"},
		{Name: "d", InstanceID: "bare"},
		{Name: "e", InstanceID: "none", Optional: true},
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"one\n\n", "two\n", "three", "four", ""} {
		if string(got[i].Value) != want {
			t.Errorf("%s: %q, want %q", got[i].Name, got[i].Value, want)
		}
	}
	if !got[4].Absent || got[0].Absent {
		t.Errorf("absent: %v, %v", got[4].Absent, got[0].Absent)
	}
}

func TestFetchFailsAsAWhole(t *testing.T) {
	p := provider(t, Config{}, map[string]Instance{"good": {Path: write(t, "s3cret", 0o600)}, "open": {Path: write(t, "s3cret", 0o644)}, "none": {Path: "/nonexistent/secret"}})
	for id, code := range map[string]fault.Code{"open": fault.PermissionDenied, "none": fault.NotFound, "unknown": fault.InvalidArgument} {
		// That others can read it is an error of an optional secret, too.
		got, err := p.Fetch(t.Context(), secrets.Call{}, []secrets.Ref{{Name: "good", InstanceID: "good"}, {Name: id, InstanceID: id, Optional: id == "open"}})
		if got != nil || fault.Of(err) != code {
			t.Errorf("%s: %v, %v", id, got, err)
		}
	}
}

func TestFetchStaysBelowDirs(t *testing.T) {
	path := write(t, "s3cret", 0o600)
	p := provider(t, Config{Dirs: []string{t.TempDir()}}, map[string]Instance{"out": {Path: path}})
	if got, err := p.Fetch(t.Context(), secrets.Call{}, []secrets.Ref{{Name: "a", InstanceID: "out", Optional: true}}); fault.Of(err) != fault.PermissionDenied {
		t.Errorf("%v, %v", got, err)
	}
}

func TestConfigurationsAreChecked(t *testing.T) {
	if _, err := New(Config{Dirs: []string{"/a", "b"}}); err == nil || err.Error() != `dirs[1]: "b" is no clean absolute path; write for instance "/etc/nucleus/secrets/db"` {
		t.Errorf("error %v", err)
	}
	p := provider(t, Config{}, nil)
	if err := p.Configure("a", Instance{Path: "../x"}); fault.Of(err) != fault.InvalidArgument {
		t.Errorf("error %v", err)
	}
}
